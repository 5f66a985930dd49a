"""The signs of life of a rank: what it does and since when, in memory shared with its watchdog."""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass

# What a rank may be doing; a code is the place in this table. Only `idle` is not watched.
PHASES = ("idle", "data", "forward", "backward", "agree", "optimize", "save", "evaluate")
_CODES = {phase: code for code, phase in enumerate(PHASES)}
_LONG = frozenset({_CODES["evaluate"], _CODES["save"]})
# Beats, phase, step, step of the first beat, time of the last sign of life, leaving.
_LAYOUT = struct.Struct("=QQQQdQ")
_LEAVING = struct.Struct("=Q")
_LEAVING_AT = _LAYOUT.size - _LEAVING.size
_SIZE = mmap.PAGESIZE


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What is known of a rank.

    Attributes:
        started: it has completed a step.
        at: its last sign of life, in seconds of the monotonic clock.
        leaving: it has written its records: nothing that happens to it matters any more.
    """

    beats: int
    phase: str
    step: int
    started: bool
    at: float
    leaving: bool


class Heart:
    """The rank's side; a beat costs less than a microsecond and never touches a disk.

    Attributes:
        descriptor: of the shared memory, for the watchdog to inherit; it has no name to clean up.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("orchestrate-heart")
        os.ftruncate(self.descriptor, _SIZE)
        self._memory = mmap.mmap(self.descriptor, _SIZE)
        self._beats = self._step = 0
        self._first_step: int | None = None
        self._code = _CODES["idle"]

    def beat(self, phase: str, step: int) -> None:
        """Say what this rank does next, in optimizer step `step`. Raises KeyError: no such phase.

        All ranks make the same sequence of beats: who has made the fewest is the one waited for.
        """
        self._beats += 1
        self._code = _CODES[phase]
        self._step = step
        if self._first_step is None:
            self._first_step = step
        self._write()

    def sign(self) -> None:
        """Say that this rank lives, between two beats; only heard while it evaluates or saves.

        Neither has steps, and both may take any time.
        """
        if self._code in _LONG:
            self._write()

    def leave(self) -> None:
        """Say that this rank has written its records and will exit."""
        _LEAVING.pack_into(self._memory, _LEAVING_AT, 1)

    def _write(self) -> None:
        first, now = self._first_step or 0, time.monotonic()
        _LAYOUT.pack_into(self._memory, 0, self._beats, self._code, self._step, first, now, 0)


class Monitor:
    """The watchdog's side."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE, prot=mmap.PROT_READ)

    def read(self) -> Pulse:
        """The newest sign of life, never a mixture of two."""
        content = self._memory[: _LAYOUT.size]
        while content != (again := self._memory[: _LAYOUT.size]):
            content = again
        beats, code, step, first, at, leaving = _LAYOUT.unpack(content)
        return Pulse(
            beats=beats,
            phase=PHASES[code],
            step=step,
            started=step > first,
            at=at,
            leaving=bool(leaving),
        )
