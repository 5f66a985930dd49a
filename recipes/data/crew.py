"""Processes that open videos: deaf to stop signals, limited in memory, replaced when they end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import pickle
import re
import resource
import signal
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Generic, TypeVar

from recipes.contract import StageError
from recipes.data.shared import Effort, Pulse

Job = TypeVar("Job")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
ATTEMPTS = 2  # what ends its process is tried again: somebody else may have ended the process

_MEMORY_BYTES = 8 << 30  # what a process may take beside what it has when it starts
_START_SECONDS = 300.0  # for imports from a slow network file system
_POLL_SECONDS = 0.5
_AHEAD = 2  # jobs a worker has, the one it works on included
_FRUITLESS = 5  # ends of processes in a row, none of which did anything
_OUT_OF_MEMORY = 71

_live: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """One process and the pipe to it; it ends with this process at the latest.

    It comes from a fork server: decord hangs in a process forked after it was used, and a plain
    fork would copy the threads and the device state of training.
    """

    def __init__(self, preload: str, serve: Callable[..., None], *arguments: Any) -> None:
        """Start `serve(pipe, pulse, *arguments)`, which is importable and ends with the pipe.

        `preload` is the module that the fork server imports when it starts.
        """
        context = _context(preload)
        self.pipe: Connection[Any, Any]
        self.pipe, theirs = context.Pipe()
        self.pulse = Pulse()
        self.pulse.expect(_START_SECONDS)
        self.process = context.Process(
            target=_main, args=(theirs, self.pulse, serve, arguments), daemon=True
        )
        with _stop_signals_held():
            self.process.start()
        theirs.close()
        _watch_exit()
        _live.add(self)

    def end(self) -> tuple[str, bool]:
        """End the process if it lives; say how it ended, and whether for being late."""
        late = self.pulse.overdue
        self.process.join(0 if late else 1)  # after the end of its pipe its own end is near
        late = late and self.process.is_alive()
        self.kill()
        self.process.join(1)
        reason = f"was not done in {self.pulse.seconds:g} s"
        return reason if late else _how(self.process.exitcode), late

    def kill(self) -> None:
        """End it at once; one that waits for a disk in the kernel ends when it can."""
        self.pipe.close()
        self.process.kill()
        _live.discard(self)


@dataclass(frozen=True, kw_only=True)
class Reply(Generic[Job]):
    """What a process sent back for a job, an exception included."""

    job: Job
    content: Any


@dataclass(frozen=True, kw_only=True)
class Loss(Generic[Job]):
    """A process ended or was late while it was at `number` of a job, and is replaced."""

    job: Job
    number: int
    reason: str
    late: bool


class Crew(Generic[Job]):
    """A number of workers that share jobs; each has two, so that it need not wait for the next."""

    def __init__(
        self,
        size: int,
        start: Callable[[], Worker],
        send: Callable[[Worker, Job], None],
    ) -> None:
        self._start, self._send = start, send
        self._todo: deque[Job] = deque()
        self._at_work: dict[Worker, deque[Job]] = {start(): deque() for _ in range(size)}
        self._fruitless = 0
        self._ended = Effort()  # of processes that were replaced

    @property
    def effort(self) -> Effort:
        """What all processes have done so far."""
        return sum((worker.pulse.effort for worker in self._at_work), self._ended)

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [worker.process.pid or 0 for worker in self._at_work]

    def add(self, job: Job, *, first: bool = False) -> None:
        """Have a job done; `first` means before all others."""
        if first:
            self._todo.appendleft(job)
        else:
            self._todo.append(job)

    def wait(self) -> list[Reply[Job] | Loss[Job]]:
        """What happened; waits for it at most half a second.

        A lost job must be added again, unless it is given up. The others of a process that ended
        are done by others.

        Raises:
            RuntimeError: processes end before they have done anything.
        """
        self._hand_out()
        ready = wait([worker.pipe for worker in self._at_work], _POLL_SECONDS)
        events: list[Reply[Job] | Loss[Job]] = []
        for worker in list(self._at_work):
            lost = worker.pulse.overdue
            if worker.pipe in ready:
                lost = self._listen(worker, events) or lost
            if lost:
                events.extend(self._replace(worker))
        return events

    def close(self) -> None:
        """End all processes at once."""
        for worker in self._at_work:
            worker.kill()
        for worker in self._at_work:
            worker.process.join(5)
        self._at_work.clear()

    def _hand_out(self) -> None:
        while self._todo:
            worker, jobs = min(self._at_work.items(), key=lambda pair: len(pair[1]))
            if len(jobs) >= _AHEAD:
                return
            jobs.append(self._todo.popleft())
            with contextlib.suppress(OSError):  # it has ended, which the pipe will tell
                self._send(worker, jobs[-1])

    def _listen(self, worker: Worker, events: list[Reply[Job] | Loss[Job]]) -> bool:
        """Take all that a process sent; whether it has ended."""
        try:
            while worker.pipe.poll():
                content = worker.pipe.recv()
                events.append(Reply(job=self._at_work[worker].popleft(), content=content))
                self._fruitless = 0
        except (EOFError, OSError):
            return True
        return False

    def _replace(self, worker: Worker) -> Iterator[Loss[Job]]:
        jobs = self._at_work.pop(worker)
        self._ended += worker.pulse.effort
        (reason, late), number = worker.end(), worker.pulse.number
        if jobs and number is not None:
            yield Loss(job=jobs.popleft(), number=number, reason=reason, late=late)
        else:
            self._fruitless += 1
        if self._fruitless == _FRUITLESS:
            raise RuntimeError(
                f"{_FRUITLESS} processes that should open videos ended before they did anything; "
                f"the last one {reason}. What they printed is in the log"
            )
        self._todo.extendleft(reversed(jobs))
        self._at_work[self._start()] = deque()


def answer(pipe: Connection[Any, Any], pulse: Pulse, work: Callable[[], object]) -> None:
    """In a worker: send what `work()` returns or raises; `unwrap` at the other end undoes it."""
    began = Effort.now()
    try:
        content = ForkingPickler.dumps((work(), None))
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)  # perhaps the fault of what was done before: another will try
    except Exception as error:
        if not isinstance(error, StageError):  # whose message says all
            error.add_note(f"In the process that opens videos:\n{traceback.format_exc()}")
        content = ForkingPickler.dumps((None, _portable(error)))
    pulse.add(Effort.now() - began)
    pulse.rest()
    pipe.send_bytes(content)


def unwrap(content: tuple[Any, Exception | None]) -> Any:
    """What the work returned.

    Raises:
        Exception: the one it raised.
    """
    result, error = content
    if error is not None:
        raise error
    return result


def _main(
    pipe: Connection[Any, Any],
    pulse: Pulse,
    serve: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """What a worker does."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    _limit_memory()
    threading.Thread(target=_follow_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(pipe, pulse, *arguments)


def _follow_parent() -> None:
    """End with the process that started this one, even in the middle of a decoder that hangs."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _limit_memory() -> None:
    """What is allocated counts, not what is mapped: libraries map much and share it.

    Nor is all of it written to a disk when a decoder crashes.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now = int(re.findall(r"VmData:\s+(\d+) kB", status)[0]) << 10
    with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_DATA, (now + _MEMORY_BYTES, now + _MEMORY_BYTES))


def _portable(error: Exception) -> Exception:
    """The exception, or one that says the same, if it does not survive the way."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _how(code: int | None) -> str:
    if code is None:
        return "cannot be ended"
    if code >= 0:
        return "ran out of memory" if code == _OUT_OF_MEMORY else f"ended with code {code}"
    names = {number: number.name for number in signal.Signals}
    return f"was ended by {names.get(-code, f'signal {-code}')}"  # type: ignore[call-overload]


def start_server(preload: str) -> None:
    """Start the fork server, if there is none, so that later processes start at once."""
    _context(preload)
    with _stop_signals_held():
        forkserver.ensure_running()


def _context(preload: str) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


@contextlib.contextmanager
def _stop_signals_held() -> Iterator[None]:
    """Processes started inside begin deaf to the stop signals; here they are only delayed.

    SLURM signals every process of a step. The fork server has no handlers of its own and would die;
    a worker would before it could ignore them.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks SIGTERM after its own start
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@functools.cache
def _watch_exit() -> None:
    """multiprocessing would send workers SIGTERM, which they ignore, and wait for ever."""
    atexit.register(_kill_live)  # runs before multiprocessing's own, which is registered by now


def _kill_live() -> None:
    for worker in list(_live):
        worker.kill()
