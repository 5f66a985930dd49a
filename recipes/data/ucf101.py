"""Reads the official lists of UCF101 (Soomro et al. 2012)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from recipes.contract import InputError
from recipes.data.config import VIDEO_ENDINGS, UCF101Data, expand
from recipes.data.listing import Listing, VideoRow, find_files, locate, make_listing, read_list

_GROUP = re.compile(r"_(g\d+)_c\d+\.[^.]+$")


def scan(config: UCF101Data, output_dir: Path, workers: int = 1) -> Listing:
    """List the videos of the three splits; nothing is written.

    Raises:
        InputError: a list is missing or contradicts the class index or another list, or the videos
            are missing.
    """
    root = expand(config.root)
    classes, rows = parse(root / Path(config.lists).expanduser())
    videos = root / Path(config.videos).expanduser()
    files = find_files(videos, lambda n: n.lower().endswith(VIDEO_ENDINGS), config.follow_links)
    return make_listing(videos, locate(rows, files, videos), classes)


def parse(folder: Path) -> tuple[tuple[str, ...], list[VideoRow]]:
    """Class names in the order of their ids, and one row for each video of any split.

    The label is the folder of the list: `HandstandPushups` for files `v_HandStandPushups_...`.
    """
    classes = _classes(folder / "classInd.txt")
    folds: dict[str, list[str]] = {}
    for fold in range(3):
        for split in ("train", "test"):
            file = folder / f"{split}list0{fold + 1}.txt"
            for path in _paths(file, classes):
                marks = folds.setdefault(path, ["unused"] * 3)
                if marks[fold] != "unused":
                    raise InputError(f"{file}: {path} is listed twice in split {fold + 1}")
                marks[fold] = split
    return classes, [_row(path, marks) for path, marks in folds.items()]


def _classes(file: Path) -> tuple[str, ...]:
    pairs = [line.split() for line in _lines(file)]
    expected = [str(number + 1) for number in range(len(pairs))]
    if [pair[:-1] for pair in pairs] != [[number] for number in expected]:
        raise InputError(f"{file}: expected lines `1 Name`, `2 Name`, ... in order")
    return tuple(pair[1] for pair in pairs)


def _paths(file: Path, classes: tuple[str, ...]) -> Iterable[str]:
    """Paths of one list; training lists also have the id from 1, which must agree."""
    ids = {name: str(number + 1) for number, name in enumerate(classes)}
    for line in _lines(file):
        path, *label_id = line.rsplit(maxsplit=1)
        folder = path.partition("/")[0]
        if folder not in ids or label_id not in ([], [ids[folder]]):
            raise InputError(f"{file}: {line!r} does not agree with classInd.txt")
        yield path


def _lines(file: Path) -> list[str]:
    lines = [line.strip() for line in read_list(file).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{file}: is empty")
    return lines


def _row(path: str, marks: list[str]) -> VideoRow:
    label = path.partition("/")[0]
    match = _GROUP.search(path)
    group = f"{label}_{match.group(1)}" if match else path
    first, second, third = marks
    return VideoRow(path=path, label=label, split=first, group=group, folds=(first, second, third))
