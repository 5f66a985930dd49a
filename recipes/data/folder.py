"""Lists a folder with one subfolder per class."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path, PurePosixPath

from recipes.contract import InputError
from recipes.data.config import FolderData, expand
from recipes.data.listing import Listing, VideoRow, find_files, make_listing


def scan(config: FolderData, output_dir: Path, workers: int = 1) -> Listing:
    """List the videos below the root; nothing is written.

    Raises:
        InputError: the folder is missing, empty or has a linked folder that must not be entered, or
            `group` does not match a path.
    """
    root = expand(config.root)
    endings = tuple(ending.lower() for ending in config.extensions)
    others: Counter[str] = Counter()

    def keep(name: str) -> bool:
        wanted = name.lower().endswith(endings)
        if not wanted:
            others[PurePosixPath(name).suffix.lower() or "no ending"] += 1
        return wanted

    def refuse(link: str) -> None:
        raise InputError(
            f"{root}: the folder {link} is a link that leads out of the root; its videos are read "
            "with `follow_links: true` only"
        )

    names = find_files(root, keep, config.follow_links, refuse)
    if not names:
        seen = ", ".join(f"{count}x {ending}" for ending, count in others.most_common(5))
        raise InputError(
            f"{root}: no videos found; there are {seen or 'no files at all'}. Videos end in "
            f"{' '.join(endings)} (set `extensions`)"
        )
    return make_listing(root, [_row(path, config) for path in names])


def hash_split(group: str, test_share: float) -> str:
    """`test` for about `test_share` of all groups, by a hash of the name alone."""
    digest = hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest()
    return "test" if int.from_bytes(digest[:8], "big") / 2**64 < test_share else "train"


def _row(path: str, config: FolderData) -> VideoRow:
    folders = PurePosixPath(path).parts[:-1]
    group = _group(path, config.group)
    if config.split == "subfolders":
        if not folders or folders[0] not in ("train", "test", "val"):
            raise InputError(
                f"{config.root}: {path} is not below train/, test/ or val/; move it, or "
                "let a hash divide the videos (split: hash)"
            )
        return VideoRow(path=path, label="/".join(folders[1:2]), split=folders[0], group=group)
    split = hash_split(group, config.test_share)
    return VideoRow(path=path, label="/".join(folders[:1]), split=split, group=group)


def _group(path: str, pattern: str | None) -> str:
    if pattern is None:
        return path
    match = re.search(pattern, path)
    if match is None or match.group(1) is None:
        raise InputError(f"{path}: the group pattern {pattern!r} does not match")
    return match.group(1)
