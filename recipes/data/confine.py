"""Which listed paths may be opened: regular files below the root, and nothing else."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from recipes.data.listing import is_inside

# FFmpeg takes whatever begins like this for a protocol: `http:`, `concat:`, `subfile,,start,0,:`.
_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.,-]*:")
# C0 and C1 control characters, line and paragraph separators, what is no Unicode.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NAME_BYTES, _PATH_BYTES = 255, 4095  # Linux NAME_MAX and PATH_MAX without the final zero

_ESCAPES = "a link leads out of the root (allow it with follow_links: true)"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def refusals(root: Path, paths: Iterable[str], follow_links: bool) -> dict[str, str]:
    """Why listed paths must not be opened; paths that may, and missing ones, are left out.

    A decoder takes URLs and protocol strings for files, follows links and reads devices; a list
    must not reach anything outside its root. Each folder is scanned once instead of each file.
    """
    refused: dict[str, str] = {}
    folders: dict[str, list[tuple[str, str]]] = defaultdict(list)
    room = _PATH_BYTES - len(os.fsencode(root)) - 1
    for path in paths:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if reason := _wrong_text(path, parts, room):
            refused[path] = reason
        else:
            folders["/".join(parts[:-1])].append((path, parts[-1]))
    for folder, listed in folders.items():
        refused.update(_refused_in(root, folder, listed, follow_links))
    return refused


def _wrong_text(path: str, parts: list[str], room: int) -> str:
    """What is wrong with the text of a path; `room` is how many bytes it may have."""
    if not path or _CONTROL.search(path):
        return "the path is empty or has control characters"
    if _SCHEME.match(path):
        return "the path looks like a URL or protocol (a colon before the first blank; rename it)"
    if path.startswith(("/", "~")) or ".." in parts:
        return "the path leaves the root (write it relative to the root, without ..)"
    if not parts:
        return "is a folder"
    size = len(path.encode())
    if size > room or (size > _NAME_BYTES and max(len(p.encode()) for p in parts) > _NAME_BYTES):
        return "the path is too long for the file system"
    return ""


def _refused_in(
    root: Path, folder: str, listed: list[tuple[str, str]], follow_links: bool
) -> Iterator[tuple[str, str]]:
    """Those of the listed (path, name) in one folder that are refused, with the reason."""
    top, parent = os.path.realpath(root), root / folder
    if not follow_links and not is_inside(top, os.path.realpath(parent)):
        yield from ((path, _ESCAPES) for path, _ in listed)
        return
    try:
        with os.scandir(parent) as scanned:
            entries = {entry.name: entry for entry in scanned}
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        reason = f"its folder cannot be read ({error.strerror or error})"
        yield from ((path, reason) for path, _ in listed)
        return
    for path, name in listed:
        if reason := _refused_entry(top, entries.get(name), follow_links):
            yield path, reason


def _refused_entry(top: str, entry: os.DirEntry[str] | None, follow_links: bool) -> str:
    if entry is None or entry.is_file(follow_symlinks=False):
        return ""
    outside = entry.is_symlink() and not is_inside(top, os.path.realpath(entry.path))
    if outside and not follow_links:
        return _ESCAPES
    try:
        mode = entry.stat().st_mode
    except OSError:
        return ""  # a link to nothing: missing, as the probe will say
    return "" if stat.S_ISREG(mode) else f"is {_KINDS.get(stat.S_IFMT(mode), 'no file')}"
