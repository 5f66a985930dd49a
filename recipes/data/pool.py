"""Batches read ahead by other processes into shared memory, in order, whatever becomes of them."""

from __future__ import annotations

import functools
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from recipes.data.crew import ATTEMPTS, Crew, Loss, Reply, Worker, answer, unwrap
from recipes.data.shared import Effort, Parcel, Pulse, Shared

log = logging.getLogger(__name__)

_AHEAD = 2  # batches a worker, read and not yet taken or in work
_SPARE = 3  # pieces of memory a worker keeps for its next batches

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Bytes = NDArray[np.uint8]
Beat = Callable[[int, float], None]  # row whose reading begins, seconds it may take
Refused = Mapping[int, str]  # rows that end the process that reads them, and why
Shape = tuple[int, ...]


class Reader(Protocol[Item_contra]):
    """Reads batches; it is sent once to each process."""

    def start(self) -> None:
        """Called once in each process."""

    def shape(self, items: Sequence[Item_contra]) -> Shape:
        """Of the batch that these items make."""

    def read(self, items: Sequence[Item_contra], out: Bytes, beat: Beat, refused: Refused) -> Any:
        """Fill `out` of that shape and return what else there is to say.

        Before the reading of a row `beat` tells which and how long it may take; a row of `refused`
        is not read.
        """

    def name(self, row: int) -> str:
        """The file of a row."""


@dataclass(kw_only=True)
class Usage:
    """What the processes of a loader have done, and which they are; renewed with every batch."""

    effort: Effort = Effort()  # noqa: RUF009  # frozen
    pids: Sequence[int] = ()


def load_in_order(
    reader: Reader[Item],
    batches: Iterable[Sequence[Item]],
    workers: int,
    seconds: float,
    usage: Usage | None = None,
) -> Generator[tuple[Bytes, Any], None, None]:
    """Yield what `reader.read` makes of each batch, read ahead in `workers` processes.

    A process that ends, or sits at one row for too long, is replaced, and its batches are read
    again: the result is the same. A row that ends two processes is refused from then on.

    Args:
        reader: what reads.
        batches: items of each batch.
        workers: processes; with 0 this process reads, and what crashes or hangs takes it along.
        seconds: without a sign of life, outside the reading of a row.
        usage: where to say what the processes did.

    Yields:
        The filled array and what `read` returned. Its memory is used again once the array, and all
        that was made from it without copying, is gone.

    Raises:
        Exception: what `read` raised, when the turn of its batch has come.
        RuntimeError: processes cannot be started.
    """
    if workers == 0:
        for items in batches:
            out = np.empty(reader.shape(items), np.uint8)
            yield out, reader.read(items, out, _unwatched, {})
        return
    pool = _Pool(reader, workers, seconds)
    try:
        for batch in pool.read(batches):
            if usage is not None:
                usage.effort, usage.pids = pool.effort, pool.pids
            yield batch
            del batch  # the memory is whose who has it now
    finally:
        pool.close()


def _unwatched(row: int, seconds: float) -> None:
    """This process itself reads: nobody could end it."""


class _Slot:
    """Memory for a batch, known to this process and one worker."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.free = number, True
        self.shared = Shared(size)

    def array(self, shape: Shape) -> Bytes:
        """The batch in it; the slot is free again when nobody has it any more."""
        whole: Bytes = np.frombuffer(self.shared.memory, np.uint8, int(np.prod(shape)))
        weakref.finalize(whole, self.release).atexit = False
        return whole.reshape(shape)

    def release(self) -> None:
        self.free = True


@dataclass(kw_only=True, eq=False)
class _Job:
    number: int
    items: Sequence[Any]
    shape: Shape
    losses: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class _Message:
    """What a worker gets for a batch; it drops all memory but that of the slots in `keep`."""

    items: Sequence[Any]
    refused: Refused
    shape: Shape
    slot: int
    new: int  # size of the slot, whose handle follows; 0 if the worker has it
    keep: tuple[int, ...]


class _Pool:
    def __init__(self, reader: Reader[Any], workers: int, seconds: float) -> None:
        self._reader, self._ahead = reader, _AHEAD * workers
        self._slots: weakref.WeakKeyDictionary[Worker, list[_Slot]] = weakref.WeakKeyDictionary()
        self._slots_made = 0
        self._lent: dict[int, _Slot] = {}  # by number of the batch, like the next
        self._done: dict[int, tuple[Bytes, Any]] = {}
        self._taken = self._given = 0
        self._refused: dict[int, str] = {}
        parcel = Parcel(reader)  # lives as long as workers may have to be replaced
        start = functools.partial(Worker, "recipes.data.loader", _serve, parcel, seconds)
        self._crew: Crew[_Job] = Crew(workers, start, self._send)

    def read(self, batches: Iterable[Sequence[Any]]) -> Iterator[tuple[Bytes, Any]]:
        todo = enumerate(batches)
        while True:
            while self._given < self._taken + self._ahead and (job := next(todo, None)):
                number, items = job
                self._crew.add(_Job(number=number, items=items, shape=self._reader.shape(items)))
                self._given += 1
            if self._taken == self._given:
                return
            while self._taken not in self._done:
                self._listen()
            array, content = self._done.pop(self._taken)
            self._taken += 1
            facts = unwrap(content)
            yield array, facts
            del array, facts  # the memory is whose who has the batch now

    @property
    def effort(self) -> Effort:
        return self._crew.effort

    @property
    def pids(self) -> list[int]:
        return self._crew.pids

    def close(self) -> None:
        self._crew.close()

    def _listen(self) -> None:
        for event in self._crew.wait():
            if isinstance(event, Reply):
                array = self._lent.pop(event.job.number).array(event.job.shape)
                self._done[event.job.number] = array, event.content
            else:
                self._lost(event)

    def _lost(self, loss: Loss[_Job]) -> None:
        """Have the batch read again, the second time without the row that is to blame."""
        job, row = loss.job, loss.number
        job.losses[row] += 1
        name = self._reader.name(row)
        log.warning("%s: the process that read it %s; another goes on", name, loss.reason)
        if job.losses[row] >= ATTEMPTS:
            hint = "; raise read_seconds if the disk is slow" if loss.late else ""
            self._refused[row] = f"{name}: each process that read it {loss.reason}{hint}"
        self._crew.add(job, first=True)

    def _send(self, worker: Worker, job: _Job) -> None:
        slots, size = self._slots.setdefault(worker, []), int(np.prod(job.shape))
        free = [slot for slot in slots if slot.free]
        fitting = [slot for slot in free if slot.shared.size >= size]
        slot = fitting[0] if fitting else self._new_slot(size)
        spare = [other for other in free if other is not slot][_SPARE:]
        keep = [other for other in slots if other not in spare]
        self._slots[worker] = keep if fitting else [*keep, slot]
        self._lent[job.number], slot.free = slot, False
        message = _Message(
            items=job.items,
            refused=self._refused,
            shape=job.shape,
            slot=slot.number,
            new=0 if fitting else size,
            keep=tuple(kept.number for kept in self._slots[worker]),
        )
        worker.pipe.send(message)
        if message.new:
            slot.shared.send(worker.pipe, worker.process.pid or 0)
            slot.shared.close_handle()

    def _new_slot(self, size: int) -> _Slot:
        self._slots_made += 1
        return _Slot(self._slots_made, size)


def _serve(pipe: Connection[Any, Any], pulse: Pulse, parcel: Parcel, seconds: float) -> None:
    """What a worker does until its pipe ends."""
    reader: Reader[Any] = parcel.unpack()
    reader.start()
    memory: dict[int, Shared] = {}
    pulse.rest()
    while True:
        message: _Message = pipe.recv()
        pulse.expect(seconds)
        if message.new:
            memory[message.slot] = Shared.receive(pipe, message.new)
        for number in memory.keys() - set(message.keep):
            del memory[number]
        shared = memory[message.slot]
        out = np.frombuffer(shared.memory, np.uint8, int(np.prod(message.shape)))
        read = functools.partial(
            reader.read, message.items, out.reshape(message.shape), pulse.beat, message.refused
        )
        answer(pipe, pulse, read)
