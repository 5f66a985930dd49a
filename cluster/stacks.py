"""Where a rank stands: the Python stacks of its threads, also when it holds the interpreter."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Sequence

from cluster import procfs

# The last but two: nothing else is known to use it (NPTL takes the first, Go and Java lower ones).
_SIGNAL = signal.SIGRTMAX - 2
_WAIT_SECONDS = 2.0
_QUIET_SECONDS = 0.1
_POLL_SECONDS = 0.01


def prepare() -> int:
    """In the rank: write its stacks into memory when asked to; the descriptor of that memory.

    The handler is C code that needs neither the interpreter nor a disk.
    """
    descriptor = os.memfd_create("orchestrate-stacks")
    faulthandler.register(_SIGNAL, file=descriptor, all_threads=True, chain=False)
    return descriptor


def take(pid: int, descriptor: int) -> str:
    """In the watchdog: what the rank's threads do now, as text for a person.

    A stopped process runs no handler: it is let go on for the moment that the handler takes, so
    take its stacks only when it is about to be killed.
    """
    before = procfs.state(pid)
    lines = [f"process {pid}, state {before or 'gone'}"]
    if waits_in := procfs.waits_in(pid):
        lines.append(f"sleeps in the kernel's {waits_in}")
    if kernel := procfs.kernel_stack(pid):
        lines += ["kernel stack:", kernel]
    if before == "T":
        lines.append("It is stopped by a signal; for these stacks it was continued (SIGCONT).")
    return "\n".join([*lines, "", *_python_stacks(pid, descriptor)]) + "\n"


def _python_stacks(pid: int, descriptor: int) -> Sequence[str]:
    if not procfs.catches(pid, _SIGNAL):
        return ["No Python stacks: the process has no handler for them (it ended, or only began)."]
    start = os.fstat(descriptor).st_size
    try:
        os.kill(pid, _SIGNAL)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return ["No Python stacks: the process is gone."]
    size = _written(descriptor, start)
    if size == start:
        return [f"No Python stacks within {_WAIT_SECONDS:g} s: the kernel does not let it run."]
    return [os.pread(descriptor, size - start, start).decode(errors="replace").rstrip()]


def _written(descriptor: int, start: int) -> int:
    """Size of the file once something was written and nothing more comes."""
    deadline = time.monotonic() + _WAIT_SECONDS
    size, since = start, time.monotonic()
    while (now := time.monotonic()) < deadline:
        newest = os.fstat(descriptor).st_size
        if newest != size:
            size, since = newest, now
        elif size > start and now - since > _QUIET_SECONDS:
            break
        time.sleep(_POLL_SECONDS)
    return size
