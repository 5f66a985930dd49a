"""What a data set says it consists of, before any video is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from recipes.contract import InputError

SPLITS = ("train", "test", "val", "unused")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.,-]*:")


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """One listed video: `path` relative to the root; an empty label means unlabeled.

    `group` names what must not be divided by a split (one source video, one scene). `folds` are the
    official splits 1 to 3 where there are such; `split` then is the first.

    Multi-camera data sets have the rest, for all rows or for none: several cameras film one
    instance, and frame `start + offset + t` of each file shows its moment t, where `offset` may be
    negative. `offset_seconds`, given instead of `offset`, is turned into frames with the fps the
    index finds. `length` counts the frames from `start` on that belong to the instance; None is all.
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
    """Sort rows by path; classes default to the labels in alphabetical order.

    Raises:
        InputError: nothing is listed, a path is listed twice, or a label is not among the classes.
    """
    if not rows:
        raise InputError(f"{root}: no videos found; check root and the names of the lists")
    ordered = sorted(rows, key=lambda row: row.path)
    for first, second in pairwise(ordered):
        if first.path == second.path:
            raise InputError(f"{root}: {first.path} is listed twice")
    labels = {row.label for row in rows if row.label}
    if classes is None:
        classes = sorted(labels)
    elif unknown := sorted(labels - set(classes)):
        raise InputError(f"{root}: labels without a class: {', '.join(unknown[:5])}")
    return Listing(root=root, rows=tuple(ordered), classes=tuple(classes))


def refusal(root: Path, path: str, follow_links: bool) -> str:
    """Why a listed path must not be opened, or "" where it may.

    A decoder takes URLs and protocol strings for files and follows links; a list must not reach
    anything outside its root.
    """
    if not path or any(ord(character) < 32 for character in path):
        return "the path is empty or has control characters"
    if _SCHEME.match(path):
        return "the path looks like a URL or protocol"
    if Path(path).is_absolute() or ".." in Path(path).parts or path.startswith("~"):
        return "the path leaves the root"
    if not follow_links:
        resolved = (root / path).resolve()
        if not resolved.is_relative_to(root.resolve()):
            return "a link leads out of the root (allow it with follow_links: true)"
    return ""


def find_files(root: Path, keep: Callable[[str], bool], follow_links: bool) -> Iterator[str]:
    """Paths relative to `root` of the files whose name passes `keep`; hidden ones are left out.

    Raises:
        InputError: `root` is not a folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    for folder, folders, files in os.walk(root, followlinks=follow_links):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(folder).relative_to(root)
        for name in sorted(files):
            if not name.startswith(".") and keep(name):
                yield (base / name).as_posix()


def read_list(path: Path) -> str:
    """The text of a list file; UTF-8 with or without byte-order mark, any line ends.

    Raises:
        InputError: it is missing or not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
