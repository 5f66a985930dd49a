"""What a data set says it consists of, before any video is opened."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from recipes.contract import InputError

SPLITS = ("train", "test", "val", "unused")


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """One listed video: `path` relative to the root; an empty label means unlabeled.

    `group` names what must not be divided by a split (one source video, one scene). `folds` are the
    official splits 1 to 3 where there are such; `split` then is the first.

    Multi-camera data sets have the rest, for all rows or for none: several cameras film one
    instance, and frame `start + offset + t` of each file shows its moment t, where `offset` may be
    negative. `offset_seconds`, given instead of `offset`, is turned into frames with the fps the
    index finds. `length` counts the frames of the instance from `start` on; None means all.
    """

    path: str
    label: str = ""
    split: str = "train"
    group: str = ""
    folds: tuple[str, str, str] | None = None
    instance: str | None = None
    camera: str | None = None
    start: int | None = None
    length: int | None = None
    offset: int | None = None
    offset_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All listed videos, in a fixed order, and the class names in the order of their ids."""

    root: Path
    rows: tuple[VideoRow, ...]
    classes: tuple[str, ...]


def make_listing(
    root: Path, rows: Sequence[VideoRow], classes: Sequence[str] | None = None
) -> Listing:
    """Sort rows by path; classes default to the labels in alphabetical order, numbers by value.

    Raises:
        InputError: nothing is listed, a path is listed twice (at the same start), is not UTF-8, or
            a label is not among the classes.
    """
    if not rows:
        raise InputError(f"{root}: no videos are listed")
    ordered = sorted(rows, key=lambda row: (row.path, row.start or 0))
    for first, second in pairwise(ordered):
        if (first.path, first.start) == (second.path, second.start):
            raise InputError(
                f"{root}: {first.path} is listed twice (as {_shown(first)} and {_shown(second)}); "
                "remove one line"
            )
    if foreign := [row.path for row in rows if not _is_unicode(row.path)]:
        raise InputError(
            f"{root}: {len(foreign)} file names are not UTF-8 and fit into no table (first: "
            f"{foreign[0]!r}); rename them, for instance with `convmv -f latin1 -t utf8`"
        )
    labels = {row.label for row in rows if row.label}
    if classes is None:
        numbers = all(label.isdecimal() for label in labels)
        classes = sorted(labels, key=lambda label: (int(label) if numbers else 0, label))
    elif unknown := sorted(labels - set(classes)):
        raise InputError(f"{root}: labels without a class: {', '.join(unknown[:5])}")
    return Listing(root=root, rows=tuple(ordered), classes=tuple(classes))


def find_files(
    root: Path,
    keep: Callable[[str], bool],
    follow_links: bool,
    on_link: Callable[[str], None] | None = None,
) -> list[str]:
    """Sorted paths relative to `root` of the entries whose name passes `keep`; no hidden ones.

    Folders are scanned, files never looked at: 240,000 of them are listed in a second. A link to a
    folder outside of `root` is not entered unless `follow_links`; `on_link` is told of it.

    Raises:
        InputError: `root` is not a folder, or a folder in it cannot be read.
    """
    check_folder(root)
    top = os.path.realpath(root)
    found: list[str] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [("", ())]
    while waiting:
        base, passed = waiting.pop()
        for entry in scan_folder(root / base):
            path = f"{base}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append((f"{path}/", passed))
            elif entry.is_symlink() and Path(entry.path).is_dir():
                target = os.path.realpath(entry.path)
                if not follow_links and on_link and not is_inside(top, target):
                    on_link(path)
                if follow_links and not _returns(target, entry.path, passed):
                    waiting.append((f"{path}/", (*passed, target)))
            elif keep(entry.name):
                found.append(path)
    return sorted(found)


def locate(rows: Sequence[VideoRow], files: Sequence[str], root: Path) -> list[VideoRow]:
    """Rows with their paths as the files are called; what is not found keeps the listed path.

    For data sets whose file names are unique: copies differ in the case of letters
    (`HandStandPushups`), in the ending (re-encoded), or lie in other folders. Where several files
    fit, the listed folder goes first, then the alphabet.

    Raises:
        InputError: none of the listed videos is there.
    """
    exact, named = set(files), dict[str, list[str]]()
    for path in files:
        named.setdefault(PurePosixPath(path).stem.casefold(), []).append(path)
    if not any(PurePosixPath(row.path).stem.casefold() in named for row in rows):
        raise none_found(root, len(rows), rows[0].path, files)

    def found(path: str) -> str:
        folder, _, name = path.casefold().rpartition("/")
        fitting = named.get(PurePosixPath(name).stem, [path])
        near = [one for one in fitting if one.casefold().rpartition("/")[0] == folder]
        return path if path in exact else min(near or fitting)

    return [replace(row, path=found(row.path)) for row in rows]


def none_found(root: Path, listed: int, example: str, files: Sequence[str]) -> InputError:
    """The error for a folder that has none of the videos of its lists."""
    there = f"{len(files)} others, such as {files[0]}" if files else "no videos at all"
    return InputError(
        f"{root}: none of the {listed} listed videos is there (one is {example}); there are "
        f"{there}. Check `root` and `videos` of the data set"
    )


def check_folder(root: Path) -> None:
    """Raise InputError where `root` is not a folder."""
    if root.is_dir():
        return
    found = "is a file, not a folder" if root.exists() else "no such folder"
    raise InputError(f"{root}: {found}; is `root` of the data set right?")


def scan_folder(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of one folder.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror or error})") from error


def is_inside(top: str, path: str) -> bool:
    """Whether a resolved path is the resolved folder `top` or below it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def read_list(path: Path) -> str:
    """The text of a list file; UTF-8 with or without byte-order mark, any line ends.

    Raises:
        InputError: it is missing or not such text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); do the data set's paths fit?"
        ) from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(
            f"{path}: is UTF-16, not UTF-8; convert it: `iconv -f UTF-16 -t UTF-8 OLD > NEW`"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: is not UTF-8 ({data[error.start : error.end]!r}); convert the "
            "file, for instance `iconv -f LATIN1 -t UTF-8 OLD > NEW`"
        ) from error


def read_csv(
    text: str,
    where: str,
    needed: Sequence[str],
    delimiter: str = ",",
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line as `<where>, line N` and its cells by column, without blanks around them.

    The first line is the header unless `columns` stand for it.

    Raises:
        InputError: a needed column is missing, a line has more cells than the header, or quotes
            are not closed.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        if columns is None:
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, where, needed, delimiter)
        else:
            header = list(columns)
        for cells in reader:
            at = f"{where}, line {reader.line_num}"
            if len(cells) > len(header):
                raise InputError(
                    f"{at}: {len(cells)} cells for the columns {', '.join(header)}; put a cell "
                    f"that contains {delimiter!r} into quotes"
                )
            if any(cell.strip() for cell in cells):
                cells += [""] * (len(header) - len(cells))
                yield at, {k: v.strip() for k, v in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise InputError(
            f"{where}, line {reader.line_num}: {error}; are all quotes closed?"
        ) from error


def _check_header(header: list[str], where: str, needed: Sequence[str], delimiter: str) -> None:
    if missing := [name for name in needed if name not in header]:
        found = ", ".join(header) or "an empty file"
        hint = next((mark for mark in ";\t|," if len(header) == 1 and mark in header[0]), None)
        raise InputError(
            f"{where}: the first line must name the columns; missing: {', '.join(missing)}; "
            f"found: {found}" + (f". Is the delimiter {hint!r}?" if hint else "")
        )
    if len(set(header)) < len(header):
        raise InputError(f"{where}: a column is named twice: {', '.join(header)}")


def _returns(target: str, link: str, passed: tuple[str, ...]) -> bool:
    """Whether following a link leads back to a folder on the way to it."""
    return target in passed or is_inside(target, os.path.realpath(Path(link).parent))


def _is_unicode(path: str) -> bool:
    return path.isascii() or not any("\ud800" <= character <= "\udfff" for character in path)


def _shown(row: VideoRow) -> str:
    return f"{row.label or 'unlabeled'}, {row.split}"
