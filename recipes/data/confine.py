"""Which listed paths may be opened: regular files below the root, and nothing else."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

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
    refused, folders = {}, defaultdict(list)
    for path in paths:
        if reason := _wrong_text(root, path):
            refused[path] = reason
        else:
            folders[str(PurePosixPath(path).parent)].append(path)
    for folder, listed in folders.items():
        refused.update(_refused_in(root, folder, listed, follow_links))
    return refused


def _wrong_text(root: Path, path: str) -> str:
    if not path or _CONTROL.search(path):
        return "the path is empty or has control characters"
    if _SCHEME.match(path):
        return "the path looks like a URL or protocol (a colon before the first blank; rename it)"
    pure = PurePosixPath(path)
    if pure.is_absolute() or path.startswith("~") or ".." in pure.parts:
        return "the path leaves the root (write it relative to the root, without ..)"
    name_bytes = max((len(os.fsencode(part)) for part in pure.parts), default=0)
    if name_bytes > _NAME_BYTES or len(os.fsencode(root / path)) > _PATH_BYTES:
        return "the path is too long for the file system"
    return ""


def _refused_in(
    root: Path, folder: str, paths: list[str], follow_links: bool
) -> Iterable[tuple[str, str]]:
    """The paths of one folder that are refused, with the reason."""
    top, parent = os.path.realpath(root), root / folder
    if not follow_links and not is_inside(top, os.path.realpath(parent)):
        yield from ((path, _ESCAPES) for path in paths)
        return
    try:
        with os.scandir(parent) as scanned:
            entries = {entry.name: entry for entry in scanned}
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        reason = f"its folder cannot be read ({error.strerror or error})"
        yield from ((path, reason) for path in paths)
        return
    for path in paths:
        name = PurePosixPath(path).name
        reason = _refused_entry(top, entries.get(name), follow_links) if name else "is a folder"
        if reason:
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
