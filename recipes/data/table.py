"""The usable rows of an indexed data set, as arrays a loader can work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recipes.contract import Artifact, ConfigurationError, InputError

Split = Literal["train", "test", "val", "all"]


@dataclass(frozen=True, kw_only=True)
class VideoTable:
    """Videos of one split that can be read (V rows); arrays are aligned with `paths`.

    `labels` are -1 where unlabeled. `total` counts the split's rows before unreadable and too short
    ones were left out. `widths`, `heights` (pixels), `gops` (frames between key frames), `bytes`
    and `mtimes_ns` are what the index found; a file that changed since is refused when read.
    """

    root: Path
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    frames: NDArray[np.int64]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    gops: NDArray[np.int64]
    bytes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]
    verdicts: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    name: str
    total: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def coverage(self) -> float:
        """Share of the split's videos that are used."""
        return len(self) / self.total if self.total else 0.0

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> VideoTable:
        """The same table with these rows only, in this order; `total` shrinks in proportion.

        Meant for taking a part on purpose (a validation share): coverage stays as it was.
        """
        index = np.asarray(rows, dtype=np.int64)
        total = len(index) + round(len(index) * (self.total - len(self)) / max(len(self), 1))
        return VideoTable(
            root=self.root,
            paths=tuple(self.paths[i] for i in index),
            labels=self.labels[index],
            frames=self.frames[index],
            widths=self.widths[index],
            heights=self.heights[index],
            gops=self.gops[index],
            bytes=self.bytes[index],
            mtimes_ns=self.mtimes_ns[index],
            verdicts=tuple(self.verdicts[i] for i in index),
            groups=tuple(self.groups[i] for i in index),
            classes=self.classes,
            name=self.name,
            total=total,
        )


def load_table(
    artifact: Artifact, split: Split, fold: int | None = None, min_frames: int | None = None
) -> VideoTable:
    """Read one split of an index artifact, without rejected and too short videos.

    Args:
        artifact: the `dataset` artifact of an index stage.
        split: `all` takes every row, also those marked unused.
        fold: official split 1 to 3 of UCF101 and HMDB51; None is the column `split` (there: 1).
        min_frames: leave out shorter videos (`ClipConfig.min_frames`); they count in `total`.

    Raises:
        InputError: the file is not such a table, or no row is left.
        ConfigurationError: the data set has no such fold.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(artifact.path)
    except (OSError, ValueError) as error:
        raise InputError(f"{artifact.path}: not a readable index ({error})") from error
    column = _split_column(frame.columns, fold, str(artifact.meta.get("name", "the data set")))
    listed = frame if split == "all" else frame[frame[column] == split]
    usable = listed[listed["verdict"] != "reject"]
    if min_frames is not None:
        usable = usable[usable["frames"] >= min_frames]
    if usable.empty:
        longest = int(listed["frames"].max()) if len(listed) else 0
        raise InputError(
            f"{artifact.meta.get('name', artifact.path)}: no usable video in split {split!r} "
            f"({len(listed)} listed, longest {longest} frames, needed {min_frames or 1}); choose "
            "another split or shorter clips (blocks, frames, stride, short: loop)"
        )
    return _table(usable, artifact, total=len(listed))


def _split_column(columns: Any, fold: int | None, name: str) -> str:
    if fold is None:
        return "split"
    column = f"split_{fold}"
    if column not in columns:
        raise ConfigurationError(f"{name} has no split {fold}; leave `split` out of the recipe")
    return column


def _table(frame: Any, artifact: Artifact, total: int) -> VideoTable:
    def ints(column: str) -> NDArray[np.int64]:
        return frame[column].to_numpy(dtype=np.int64)  # type: ignore[no-any-return]

    def texts(column: str) -> tuple[str, ...]:
        return tuple(str(value) for value in frame[column])

    return VideoTable(
        root=Path(artifact.meta["root"]),
        paths=texts("path"),
        labels=ints("label_id"),
        frames=ints("frames"),
        widths=ints("width"),
        heights=ints("height"),
        gops=ints("gop"),
        bytes=ints("bytes"),
        mtimes_ns=ints("mtime_ns"),
        verdicts=texts("verdict"),
        groups=texts("group"),
        classes=tuple(artifact.meta["classes"]),
        name=str(artifact.meta["name"]),
        total=total,
    )
