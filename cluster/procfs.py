"""What the kernel tells of a process: state, what it waits for, children, how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import time
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_CHILDREN = 64  # more are not listed
_REAP_SECONDS = 0.3  # until the parent of a process has taken note of its end

# <linux/pidfd.h>: _IOWR(0xFF, 11, struct pidfd_info) of 64 bytes, since Linux 6.13; how a process
# ended since 6.15. Older kernels refuse the call.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("=QQ11Ii")


def state(pid: int) -> str:
    """Letter of the process state (proc(5)); empty where there is no such process."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def cpu_seconds(pid: int) -> float:
    """Processor time the process has used, all its threads together."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def waits_in(pid: int) -> str:
    """The kernel's function the main thread sleeps in; empty where that is hidden or it runs."""
    name = _read(pid, "wchan")
    return "" if name == "0" else name


def kernel_stack(pid: int) -> str:
    """The kernel's side of the main thread's stack; mostly root alone may read it."""
    return _read(pid, "stack")


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for a signal."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", _read(pid, "status"), re.MULTILINE)
    return bool(found and int(found.group(1), 16) >> (number - 1) & 1)


def children(pid: int) -> tuple[dict[str, Any], ...]:
    """All processes below this one, each with pid, name, state and waits_in."""
    found: list[dict[str, Any]] = []
    ahead = [pid]
    while ahead and len(found) < _CHILDREN:
        for child in _started_by(ahead.pop()):
            ahead.append(child)
            about = {"name": _read(child, "comm"), "state": state(child)}
            found.append({"pid": child, **about, "waits_in": waits_in(child)})
    return tuple(found)


def exit_code(pidfd: int) -> int | None:
    """How a process ended, as a shell says it (128 + n for signal n); None where nobody tells.

    Only its parent may wait for a process; newer kernels tell others through a descriptor that was
    opened while it lived.
    """
    query = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, query)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(query)
    if not mask & _PIDFD_INFO_EXIT:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the third on; the second, the name, may hold anything."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _started_by(pid: int) -> list[int]:
    """Children of a process, whichever of its threads started them."""
    tasks = (_PROC / str(pid)).glob("task/*")
    return [
        int(word) for task in tasks for word in _read(pid, f"task/{task.name}/children").split()
    ]


def _read(pid: int, name: str) -> str:
    """Content of a file of a process; empty where it is gone or hidden."""
    try:
        path = _PROC / str(pid) / name
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


class Parent:
    """The parent of this process; kernels before 5.3 give no descriptor for it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._poll = select.poll()
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):
            self._descriptor = os.pidfd_open(pid)
            self._poll.register(self._descriptor, select.POLLIN)

    def ends_within(self, seconds: float) -> bool:
        """Wait so many seconds for its end; whether it came."""
        return bool(self._poll.poll(1000 * seconds)) or os.getppid() != self._pid

    def signal(self, number: int) -> None:
        """Send it a signal, and nobody who got its number after it."""
        with contextlib.suppress(ProcessLookupError):
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)
            elif os.getppid() == self._pid:
                os.kill(self._pid, number)

    def exit_code(self) -> int | None:
        """How it ended, as a shell says it, where the kernel tells."""
        if self._descriptor is None:
            return None
        deadline = time.monotonic() + _REAP_SECONDS
        while (code := exit_code(self._descriptor)) is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return code
