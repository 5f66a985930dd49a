"""The usable rows of an indexed data set, as arrays a loader can work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recipes.contract import Artifact, ConfigurationError, InputError
from recipes.data.texts import Texts

Split = Literal["train", "test", "val", "all"]

# Fields of `VideoTable` that are a column of the index, and its name there.
_NUMBERS = {
    "labels": "label_id",
    "frames": "frames",
    "widths": "width",
    "heights": "height",
    "rotations": "rotation",
    "gops": "gop",
    "bytes": "bytes",
    "mtimes_ns": "mtime_ns",
}
_TEXTS = {"paths": "path", "verdicts": "verdict", "groups": "group"}
_CAMERA_NUMBERS = {"offsets": "offset", "starts": "start"}
_CAMERA_TEXTS = {"instances": "instance", "cameras": "camera"}


@dataclass(frozen=True, kw_only=True)
class VideoTable:
    """Videos of one split that can be read (V rows); arrays are aligned with `paths`.

    Attributes:
        root: folder of the files as they were listed.
        prepared_root: folder of those that were re-encoded.
        decoder: the one the verdicts are for.
        paths: relative to `root`, or to `prepared_root` where `prepared`.
        prepared: (V,) whether a row is a re-encoded file.
        labels: (V,) -1 where unlabeled.
        frames: (V,) frames of the recording: all, or from `starts` as many as it has.
        widths: (V,) pixels of the upright picture.
        heights: (V,) likewise.
        rotations: (V,) degrees clockwise from the stored to the upright picture.
        gops: (V,) frames between key frames.
        bytes: (V,) size of the file; one that changed since is refused when read.
        mtimes_ns: (V,) its time of modification, likewise.
        verdicts: `random` or `sequential`.
        groups: videos of one group must not be separated by a split.
        classes: names of the labels.
        name: of the data set.
        total: rows of the split before unreadable and too short ones were left out.
        instances: what several cameras filmed; this and the rest only in multi-camera data.
        cameras: which of them a row is.
        offsets: (V,) frames by which it is late: frame t + offset shows moment t.
        starts: (V,) frame of the file at which the recording begins.
    """

    root: Path
    prepared_root: Path | None
    decoder: str
    paths: Texts
    prepared: NDArray[np.bool_]
    labels: NDArray[np.int64]
    frames: NDArray[np.int64]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    rotations: NDArray[np.int64]
    gops: NDArray[np.int64]
    bytes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]
    verdicts: Texts
    groups: Texts
    classes: tuple[str, ...]
    name: str
    total: int
    instances: Texts | None = None
    cameras: Texts | None = None
    offsets: NDArray[np.int64] | None = None
    starts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def coverage(self) -> float:
        """Share of the split's videos that are used."""
        return len(self) / self.total if self.total else 0.0

    def file(self, row: int) -> Path:
        """Where the video of a row lies."""
        folder = self.prepared_root if self.prepared[row] else self.root
        return Path(folder or self.root, self.paths[row])

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> VideoTable:
        """The same table with these rows only, in this order; `total` shrinks in proportion.

        Meant for taking a part on purpose (a validation share): coverage stays as it was.
        """
        index = np.asarray(rows, dtype=np.int64)
        total = len(index) + round(len(index) * (self.total - len(self)) / max(len(self), 1))
        taken: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Texts):
                taken[field.name] = value.take(index)
            elif isinstance(value, np.ndarray):
                taken[field.name] = value[index]
        return replace(self, total=total, **taken)


def load_table(
    artifact: Artifact, split: Split, fold: int | None = None, min_frames: int | None = None
) -> VideoTable:
    """Read one split of an index artifact, without rejected and too short videos.

    Args:
        artifact: the `dataset` artifact of an index or prepare stage.
        split: `all` takes every row, also those marked unused.
        fold: official split 1 to 3 of UCF101 and HMDB51; None is the column `split` (there: 1).
        min_frames: leave out shorter videos (`ClipConfig.min_frames`); they count in `total`.

    Raises:
        InputError: the file is not such a table, or no row is left.
        ConfigurationError: the data set has no such fold.
    """
    import pyarrow.compute as pc

    name = str(artifact.meta.get("name", artifact.path))
    column = "split" if fold is None else f"split_{fold}"
    columns = _read(artifact.path, column, name)
    listed = columns if split == "all" else columns.filter(pc.equal(columns[column], split))
    usable = listed.filter(pc.not_equal(listed["verdict"], "reject"))
    if min_frames is not None:
        usable = usable.filter(pc.greater_equal(usable["frames"], min_frames))
    if len(usable) == 0:
        longest = pc.max(listed["frames"]).as_py() or 0
        raise InputError(
            f"{name}: no usable video in split {split!r} ({len(listed)} listed, longest {longest} "
            f"frames, needed {min_frames or 1}); choose another split or shorter clips (blocks, "
            "frames, stride, short: loop)"
        )
    return _table(usable, artifact, total=len(listed))


def _read(path: Path, split: str, name: str) -> Any:
    """The needed columns of the index as a pyarrow table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            known = set(file.schema_arrow.names)
            if split != "split" and split not in known:
                raise ConfigurationError(
                    f"{name} has no split {split[-1]}; leave `split` out of the recipe"
                )
            cameras = {**_CAMERA_NUMBERS, **_CAMERA_TEXTS}
            wanted = {split, *_NUMBERS.values(), *_TEXTS.values(), *cameras.values()}
            wanted |= {"prepared", "length"}
            table = file.read(columns=sorted(wanted & known))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable index ({error})") from error
    if missing := sorted({split, *_NUMBERS.values(), *_TEXTS.values()} - known - {"rotation"}):
        raise InputError(f"{path}: not a readable index (no column {', '.join(missing)})")
    if "length" not in known:
        return table
    # what is asked of the length of a video is asked of the recording in it
    return table.set_column(table.schema.get_field_index("frames"), "frames", table["length"])


def _table(columns: Any, artifact: Artifact, total: int) -> VideoTable:
    def numbers(names: dict[str, str]) -> dict[str, NDArray[np.int64]]:
        return {
            field: columns[name].to_numpy().astype(np.int64, copy=False)
            for field, name in names.items()
            if name in columns.column_names
        }

    def texts(names: dict[str, str]) -> dict[str, Texts]:
        return {
            field: Texts.from_arrow(columns[name])
            for field, name in names.items()
            if name in columns.column_names
        }

    rows, prepared_root = len(columns), artifact.meta.get("prepared_root")
    prepared = columns["prepared"].to_numpy() if "prepared" in columns.column_names else None
    content: dict[str, Any] = {
        "rotations": np.zeros(rows, np.int64),
        **numbers(_NUMBERS | _CAMERA_NUMBERS),
        **texts(_TEXTS | _CAMERA_TEXTS),
    }
    return VideoTable(
        root=Path(artifact.meta["root"]),
        prepared_root=None if prepared_root is None else Path(prepared_root),
        decoder=str(artifact.meta.get("decoder", "decord")),
        prepared=np.zeros(rows, np.bool_) if prepared is None else prepared.astype(np.bool_),
        classes=tuple(artifact.meta["classes"]),
        name=str(artifact.meta["name"]),
        total=total,
        **content,
    )
