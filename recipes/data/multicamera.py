"""Reads the manifest of videos in which several cameras film the same instances.

docs/data.md says what the columns mean and has an example.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.contract import InputError
from recipes.data.config import MultiCameraData, expand
from recipes.data.listing import (
    SPLITS,
    Listing,
    VideoRow,
    check_folder,
    make_listing,
    read_csv,
    read_list,
)

if TYPE_CHECKING:
    import pandas as pd

# Frames by which aligned cameras may end apart: their shutters open at different moments.
_SLACK = 1
_FPS_TOLERANCE = 0.01  # 29.97 and 30 count as equal: a third of a frame in 10 s
_SHOWN = 5
_ALIASES = {
    "instance_id": "instance",
    "camera_id": "camera",
    "label": "class",
    "offset": "offset_frames",
}
_KNOWN = ("instance", "camera", "path", "class", "split", "start_frame", "n_frames")
_OFFSETS = ("offset_frames", "offset_seconds")


class Alignment(NamedTuple):
    """Of each row: its offset and length in frames, and why it cannot be used, or ""."""

    offsets: list[int]
    lengths: list[int]
    problems: list[str]


def scan(config: MultiCameraData, output_dir: Path, workers: int = 1) -> Listing:
    """List the videos of the manifest; nothing is written.

    Raises:
        InputError: the manifest is missing, wrong or contradicts itself; with all contradictions.
    """
    file = expand(config.file)
    root = file.parent if config.root is None else expand(config.root)
    check_folder(root)
    return make_listing(root, parse(read_list(file), str(file), config.delimiter))


def parse(text: str, where: str, delimiter: str = ",") -> list[VideoRow]:
    """The rows of a manifest that agree with each other; `where` names it in errors."""
    lines = list(read_csv(text, where, (), delimiter))
    if not lines:
        raise InputError(f"{where}: lists no videos")
    _check_columns([_ALIASES.get(name, name) for name in lines[0][1]], where)
    rows = [_row(at, {_ALIASES.get(k, k): v for k, v in cells.items()}) for at, cells in lines]
    faults = list(_contradictions(rows))
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        # one line, because `status` shows no more of an error
        shown = "; ".join(faults[:_SHOWN])
        raise InputError(f"{where}: the manifest contradicts itself: {shown}{more}")
    return rows


def align(rows: Sequence[VideoRow], frames: Sequence[int], fps: Sequence[float]) -> Alignment:
    """Put the cameras of each instance on one clock, once the files are known.

    Args:
        rows: the listing of a multi-camera data set.
        frames: decodable frames of each file; 0 where it is rejected.
        fps: their frames a second.

    Returns:
        Offsets in frames, given seconds being rounded to the nearest frame; lengths from `start`;
        and a problem for each row that must not be used: a file shorter than the manifest says,
        or an instance whose usable cameras are fewer than two or disagree in frame rate or length.
    """
    offsets, lengths = [], []
    for row, count, rate in zip(rows, frames, fps, strict=True):
        seconds = row.offset_seconds
        offsets.append(row.offset or 0 if seconds is None else round(seconds * rate))
        lengths.append(row.length or max(0, count - (row.start or 0)))
    problems = [
        _misfit(row, length, count)
        for row, length, count in zip(rows, lengths, frames, strict=True)
    ]
    for places in _by_instance(rows).values():
        usable = [place for place in places if not problems[place]]
        ends = [lengths[place] - offsets[place] for place in usable]
        rates = [fps[place] for place in usable]
        problem = _disagreement(ends, rates)
        for place in usable:
            problems[place] = problem
    return Alignment(offsets, lengths, problems)


def manifest_columns(rows: Sequence[VideoRow]) -> dict[str, list[Any]]:
    """What the manifest says, as columns of an index; none for other data sets."""
    if not rows or rows[0].instance is None:
        return {}
    nan = float("nan")
    return {
        "instance": [row.instance for row in rows],
        "camera": [row.camera for row in rows],
        "start": [row.start or 0 for row in rows],
        "length": [row.length or 0 for row in rows],
        "offset": [row.offset or 0 for row in rows],
        "offset_seconds": [
            nan if row.offset_seconds is None else row.offset_seconds for row in rows
        ],
    }


def aligned(table: pd.DataFrame) -> pd.DataFrame:
    """An index with its cameras on one clock; other tables as they are.

    Offsets and lengths become frames, and videos without a usable partner are rejected. Those that
    re-encoding may mend count as usable. It needs all rows of an instance: parts are merged first.
    """
    if "instance" not in table:
        return table
    rows = [
        VideoRow(
            path=str(row["path"]),
            instance=str(row["instance"]),
            camera=str(row["camera"]),
            start=int(row["start"]),
            length=int(row["length"]) or None,
            offset=int(row["offset"]),
            offset_seconds=None if math.isnan(row["offset_seconds"]) else row["offset_seconds"],
        )
        for row in table.to_dict("records")
    ]
    lost = (table["verdict"] == "reject") & ~table["mendable"].astype(bool)
    found = align(rows, table["frames"].where(~lost, 0).tolist(), table["fps"].tolist())
    new = [bool(problem) and not gone for problem, gone in zip(found.problems, lost, strict=True)]
    table = table.assign(offset=found.offsets, length=found.lengths)
    if any(new):  # pandas takes no empty list for no rows
        table.loc[new, ["verdict", "reason"]] = [
            ("reject", problem) for problem, fresh in zip(found.problems, new, strict=True) if fresh
        ]
    table.loc[new, "mendable"] = False  # or re-encoding would bring it back without a partner
    return table.drop(columns="offset_seconds")


def _misfit(row: VideoRow, length: int, frames: int) -> str:
    """Why a file does not hold what the manifest says of it, or ""."""
    if not frames:
        return "the file cannot be used"
    start = row.start or 0
    if length and start + length <= frames:
        return ""
    return f"the manifest wants frames {start} to {start + max(length, 1) - 1}, there are {frames}"


def _disagreement(ends: Sequence[int], rates: Sequence[float]) -> str:
    """Why the usable cameras of one instance do not go together, or ""."""
    if len(ends) < 2:
        return "no other camera of its instance can be used"
    if max(rates) - min(rates) > _FPS_TOLERANCE * max(rates):
        return (
            f"the cameras of its instance run at {min(rates):g} to {max(rates):g} frames a second"
        )
    if max(ends) - min(ends) > _SLACK:
        return (
            f"the cameras of its instance end {max(ends) - min(ends)} frames apart; correct the "
            "offsets or n_frames"
        )
    return ""


def _contradictions(rows: Sequence[VideoRow]) -> Iterator[str]:
    """What is wrong within each instance as far as the manifest alone can tell."""
    for instance, places in _by_instance(rows).items():
        members = [rows[place] for place in places]
        cameras = [str(row.camera) for row in members]
        if len(set(cameras)) < 2:
            yield f"instance {instance}: needs two cameras or more, has {cameras[0]} only"
        elif len(set(cameras)) < len(cameras):
            yield f"instance {instance}: a camera is listed twice ({', '.join(sorted(cameras))})"
        if len(found := sorted({row.label or "none" for row in members})) > 1:
            yield f"instance {instance}: has more than one class ({', '.join(found)})"
        if len(found := sorted({row.split for row in members})) > 1:
            yield (
                f"instance {instance}: is in more than one split ({', '.join(found)}), so what is "
                "trained on would be tested on"
            )
        ends = [
            row.length - (row.offset or 0)
            for row in members
            if row.length is not None and row.offset_seconds is None
        ]
        if ends and max(ends) - min(ends) > _SLACK:
            yield (
                f"instance {instance}: its cameras end {max(ends) - min(ends)} frames apart "
                f"(n_frames - offset_frames: {min(ends)} to {max(ends)})"
            )


def _by_instance(rows: Iterable[VideoRow]) -> Mapping[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[str(row.instance)].append(place)
    return places


def _check_columns(header: Sequence[str], where: str) -> None:
    missing = [name for name in ("instance", "camera", "path") if name not in header]
    unknown = [name for name in header if name not in (*_KNOWN, *_OFFSETS)]
    if missing or unknown:
        raise InputError(
            f"{where}: the first line must name instance, camera and path, and may name "
            f"{', '.join((*_KNOWN[3:], *_OFFSETS))}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; unknown: {', '.join(unknown)}" if unknown else "")
        )
    if set(_OFFSETS) <= set(header) or len(set(header)) < len(header):
        raise InputError(
            f"{where}: a column is given twice, perhaps under two names; take one of "
            f"{' and '.join(_OFFSETS)}: {', '.join(header)}"
        )


def _row(at: str, cells: Mapping[str, str]) -> VideoRow:
    split = cells.get("split") or "train"
    if empty := [name for name in ("instance", "camera", "path") if not cells[name]]:
        raise InputError(f"{at}: {', '.join(empty)} must not be empty")
    if split not in SPLITS:
        raise InputError(f"{at}: the split is {split!r}, not one of {', '.join(SPLITS)}")
    seconds = cells.get("offset_seconds", "")
    return VideoRow(
        path=str(PurePosixPath(cells["path"])),
        label=cells.get("class", ""),
        split=split,
        group=cells["instance"],
        instance=cells["instance"],
        camera=cells["camera"],
        start=_number(at, cells, "start_frame", lowest=0) or 0,
        length=_number(at, cells, "n_frames", lowest=1),
        offset=None if seconds else _number(at, cells, "offset_frames") or 0,
        offset_seconds=_finite(at, "offset_seconds", seconds) if seconds else None,
    )


def _number(at: str, cells: Mapping[str, str], name: str, lowest: int | None = None) -> int | None:
    """A whole number, `12` or `12.0` as tables write it; None where the cell is empty."""
    text = cells.get(name, "")
    if not text:
        return None
    value = _finite(at, name, text)
    if value != int(value) or (lowest is not None and value < lowest):
        least = "" if lowest is None else f" of at least {lowest}"
        raise InputError(f"{at}: {name} must be a whole number{least}, not {text!r}")
    return int(value)


def _finite(at: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{at}: {name} must be a number, not {text!r}")
    return value
