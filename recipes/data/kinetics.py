"""Matches the csv lists of Kinetics-400, -600 and -700 with the files of a copy."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from recipes.contract import InputError
from recipes.data.config import KineticsData, expand
from recipes.data.listing import Listing, VideoRow, find_files, make_listing, read_list


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
        InputError: a list is missing or not such a csv, or the folder of the videos is missing.
    """
    root = expand(config.root)
    videos = root / Path(config.videos).expanduser()
    endings = tuple(ending.lower() for ending in config.extensions)
    names = find_files(videos, lambda name: name.lower().endswith(endings), config.follow_links)
    files = index_files(names)
    rows = []
    for split, name in (("train", config.train_list), ("test", config.test_list)):
        if name is not None:
            file = root / Path(name).expanduser()
            for segment in parse(read_list(file), str(file)):
                rows.append(_row(segment, split, files, config.extensions[0]))
    return make_listing(videos, rows)


def parse(text: str, where: str) -> list[Segment]:
    """Segments of a csv with label (may be absent), youtube_id, time_start, time_end, split."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    needed = ("youtube_id", "time_start", "time_end")
    if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
        raise InputError(f"{where}: the header lacks {', '.join(missing)}")
    segments = []
    for raw in reader:
        try:
            start, end = (round(float(raw[name])) for name in needed[1:])
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}, line {reader.line_num}: {error}") from error
        part = raw.get("split") or ""
        segments.append(Segment(raw.get("label") or "", raw["youtube_id"], start, end, part))
    return segments


def index_files(paths: Iterable[str]) -> Mapping[str, str]:
    """Paths by `<id>_<start>_<end>` without leading zeros, or by `<id>` where a name has no times.

    Ids may contain underscores, so names are split from the right.
    """
    found: dict[str, str] = {}
    for path in paths:
        stem = PurePosixPath(path).stem
        parts = stem.rsplit("_", 2)
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            stem = f"{parts[0]}_{int(parts[1])}_{int(parts[2])}"
        found.setdefault(stem, path)
    return found


def _row(segment: Segment, split: str, files: Mapping[str, str], ending: str) -> VideoRow:
    name = f"{segment.youtube_id}_{segment.start:06d}_{segment.end:06d}{ending}"
    expected = "/".join(part for part in (segment.part or split, segment.label, name) if part)
    path = files.get(f"{segment.youtube_id}_{segment.start}_{segment.end}")
    path = path or files.get(segment.youtube_id) or expected
    return VideoRow(path=path, label=segment.label, split=split, group=segment.youtube_id)
