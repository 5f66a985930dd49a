"""A fenced lock in a folder: one holder at a time among all machines that see the folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import fsio

BEAT_SECONDS = 10.0
# A holder on another machine is taken for dead when its counter has stood still this long under
# our own eyes: nine beats, and longer than the 60 s for which NFS may serve an old directory entry.
SILENCE_SECONDS = 90.0
_POLL_SECONDS = 0.1


def _read_first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _machine() -> str:
    """Names what process ids are relative to: this boot of this machine and this pid namespace."""
    boot = _read_first_line("/proc/sys/kernel/random/boot_id") or socket.gethostname()
    with contextlib.suppress(OSError):
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  (not a path)
    return boot


def _started(pid: int) -> str:
    """Start time of a process in clock ticks, to tell it from a later one with its number."""
    fields = _read_first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields or fields[0] == "Z":
        return ""
    return fields[19]


def process_is_alive(pid: int, started: str) -> bool:
    """Whether that very process still runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _started(pid) == started


class Lease:
    """Held from `acquire` to `release`; files are numbered and the highest number is the holder.

    Taking over creates the next number exclusively, so that of two who try one wins, and a holder
    that was only asleep sees the higher number (`held`) before it writes.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number
        self._token = secrets.token_hex(8)
        self._beat = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(
        cls,
        folder: Path,
        *,
        patience_seconds: float = 0.0,
        give_up: Callable[[], bool] = lambda: False,
    ) -> Lease | None:
        """Take the lease; waits for a live holder `patience_seconds` long or until `give_up()`."""
        fsio.make_dir(folder)
        deadline = time.monotonic() + patience_seconds
        watch = _Watch()
        while True:
            number, record = _newest(folder)
            if record is None or record.get("released") or watch.is_dead(record):
                lease = cls(folder, number + 1)
                if lease._claim():
                    return lease
            elif time.monotonic() >= deadline or give_up():
                return None
            time.sleep(_POLL_SECONDS)

    def held(self) -> bool:
        """Whether nobody has taken the lease over."""
        return _newest(self._folder)[0] == self._number

    def release(self) -> None:
        """Let others in at once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.held():
            fsio.write_json(self._path, {**self._record(), "released": True})

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._number:06d}.json"

    def _record(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "token": self._token,
            "beat": self._beat,
        }

    def _claim(self) -> bool:
        if not fsio.create_json(self._path, self._record()):
            return False
        if not self.held():  # a slow claimant recreated a number that was already cleared away
            self._path.unlink(missing_ok=True)
            return False
        for path in self._folder.glob("*.json"):
            if path.name < self._path.name:
                path.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()
        return True

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_SECONDS) and self.held():
            self._beat += 1
            with contextlib.suppress(OSError):  # a full disk must not end the delivery
                fsio.write_json(self._path, self._record())


class _Watch:
    """Remembers since when a holder's counter has not moved, on our own clock."""

    def __init__(self) -> None:
        self._seen: tuple[str, int] | None = None
        self._since = 0.0

    def is_dead(self, record: dict[str, Any]) -> bool:
        if record["machine"] == _machine():
            return not process_is_alive(record["pid"], record["started"])
        mark = (record["token"], record["beat"])
        if mark != self._seen:
            self._seen, self._since = mark, time.monotonic()
        return time.monotonic() - self._since > SILENCE_SECONDS


def _newest(folder: Path) -> tuple[int, dict[str, Any] | None]:
    """Number and record of the current holder; (0, None) where there has been none."""
    names = [path.name for path in folder.glob("[0-9]*.json")]
    if not names:
        return 0, None
    name = max(names)
    record = fsio.read_json_or_none(folder / name)
    # Gone between listing and reading: its holder gave way to a higher number.
    return (int(name[:6]), record) if record is not None else _newest(folder)


def describe_holder(folder: Path) -> str:
    """Who holds the lease, for a message."""
    record = _newest(folder)[1] if folder.is_dir() else None
    return f"process {record['pid']} on {record['host']}" if record else "nobody"
