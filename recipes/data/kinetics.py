"""Matches the csv lists of Kinetics-400, -600 and -700 with the files of a copy."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from recipes.contract import InputError
from recipes.data.config import KineticsData, expand
from recipes.data.listing import (
    Listing,
    VideoRow,
    find_files,
    make_listing,
    none_found,
    read_csv,
    read_list,
)

log = logging.getLogger(__name__)

_NEEDED = ("youtube_id", "time_start", "time_end")


class Segment(NamedTuple):
    """One line of a list: seconds `start` to `end` of a YouTube video; label "" if withheld."""

    label: str
    youtube_id: str
    start: int
    end: int
    part: str


def scan(config: KineticsData, output_dir: Path, workers: int = 1) -> Listing:
    """List the segments with the files that hold them; a missing one keeps its expected path.

    Raises:
        InputError: a list is missing or not such a csv, or all videos are missing.
    """
    root = expand(config.root)
    videos = root / Path(config.videos).expanduser()
    segments: dict[Segment, str] = {}
    # The test list goes first: a segment that is in both lists must not be trained on.
    for split, name in (("test", config.test_list), ("train", config.train_list)):
        if name is not None:
            file = root / Path(name).expanduser()
            _add(segments, parse(read_list(file), str(file)), split, str(file))
    endings = tuple(ending.lower() for ending in config.extensions)
    names = find_files(videos, lambda name: name.lower().endswith(endings), config.follow_links)
    found = match(list(segments), index_files(names))
    if not found:
        segment, split = next(iter(segments.items()))
        example = _expected(segment, split, config.extensions[0])
        raise none_found(videos, len(segments), example, names)
    rows = [
        VideoRow(
            path=found.get(segment) or _expected(segment, split, config.extensions[0]),
            label=segment.label,
            split=split,
            group=segment.youtube_id,
        )
        for segment, split in segments.items()
    ]
    log.info("%s: %d of %d listed segments have a file", videos, len(found), len(rows))
    return make_listing(videos, rows)


def parse(text: str, where: str) -> list[Segment]:
    """Segments of a csv with label (may be absent), youtube_id, time_start, time_end, split."""
    segments = []
    for at, cells in read_csv(text, where, _NEEDED):
        try:
            start, end = (round(float(cells[name])) for name in _NEEDED[1:])
        except (ValueError, OverflowError) as error:
            raise InputError(f"{at}: times must be seconds ({error})") from error
        if not cells["youtube_id"]:
            raise InputError(f"{at}: the youtube_id is empty")
        label, part = cells.get("label", ""), cells.get("split", "")
        segments.append(Segment(label, cells["youtube_id"], start, end, part))
    return segments


def index_files(paths: Iterable[str]) -> Mapping[str, list[str]]:
    """Paths by file name, where it is `<id>_<start>_<end>` also by that without leading zeros.

    Ids may contain underscores, so names are split from the right.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        stem = path.rpartition("/")[2].rpartition(".")[0]
        found.setdefault(stem, []).append(path)
        parts = stem.rsplit("_", 2)
        if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
            plain = f"{parts[0]}_{int(parts[1])}_{int(parts[2])}"
            if plain != stem:
                found.setdefault(plain, []).append(path)
    return found


def match(segments: Sequence[Segment], files: Mapping[str, Sequence[str]]) -> dict[Segment, str]:
    """The file of each segment that has one.

    Where several files fit (copies hold replacements beside the originals), one in a folder named
    like the class or the part is taken, then the first in the alphabet. `<id>.mp4` stands for the
    only segment of its video; with more of them nobody knows which it is.
    """
    of_video = Counter(segment.youtube_id for segment in segments)
    found = {}
    for segment in segments:
        fitting = files.get(f"{segment.youtube_id}_{segment.start}_{segment.end}", ())
        if not fitting and of_video[segment.youtube_id] == 1:
            fitting = files.get(segment.youtube_id, ())
        if len(fitting) == 1:
            found[segment] = fitting[0]
        elif fitting:
            found[segment] = min(fitting, key=lambda path: (-_likeness(path, segment), path))
    return found


def _add(segments: dict[Segment, str], more: Sequence[Segment], split: str, where: str) -> None:
    """Take over the segments that are not known yet, and tell how many were."""
    known = {segment[1:4] for segment in segments}
    again = 0
    for segment in more:
        if segment[1:4] in known:
            again += 1
        else:
            known.add(segment[1:4])
            segments[segment] = split
    if not more:
        raise InputError(f"{where}: lists no videos")
    if again:
        log.warning("%s: %d segments are listed before and left out", where, again)


def _likeness(path: str, segment: Segment) -> int:
    """How many of a path's folders are named like the segment's class or part."""
    wanted = {segment.part, segment.label, segment.label.replace(" ", "_")}
    return len(wanted & set(PurePosixPath(path).parts[:-1]))


def _expected(segment: Segment, split: str, ending: str) -> str:
    """Where a missing file would lie, for the report of what is missing."""
    name = f"{segment.youtube_id}_{segment.start:06d}_{segment.end:06d}{ending}"
    return "/".join(part for part in (segment.part or split, segment.label, name) if part)
