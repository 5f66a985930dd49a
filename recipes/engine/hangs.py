"""Hangs on request: a test names one, and the rank stops making progress there.

`ORCHESTRATE_FAULT=kind:n` makes the rank in `ORCHESTRATE_FAULT_RANK` (0) hang when it waits for the
data of optimizer step n (from 0), in the first attempt of a job only. Kinds: `stop` (SIGSTOP),
`spin` (an endless loop), `gil` (an endless loop in C that holds the interpreter).
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable

from recipes.contract import Phase

Beat = Callable[[Phase, int], None]


def behind(beat: Beat) -> Beat:
    """The function that beats, with the wanted hang behind it; mostly the function itself."""
    kind, _, number = os.environ.get("ORCHESTRATE_FAULT", "").partition(":")
    mine = os.environ.get("RANK", "0") == os.environ.get("ORCHESTRATE_FAULT_RANK", "0")
    names = ("SLURM_RESTART_COUNT", "ORCHESTRATE_RESTART_COUNT", "ORCHESTRATE_RESTART_BASE")
    first = not any(int(os.environ.get(name) or 0) for name in names)
    if kind not in _KINDS or not mine or not first:
        return beat

    def beat_and_hang(phase: Phase, step: int) -> None:
        beat(phase, step)
        if phase == "data" and step == int(number):
            _KINDS[kind]()

    return beat_and_hang


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _spin() -> None:
    while True:
        pass


def _hold_interpreter() -> None:
    """Two ways to read each letter and no match: it tries 2^200."""
    re.match(r"(a|a)*b", "a" * 200)


_KINDS = {"stop": _stop, "spin": _spin, "gil": _hold_interpreter}
