"""Prepares one video, in a process that may crash: re-encodes it or finds it in the cache."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster import fsio
from recipes.data.config import PrepareOptions
from recipes.data.encode import REVISION, encode
from recipes.data.encode_check import Encoded, EncodeError, verify
from recipes.data.probe import probe

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One file to prepare.

    Attributes:
        source: the file; `bytes` and `mtime_ns` are what the index found.
        path: what the table calls it.
        sha256: its digest, or "" where the index did not compute it.
        frames: how many there must be, or 0 where the index did not decode it.
        fps: average rate, or 0.
        target: where the result goes.
        partial: folder for files being written, on the file system of `target`.
        cache: folder of all files prepared with these options.
        options: how to encode.
        decoder: the one that will read the result.
        work: pixels of all frames of the result.
    """

    source: Path
    path: str
    bytes: int
    mtime_ns: int
    sha256: str
    frames: int
    fps: float
    target: Path
    partial: Path
    cache: Path
    options: PrepareOptions
    decoder: str
    work: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a task: `file`, or `problem` says why there is none.

    Attributes:
        path, bytes, mtime_ns: those of the task, so that a changed source is prepared anew.
        sha256: digest of the source.
        file: the result.
        reused: it was there already and took no space.
        damaged: the source itself is to blame.
        full: the disk is; the task has to be done again.
        crashed: the process died; the next attempt tries again.
        cpu_seconds: spent on it.
    """

    path: str
    bytes: int
    mtime_ns: int
    sha256: str = ""
    file: Encoded | None = None
    reused: bool = False
    problem: str = ""
    damaged: bool = False
    full: bool = False
    crashed: bool = False
    cpu_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Done:
        """The inverse of `to_json`."""
        file = value["file"]
        return cls(**{**value, "file": None if file is None else Encoded(**file)})


def settings_of(options: PrepareOptions) -> str:
    """A name for what the options make of a video; libraries change its bytes, not its meaning."""
    encoding = options.model_dump(include={"short_side", "gop", "crf"})
    return fsio.sha256_text(fsio.to_json({"revision": REVISION, **encoding}))[:16]


def prepare_one(task: Task) -> Done:
    """Do one task; all that can be wrong with a single video comes back as `problem`.

    Raises:
        OSError: the results cannot be written at all.
        ConfigurationError: the decoder is not installed.
    """
    started = time.process_time()
    done: dict[str, Any] = {"path": task.path, "bytes": task.bytes, "mtime_ns": task.mtime_ns}
    try:
        done |= _prepare(task)
    except EncodeError as error:
        done |= {"problem": str(error), "damaged": error.damaged}
    except OSError as error:
        if error.errno not in FULL:
            raise
        done |= {"problem": os.strerror(error.errno), "full": True}
    return Done(**done, cpu_seconds=round(time.process_time() - started, 3))


def crashed(task: Task) -> Done:
    """What is known of a task whose process died."""
    problem = "crashed the decoder or took too long"
    return Done(
        path=task.path,
        bytes=task.bytes,
        mtime_ns=task.mtime_ns,
        problem=problem,
        damaged=True,
        crashed=True,
    )


def _prepare(task: Task) -> dict[str, Any]:
    sha256 = _digest(task)
    fsio.make_dir(task.target.parent)
    partial = task.partial / secrets.token_hex(8)
    file = _reuse(task, sha256, partial)
    reused = file is not None
    if file is None:
        frames = task.frames or _count(task)
        file = encode(task.source, partial, task.options, task.decoder, task.fps)
        if file.frames != frames:
            partial.unlink()
            raise EncodeError(f"has {file.frames} frames instead of {frames}", damaged=True)
    partial.replace(task.target)
    if not reused:
        _offer(task, sha256, file)
    return {"sha256": sha256, "file": file, "reused": reused}


def _digest(task: Task) -> str:
    """SHA-256 of the source, which must be the file the index looked at."""
    try:
        found = task.source.stat()
        if (found.st_size, found.st_mtime_ns) != (task.bytes, task.mtime_ns):
            raise EncodeError("changed since it was indexed: raise data.version", damaged=True)
        return task.sha256 or fsio.sha256_file(task.source)
    except OSError as error:
        raise EncodeError(f"cannot be read ({error.strerror or error})", damaged=True) from error


def _count(task: Task) -> int:
    """Frames of a file the index did not decode: it is looked at now as closely as an index can.

    Raises:
        EncodeError: it is damaged or cut off.
    """
    found = probe(task.source, task.decoder, "full")
    if found.verdict == "reject" and not found.mendable:
        raise EncodeError(found.reason, damaged=True)
    return found.frames


def _reuse(task: Task, sha256: str, partial: Path) -> Encoded | None:
    """Get a file from the cache into `partial`; None where there is none that is sound.

    A name in the cache says what the file was made from and what it must contain. It is decoded
    all the same, because another stage may have checked it for another decoder.
    """
    for cached in sorted((task.cache / sha256[:2]).glob(f"{sha256}-*.mp4")):
        try:
            link_or_copy(cached, partial)
            file = verify(partial, task.options.gop, task.decoder)
            if cached.stem == f"{sha256}-{file.sha256}":
                return file
        except FileNotFoundError:
            continue  # it vanished, as a cache may
        except EncodeError:
            pass
        partial.unlink()
        cached.unlink(missing_ok=True)
    return None


def _offer(task: Task, sha256: str, file: Encoded) -> None:
    """Give the result a second name in the cache, where the file system allows that."""
    folder = task.cache / sha256[:2]
    try:
        fsio.make_dir(folder)
        (folder / f"{sha256}-{file.sha256}.mp4").hardlink_to(task.target)
    except OSError:
        return  # another stage was first, or no links here: nothing depends on the cache


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file; a copy where a link is not possible (other disk, other owner)."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
