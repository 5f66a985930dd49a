"""Memory that several processes share: of no file, gone when the last of them drops it."""

from __future__ import annotations

import math
import mmap
import os
import pickle
import signal
import time
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64
_GRACE_SECONDS = 30
_NOTHING = -1


class Shared:
    """Some bytes of shared memory.

    It does not lie in /dev/shm, whose size containers limit, and no crash leaves it behind.
    """

    def __init__(self, size: int, handle: int | None = None) -> None:
        """New memory of `size` bytes, or what a `handle` from elsewhere stands for."""
        self._handle = os.memfd_create("videos") if handle is None else handle
        if handle is None:
            os.ftruncate(self._handle, size)
        self.memory = mmap.mmap(self._handle, size)
        self.size = size

    def close_handle(self) -> None:
        """It will be given to no other process."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def send(self, pipe: Connection[Any, Any], pid: int) -> None:
        """Give it to the process at the other end, which calls `receive`."""
        reduction.send_handle(pipe, self._handle, pid)

    @classmethod
    def receive(cls, pipe: Connection[Any, Any], size: int) -> Shared:
        """What the other end sends."""
        shared = cls(size, reduction.recv_handle(pipe))
        shared.close_handle()
        return shared

    def __reduce__(self) -> Any:
        return _attach, (self.size, reduction.DupFd(self._handle))  # while a process is started

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self.close_handle()


def _attach(size: int, handle: Any) -> Shared:
    return Shared(size, handle.detach())


class Parcel:
    """An object whose arrays lie in shared memory: processes that unpack it have one copy of them.

    The arrays must not be changed.
    """

    def __init__(self, content: object) -> None:
        buffers: list[pickle.PickleBuffer] = []
        self._head = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        starts = np.cumsum([0, *(-(-view.nbytes // _ALIGNMENT) * _ALIGNMENT for view in views)])
        self._places = [(int(s), view.nbytes) for s, view in zip(starts, views, strict=False)]
        self._shared = Shared(max(1, int(starts[-1])))
        for (start, size), view in zip(self._places, views, strict=True):
            self._shared.memory[start : start + size] = view

    def unpack(self) -> Any:
        """The object, its arrays read-only."""
        memory = memoryview(self._shared.memory).toreadonly()
        buffers = [memory[start : start + size] for start, size in self._places]
        return pickle.loads(self._head, buffers=buffers)  # noqa: S301  # packed by the parent


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Seconds at work, and processor seconds of all threads in them.

    Where the second is far below the first, a process waited: for its files, or for a processor.
    """

    busy: float = 0.0
    computing: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(busy=self.busy + other.busy, computing=self.computing + other.computing)

    def __sub__(self, other: Effort) -> Effort:
        return Effort(busy=self.busy - other.busy, computing=self.computing - other.computing)

    @staticmethod
    def now() -> Effort:
        """Both clocks of this process; differences of two count."""
        return Effort(busy=time.monotonic(), computing=time.process_time())


class Pulse:
    """What a process is at and until when, written by it and read by the one that started it.

    So is what it has done so far.
    """

    def __init__(self, shared: Shared | None = None) -> None:
        self._shared = shared or Shared(mmap.PAGESIZE)
        values: NDArray[np.float64] = np.frombuffer(self._shared.memory, np.float64, 5)
        self._values, self._effort = values[:3], values[3:]

    def __reduce__(self) -> Any:
        return Pulse, (self._shared,)

    def beat(self, number: int, seconds: float) -> None:
        """The work on `number` begins and may take so long.

        The alarm ends a process that hangs without letting other threads run, when the one that
        should notice is gone.
        """
        signal.alarm(math.ceil(seconds) + _GRACE_SECONDS)
        self.expect(seconds, number)

    def rest(self) -> None:
        """There is nothing to do."""
        signal.alarm(0)
        self.expect(math.inf)

    def expect(self, seconds: float, number: int = _NOTHING) -> None:
        """A sign of life must come within so many seconds."""
        self._values[:] = number, time.monotonic() + seconds, seconds

    @property
    def number(self) -> int | None:
        """What the process is at, or was at when it ended."""
        number = int(self._values[0])
        return None if number == _NOTHING else number

    @property
    def seconds(self) -> float:
        """How long it may take."""
        return float(self._values[2])

    def add(self, effort: Effort) -> None:
        """A piece of work is done."""
        self._effort += effort.busy, effort.computing

    @property
    def effort(self) -> Effort:
        """All its work."""
        busy, computing = self._effort.tolist()
        return Effort(busy=busy, computing=computing)

    @property
    def overdue(self) -> bool:
        """Whether it took longer."""
        return bool(time.monotonic() > self._values[1])
