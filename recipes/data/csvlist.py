"""Lists the videos of a csv file, or of a list with other delimiters and no header."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from recipes.contract import InputError
from recipes.data.config import CsvData, expand
from recipes.data.listing import (
    SPLITS,
    Listing,
    VideoRow,
    check_folder,
    make_listing,
    read_csv,
    read_list,
)

log = logging.getLogger(__name__)

_OURS = ("path", "label", "split", "group")
_READ_OVER = ("n_frames", "-")
# What other tools call our columns; reading over them would leave videos unlabeled or unsplit.
_MEANT = {
    **dict.fromkeys(("file", "filename", "filepath", "video", "name"), "path"),
    **dict.fromkeys(("class", "category", "action", "target"), "label"),
    **dict.fromkeys(("subset", "partition", "fold"), "split"),
}

Cells = Iterator[tuple[str, dict[str, str]]]


def scan(config: CsvData, output_dir: Path, workers: int = 1) -> Listing:
    """List the rows of the list or lists; nothing is written.

    Raises:
        InputError: a file is missing, has no column `path`, or a row is wrong; with its line.
    """
    root = expand(config.file).parent if config.root is None else expand(config.root)
    check_folder(root)
    rows: list[VideoRow] = []
    for split, source in config.files().items():
        rows += parse(read_list(source), str(source), config, split)
    return make_listing(root, rows)


def parse(text: str, where: str, config: CsvData, split: str = "train") -> list[VideoRow]:
    """The rows of one list; `where` names it in errors, `split` is that of rows without one."""
    rows = [_row(at, cells, split, config.suffix) for at, cells in _cells(text, where, config)]
    if not rows:
        raise InputError(f"{where}: lists no videos")
    return rows


def _cells(text: str, where: str, config: CsvData) -> Cells:
    """Place and cells by column of each line, whatever the delimiter and with or without header."""
    if config.delimiter == " ":
        lines = [
            (f"{where}, line {number}", line.strip())
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
        header: Sequence[str] = config.columns or (lines.pop(0)[1].split() if lines else [])
        _check_names(header, where)
        return ((at, _by_blanks(at, line, header)) for at, line in lines)
    if config.columns is None:
        first = "".join(text.splitlines()[:1]).split(config.delimiter)
        _check_names([name.strip().strip('"') for name in first if name], where)
    return read_csv(text, where, ["path"], config.delimiter, config.columns)


def _by_blanks(at: str, line: str, columns: Sequence[str]) -> dict[str, str]:
    """Cells of a line without quotes; surplus blanks belong to the path."""
    place = columns.index("path")
    before, after = place, len(columns) - place - 1
    start = line.split(maxsplit=before)
    end = start[-1].rsplit(maxsplit=after) if len(start) == before + 1 else []
    if len(end) != after + 1:
        raise InputError(f"{at}: expected {' '.join(columns)}, found {line!r}")
    return dict(zip(columns, [*start[:-1], *end], strict=True))


def _check_names(header: Sequence[str], where: str) -> None:
    """Refuse names that are probably meant to be ours; tell of others that are read over."""
    others = [name for name in header if name not in (*_OURS, *_READ_OVER)]
    absent = [name for name in _OURS if name not in header]
    for name in others:
        near = get_close_matches(name.lower(), absent, n=1, cutoff=0.75)
        meant = _MEANT.get(name.lower(), near[0] if near else "")
        if meant in absent:
            raise InputError(
                f"{where}: the column {name!r} is unknown; if it is meant as {meant!r}, call it so "
                f"(known: {', '.join(_OURS)})"
            )
    if "path" not in header:
        raise InputError(
            f"{where}: the first line must name the columns, path among them, and label, split, "
            f"group as there are; found: {', '.join(header) or 'an empty file'}. For a list "
            "without such a line set `columns`, for another delimiter `delimiter`"
        )
    if others:
        log.warning("%s: columns not used: %s", where, ", ".join(others))


def _row(at: str, cells: dict[str, str], default: str, suffix: str) -> VideoRow:
    split = cells.get("split") or default
    if not cells["path"] or split not in SPLITS:
        raise InputError(
            f"{at}: expected a path and a split out of {', '.join(SPLITS)}; found "
            f"{', '.join(f'{name}={value!r}' for name, value in cells.items())}"
        )
    path = str(PurePosixPath(cells["path"])) + suffix
    return VideoRow(
        path=path, label=cells.get("label", ""), split=split, group=cells.get("group") or path
    )
