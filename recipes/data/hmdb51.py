"""Reads the official split files of HMDB51 (Kuehne et al. 2011)."""

from __future__ import annotations

from pathlib import Path

from recipes.contract import InputError
from recipes.data.config import VIDEO_ENDINGS, HMDB51Data, expand
from recipes.data.listing import Listing, VideoRow, find_files, locate, make_listing, read_list

_ENDINGS = tuple(f"_test_split{number}.txt" for number in (1, 2, 3))
_MEANING = {"0": "unused", "1": "train", "2": "test"}


def scan(config: HMDB51Data, output_dir: Path, workers: int = 1) -> Listing:
    """List the videos of the three splits; nothing is written.

    Raises:
        InputError: the lists are missing or incomplete, or the videos are missing.
    """
    root = expand(config.root)
    rows = parse(root / Path(config.lists).expanduser())
    videos = root / Path(config.videos).expanduser()
    files = find_files(videos, lambda n: n.lower().endswith(VIDEO_ENDINGS), config.follow_links)
    return make_listing(videos, locate(rows, files, videos))


def parse(folder: Path) -> list[VideoRow]:
    """One row for each video of any split file; names are opaque (they contain brackets and more).

    There is no official class order; ids follow the alphabet.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror or error}); do `root` and `lists` fit?"
        ) from error
    labels = sorted({name[: -len(_ENDINGS[0])] for name in names if name.endswith(_ENDINGS)})
    if not labels:
        raise InputError(f"{folder}: no files <class>{_ENDINGS[0]}")
    rows = []
    for label in labels:
        marks = [_marks(folder / f"{label}{ending}") for ending in _ENDINGS]
        for name in sorted(set().union(*marks)):
            first, second, third = (mark.get(name, "unused") for mark in marks)
            rows.append(
                VideoRow(
                    path=f"{label}/{name}",
                    label=label,
                    split=first,
                    group=f"{label}/{name.rpartition(f'_{label}_')[0] or name}",
                    folds=(first, second, third),
                )
            )
    return rows


def _marks(file: Path) -> dict[str, str]:
    marks: dict[str, str] = {}
    for line in filter(None, map(str.strip, read_list(file).splitlines())):
        name, _, mark = line.rpartition(" ")
        name = name.strip()
        if mark not in _MEANING or not name:
            raise InputError(f"{file}: expected `name.avi 0`, 1 or 2, found {line!r}")
        if marks.setdefault(name, _MEANING[mark]) != _MEANING[mark]:
            raise InputError(f"{file}: {name} is listed twice, with different marks")
    return marks
