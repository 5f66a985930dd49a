"""Faults on request: a test names a point, and the process dies or an error is raised there.

`ORCHESTRATE_FAULT=point:n` sends SIGKILL to the rank in `ORCHESTRATE_FAULT_RANK` (0) at the n-th
passage of the point, in the first attempt of a job only; `point:n:fail` raises the error of a full
disk instead. Points: `step:n` (after optimizer step n), `checkpoint.<place>:n` (in the n-th save of
the process), `checkpoint.write`, `checkpoint.fsync`, `checkpoint.rename` (the n-th such call of
the process). `slow:n` is no death: the rank sleeps n milliseconds behind every step.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter

_passages: Counter[str] = Counter()


def hit(point: str, n: int) -> None:
    """Kill, fail or slow this process if that was asked for at passage `n` of `point`."""
    wanted, _, asked = os.environ.get("ORCHESTRATE_FAULT", "").partition(":")
    number, _, way = asked.partition(":")
    mine = os.environ.get("RANK", "0") == os.environ.get("ORCHESTRATE_FAULT_RANK", "0")
    if not wanted or not mine or _restarts() > 0:
        return
    if wanted == "slow" and point == "step":
        time.sleep(int(number) / 1000)
    elif wanted == point and number == str(n):
        if way == "fail":
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (asked for at {point} {n})")
        os.kill(os.getpid(), signal.SIGKILL)


def passage(point: str) -> None:
    """Count a passage of `point` since a fault was asked for in this process, and `hit` it."""
    if os.environ.get("ORCHESTRATE_FAULT"):
        _passages[point] += 1
        hit(point, _passages[point])


def _restarts() -> int:
    names = ("SLURM_RESTART_COUNT", "ORCHESTRATE_RESTART_COUNT", "ORCHESTRATE_RESTART_BASE")
    return max(int(os.environ.get(name) or 0) for name in names)
