"""Processes of the private cluster: who is where, and the supervisor that outlives nothing.

Run as a script with a folder it starts what standard input orders, as the subreaper of all of it;
when standard input closes, it kills everything below itself and removes the folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def namespace(pid: int) -> str:
    """Which mount namespace a process is in; empty where there is no such process."""
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return ""


def environment(pid: int) -> set[bytes]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def descendants(roots: Sequence[int]) -> list[int]:
    """All processes below `roots`, which are not part of the answer."""
    parents = {pid: parent_of(pid) for pid in all_pids()}
    found: list[int] = []
    front = set(roots)
    while front:
        front = {pid for pid, above in parents.items() if above in front} - set(found)
        found += sorted(front)
    return found


def _orders() -> Iterator[dict[str, Any]]:
    """Orders from standard input, reaping children in between, until it closes."""
    buffer = b""
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not select.select([0], [], [], 0.2)[0]:
            continue
        chunk = os.read(0, 65536)
        if not chunk:
            return
        buffer += chunk
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            yield json.loads(line)


def supervise(root: Path) -> None:
    """Start what is ordered; when standard input closes, kill all of it and remove `root`."""
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    for order in _orders():
        with Path(order["log"]).open("ab") as log:
            child = subprocess.Popen(
                order["argv"],
                env=order["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=root,
                start_new_session=True,
            )
        print(child.pid, flush=True)
    deadline = time.monotonic() + 20
    while (below := descendants([os.getpid()])) and time.monotonic() < deadline:
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    supervise(Path(sys.argv[1]))
