"""Faults on request: a test names a point, and the process kills itself when it gets there.

`ORCHESTRATE_FAULT=point:n` sends SIGKILL to the rank in `ORCHESTRATE_FAULT_RANK` (0) at the n-th
passage of the point, in the first attempt of a job only. Points: `step:n` (after optimizer step n),
`checkpoint.<place>:n` (in the n-th save of the process). `slow:n` is no death: the rank sleeps n
milliseconds behind every step.
"""

from __future__ import annotations

import os
import signal
import time


def hit(point: str, n: int) -> None:
    """Kill or slow this process if that was asked for at passage `n` of `point`."""
    wanted, _, number = os.environ.get("ORCHESTRATE_FAULT", "").rpartition(":")
    mine = os.environ.get("RANK", "0") == os.environ.get("ORCHESTRATE_FAULT_RANK", "0")
    if not wanted or not mine or _restarts() > 0:
        return
    if wanted == "slow" and point == "step":
        time.sleep(int(number) / 1000)
    elif wanted == point and number == str(n):
        os.kill(os.getpid(), signal.SIGKILL)


def _restarts() -> int:
    names = ("SLURM_RESTART_COUNT", "ORCHESTRATE_RESTART_COUNT")
    return max(int(os.environ.get(name) or 0) for name in names)
