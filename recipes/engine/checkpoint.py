"""The commit protocol of checkpoints on disk: written aside, digested, renamed, verified; no torch.

A checkpoint is the folder `step_<n>` with `manifest.json`, which holds size and SHA-256 of every
other file. It is written as `step_<n>.tmp`, in which every rank leaves its file and a note of that
file's size and digest, and gets its name by one rename when all of it is on disk. It is deleted by
renaming it to `.deleted` first. So whatever has the plain name was complete, and what is damaged
afterwards is found by its digests.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import fsio
from recipes.contract import InputError
from recipes.engine import faults, shards

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
_READERS = 8  # files verified at a time
_NAME = re.compile(r"step_(\d{9})")
_LEFTOVER = re.compile(r"step_\d{9}\.(tmp|deleted)")
_SET_ASIDE = re.compile(r"step_\d{9}\.bad\d+")

log = logging.getLogger(__name__)


class DamagedCheckpoint(Exception):
    """A committed checkpoint is not what its manifest says; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A checkpoint that was verified, and the description given to `commit`."""

    step: int
    path: Path
    description: Mapping[str, Any]


def name_of(step: int) -> str:
    """Folder name of a committed checkpoint."""
    return f"step_{step:09d}"


def temporary_name_of(step: int) -> str:
    """Folder name while it is being written."""
    return f"{name_of(step)}.tmp"


def steps(directory: Path) -> list[int]:
    """Steps with a committed checkpoint, damaged or not, oldest first."""
    if not directory.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in directory.iterdir())
    return sorted(int(match.group(1)) for match in matches if match)


def begin(directory: Path, step: int) -> Path:
    """Make the empty temporary folder of a save; rank 0, before any rank writes."""
    fsio.make_dir(directory)
    folder = directory / temporary_name_of(step)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=fsio.PRIVATE_DIR)
    return folder


def note_written(folder: Path, rank: int, written: shards.Written) -> None:
    """Leave word for rank 0 that this rank's file is on disk, with its size and digest.

    Rank 0 reads it when it has heard of the end of the writing; it need not survive a power cut.
    """
    note = json.dumps(dataclasses.asdict(written))
    (folder / _note_name(rank)).write_text(note, encoding="utf-8")


def commit(
    directory: Path,
    step: int,
    description: Mapping[str, Any],
    *,
    ranks: int,
    keep: int,
    keep_every: int | None = None,
    save_number: int = 0,
    moved: Callable[[], None] = shards.unheard,
) -> Path:
    """List and rename a complete temporary folder, then delete what need not stay.

    By rank 0, after every rank has written its file and left word of it.

    Args:
        directory: where checkpoints lie.
        step: optimizer step it was taken after.
        description: plain JSON kept in the manifest beside step and files.
        ranks: that wrote.
        keep: committed checkpoints that stay.
        keep_every: those of multiples of this many steps stay for good.
        save_number: counts the saves of this process, for `faults`.
        moved: called behind every file and folder.

    Raises:
        OSError: it cannot be committed; nothing has been deleted.
    """
    folder = directory / temporary_name_of(step)
    manifest = {
        **description,
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "saved_at": time.time(),
        "files": _collect(folder, ranks, moved),
    }
    faults.hit("checkpoint.before_manifest", save_number)
    manifest["digest"] = _digest(manifest)
    fsio.write_json(folder / MANIFEST, manifest)  # flushes the folder as well
    faults.hit("checkpoint.before_rename", save_number)
    final = directory / name_of(step)
    if final.exists():  # one of the same step that was not the one resumed from
        _delete(final)
    faults.passage("checkpoint.rename")
    folder.rename(final)
    fsio.fsync_dir(directory)
    faults.hit("checkpoint.after_rename", save_number)
    try:
        prune(directory, keep, keep_every, moved)
    except OSError as error:  # the new one is committed all the same
        log.warning("%s: old checkpoints could not be deleted: %s", directory, error)
    return final


def prune(
    directory: Path,
    keep: int,
    keep_every: int | None = None,
    moved: Callable[[], None] = shards.unheard,
) -> None:
    """Delete all committed checkpoints but the newest `keep` and multiples of `keep_every`."""
    for step in steps(directory)[:-keep]:
        moved()
        if keep_every is None or step % keep_every:
            _delete(directory / name_of(step))


def abandon(directory: Path, step: int) -> None:
    """Remove what a save that failed has left."""
    shutil.rmtree(directory / temporary_name_of(step), ignore_errors=True)


def _note_name(rank: int) -> str:
    return f"shard_{rank:05d}.done.json"


def _collect(folder: Path, ranks: int, moved: Callable[[], None]) -> dict[str, dict[str, Any]]:
    """Sizes and digests as the ranks noted them; the notes go, the sizes must be true."""
    files = {}
    for rank in range(ranks):
        note = fsio.read_json(folder / _note_name(rank))
        size = (folder / note["name"]).stat().st_size
        if size != note["bytes"]:
            raise OSError(f"{folder / note['name']} has {size} bytes, written were {note['bytes']}")
        files[note["name"]] = {"bytes": note["bytes"], "sha256": note["sha256"]}
        moved()
    for rank in range(ranks):
        (folder / _note_name(rank)).unlink()
    return files


def sweep(directory: Path) -> None:
    """Remove what killed saves and deletions left; by rank 0, before anything is written."""
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if _LEFTOVER.fullmatch(path.name):
            log.info("removing %s, left by an interrupted save or deletion", path)
            try:
                shutil.rmtree(path)
            except OSError as error:  # it is in nobody's way, and the next attempt tries again
                log.warning("%s could not be removed: %s", path, error)


def newest(directory: Path) -> Committed | None:
    """The newest checkpoint that is whole; damaged ones are set aside and the one before is taken.

    Returns None only where none was ever committed.

    Raises:
        InputError: all are damaged, or one could have been changed by somebody else; starting again
            from step 0 is for the user to decide.
        OSError: the folder cannot be read now.
    """
    found = steps(directory)
    for step in reversed(found):
        folder = directory / name_of(step)
        refuse_foreign(directory, folder)
        try:
            return Committed(step=step, path=folder, description=verify(folder, step))
        except DamagedCheckpoint as damage:
            aside = _set_aside(folder)
            log.error("damaged checkpoint: %s; kept as %s, trying the one before", damage, aside)
    aside_names = _names_set_aside(directory)
    if aside_names:
        raise InputError(
            f"{directory}: every checkpoint is damaged ({', '.join(aside_names)}). To start again "
            "from step 0, delete this folder; nothing is restarted silently"
        )
    return None


def verify(folder: Path, step: int) -> dict[str, Any]:
    """Compare a committed folder with its manifest, file by file; returns the manifest.

    Raises:
        DamagedCheckpoint: a file is missing, too much, of another size or of other content.
        OSError: the files cannot be read now, which says nothing of what they hold.
    """
    try:
        manifest = fsio.read_json(folder / MANIFEST)
        files = dict(manifest["files"])
        if manifest.pop("digest", None) != _digest(manifest):
            raise DamagedCheckpoint(f"{folder / MANIFEST} differs from what was saved (SHA-256)")
        if manifest["step"] != step:
            raise DamagedCheckpoint(f"{folder / MANIFEST} is of step {manifest['step']}")
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise DamagedCheckpoint(f"{folder / MANIFEST}: unknown schema version")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{folder / MANIFEST} is not readable ({error})") from error
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(set(files) ^ present):
        fault = "is missing" if name in files else "does not belong to it"
        raise DamagedCheckpoint(f"{folder / name} {fault}")
    with ThreadPoolExecutor(_READERS) as pool:
        expected = sorted(files.items())
        list(pool.map(lambda item: _verify_file(folder / item[0], item[1]), expected))
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    """The manifest's own SHA-256: a flipped bit in it must not pass either."""
    return fsio.sha256_text(fsio.to_json(manifest))


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise DamagedCheckpoint(f"{path} has {size} bytes, saved were {expected['bytes']}")
    if fsio.sha256_file(path) != expected["sha256"]:
        raise DamagedCheckpoint(f"{path} differs from what was saved (SHA-256)")


def refuse_foreign(directory: Path, folder: Path) -> None:
    """Refuse a checkpoint that somebody else could have put there: whose results would it give?

    Raises:
        InputError: names the file and what to do.
    """
    for path in (directory, folder, *sorted(folder.iterdir())):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise InputError(f"{path} is a symbolic link; checkpoints are loaded from files only")
        if status.st_uid != os.geteuid():
            raise InputError(
                f"{path} belongs to user id {status.st_uid}, not to you ({os.geteuid()}); "
                "only checkpoints of your own are continued"
            )
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InputError(
                f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o}); if you "
                f"trust its content: chmod go-w {path}"
            )


def _delete(folder: Path) -> None:
    """Take the plain name away first, so that a kill in between leaves no half checkpoint."""
    doomed = folder.with_name(f"{folder.name}.deleted")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    fsio.fsync_dir(folder.parent)
    shutil.rmtree(doomed)


def _set_aside(folder: Path) -> Path:
    for number in range(1, 1000):
        aside = folder.with_name(f"{folder.name}.bad{number}")
        try:
            folder.rename(aside)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # the name is taken
                continue
            raise
        fsio.fsync_dir(folder.parent)
        return aside
    raise InputError(f"{folder.parent}: cannot set {folder.name} aside")


def _names_set_aside(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if _SET_ASIDE.fullmatch(path.name))
