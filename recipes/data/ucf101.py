"""Reads the official lists of UCF101 (Soomro et al. 2012)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from recipes.contract import InputError
from recipes.data.config import UCF101Data, expand
from recipes.data.listing import Listing, VideoRow, make_listing, read_list

_GROUP = re.compile(r"_(g\d+)_c\d+\.[^.]+$")


def scan(config: UCF101Data, output_dir: Path, workers: int = 1) -> Listing:
    """List the videos of the three splits; nothing is written.

    Raises:
        InputError: a list is missing or contradicts the class index or another list.
    """
    root = expand(config.root)
    classes, rows = parse(root / Path(config.lists).expanduser())
    return make_listing(root / Path(config.videos).expanduser(), rows, classes)


def parse(folder: Path) -> tuple[tuple[str, ...], list[VideoRow]]:
    """Class names in the order of their ids, and one row for each video of any split.

    The label is the folder's name: `HandstandPushups` holds files named `v_HandStandPushups_...`.
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
    if [pair[0] for pair in pairs] != [str(number + 1) for number in range(len(pairs))]:
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
    return [line.strip() for line in read_list(file).splitlines() if line.strip()]


def _row(path: str, marks: list[str]) -> VideoRow:
    label = path.partition("/")[0]
    match = _GROUP.search(path)
    group = f"{label}_{match.group(1)}" if match else path
    first, second, third = marks
    return VideoRow(path=path, label=label, split=first, group=group, folds=(first, second, third))
