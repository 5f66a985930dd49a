"""Atomic and durable file operations that are safe on NFS; a leaf that every package may import."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600


def make_dir(path: Path, mode: int = PRIVATE_DIR) -> Path:
    """Create a directory and its parents with `mode`; existing ones are left as they are."""
    missing: list[Path] = []
    probe = path
    while not probe.exists():
        missing.append(probe)
        probe = probe.parent
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=mode)
    return path


def fsync_dir(path: Path) -> None:
    """Flush a directory entry, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_bytes(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace `path` atomically: readers see the old content or the new, never a part."""
    temporary = _write_temporary(path, data, mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_text(path: Path, text: str, mode: int = PRIVATE_FILE) -> None:
    """Replace `path` with UTF-8 `text` atomically."""
    write_bytes(path, text.encode(), mode)


def to_json(value: Any) -> str:
    """Render a value as the JSON we keep on disk: two blanks, sorted keys, final newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any, mode: int = PRIVATE_FILE) -> None:
    """Replace `path` with `value` as JSON atomically."""
    write_text(path, to_json(value), mode)


def create_json(path: Path, value: Any, mode: int = PRIVATE_FILE) -> bool:
    """Create `path` with `value` unless it exists; the one who gets True owns it.

    A hard link is used because it is atomic on NFS, where O_EXCL has not always been, and because
    the file then appears with its whole content.
    """
    temporary = _write_temporary(path, to_json(value).encode(), mode)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)
    return True


class DamagedFile(ValueError):
    """A file that is not the JSON object it should be; the message names it."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: the file is not there.
        DamagedFile: it is not a JSON object; the message names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFile(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_or_none(path: Path) -> dict[str, Any] | None:
    """Read a JSON object, or None where the file does not exist."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None


def append_json_line(path: Path, value: Mapping[str, Any], *, sync: bool = False) -> None:
    """Append one JSON line in a single write; a torn last line is possible after a crash.

    It stays a line of its own, which `read_json_lines` passes over.

    Raises:
        OSError: it could not be written, or not all of it (a full disk).
    """
    line = (json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset behind the line, object) for each whole line from byte `offset` on.

    A last line without newline is still being written and is left for the next call; a torn line in
    the middle, left by a killed writer, is passed over.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        stream.seek(offset)
        for raw in stream:
            if not raw.endswith(b"\n"):
                return
            offset += len(raw)
            with contextlib.suppress(ValueError):
                value = json.loads(raw)
                if isinstance(value, dict):
                    yield offset, value


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
