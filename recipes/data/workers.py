"""Worker processes that read videos: deaf to the stop signals, and expendable."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import resource
import signal
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from recipes.contract import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

_live: weakref.WeakSet[Any] = weakref.WeakSet()

_LOADER_TIMEOUT_SECONDS = 600.0
_MEMORY_BYTES = 16 << 30  # address space of a process that opens files nobody has checked yet


def load_in_order(
    dataset: Any, batches: Iterable[Sequence[Any]], workers: int, pin_memory: bool = False
) -> Iterator[Any]:
    """Yield `dataset.__getitems__(batch)` for each of `batches`, read ahead in `workers` processes.

    With `workers` 0 this process reads. An `InputError` of a worker is raised here with its own
    message. Workers come from a fork server: decord hangs in a process forked after it was used,
    and a plain fork would copy the threads and the device state of training.
    """
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_as_is,
        num_workers=workers,
        multiprocessing_context=_context("recipes.data.loader") if workers else None,
        worker_init_fn=_start_reader,
        timeout=_LOADER_TIMEOUT_SECONDS if workers else 0.0,
        pin_memory=pin_memory,
    )
    with _stop_signals_held():
        read: Any = iter(loader)
    if workers:
        _end_with_this_process(read)
    try:
        while (batch := next(read, None)) is not None:
            yield batch
    except InputError as error:  # a worker's error carries its traceback in the message
        raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from error
    finally:
        if workers:
            read._shutdown_workers()  # not left to the collector: a traceback may hold `read`


def map_expendable(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    seconds: int,
    crashed: Callable[[Item], Result],
    on_result: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Apply `function` to each item in other processes; a crash costs its item, not the rest.

    A decoder fed with damaged files may crash or hang. The items in work when a process dies are
    tried again, one to a process; those that kill it again get `crashed(item)`.

    Args:
        function: importable at module level.
        items: picklable.
        workers: processes.
        seconds: an item that takes longer is killed.
        crashed: result of an item that killed its process.
        on_result: told the number of finished items after each; may raise to stop.

    Returns:
        One result an item, in order.
    """
    results: dict[int, Result] = {}
    todo = deque(range(len(items)))
    while todo:
        suspects = _run(function, items, todo, results, workers, seconds, on_result)
        for number in suspects:
            if _run(function, items, deque([number]), results, 1, seconds, on_result):
                results[number] = crashed(items[number])
                on_result(len(results))
    return [results[number] for number in range(len(items))]


def _run(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    todo: deque[int],
    results: dict[int, Result],
    workers: int,
    seconds: int,
    on_result: Callable[[int], None],
) -> list[int]:
    """Work on `todo` until it is empty or a process dies; the numbers in work then."""
    running: deque[tuple[int, Future[Result]]] = deque()
    with ProcessPoolExecutor(workers, _context("recipes.data.probe"), _start_expendable) as pool:
        try:
            while todo or running:
                while todo and len(running) < 2 * workers:
                    with _stop_signals_held():  # the first call starts the processes
                        job = pool.submit(_call, function, items[todo[0]], seconds)
                    running.append((todo.popleft(), job))
                results[running[0][0]] = running[0][1].result()
                running.popleft()
                on_result(len(results))
        except BrokenProcessPool:
            for number, job in running:
                if job.done() and job.exception() is None:
                    results[number] = job.result()
            return [number for number, _ in running if number not in results]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return []


def each_expendable(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    seconds: int,
    crashed: Callable[[Item], Result],
    on_wait: Callable[[], None] = lambda: None,
) -> Generator[tuple[int, Result], None, None]:
    """Apply `function` to each item in other processes and yield results as they come.

    Crashes are dealt with as in `map_expendable`. Close the generator (`contextlib.closing`) to
    stop early: items in work are then given up at once, however long they would have taken.

    Args:
        function: importable at module level.
        items: picklable.
        workers: processes.
        seconds: an item that takes longer is killed.
        crashed: result of an item that killed its process.
        on_wait: called at least once a second; may raise to stop.

    Yields:
        The number of an item and its result, in the order in which they finish.
    """
    todo = deque(range(len(items)))
    while todo:
        suspects = yield from _each(function, items, todo, workers, seconds, on_wait)
        for number in suspects:
            alone = deque([number])
            if (yield from _each(function, items, alone, 1, seconds, on_wait)):
                yield number, crashed(items[number])


def _each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    todo: deque[int],
    workers: int,
    seconds: int,
    on_wait: Callable[[], None],
) -> Generator[tuple[int, Result], None, list[int]]:
    """Work on `todo` until it is empty or a process dies; returns the numbers in work then."""
    running: dict[Future[Result], int] = {}
    with ProcessPoolExecutor(workers, _context("recipes.data.probe"), _start_expendable) as pool:
        try:
            while todo or running:
                while todo and len(running) < 2 * workers:
                    with _stop_signals_held():  # the first call starts the processes
                        job = pool.submit(_call, function, items[todo[0]], seconds)
                    running[job] = todo.popleft()
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                on_wait()
                for job in done:
                    yield running[job], job.result()
                    del running[job]
        except BrokenProcessPool:
            for job in [job for job in running if job.done() and job.exception() is None]:
                yield running.pop(job), job.result()
            return sorted(running.values())
        except BaseException:
            for process in list(pool._processes.values()):
                process.kill()
            raise
    return []


def _call(function: Callable[[Item], Result], item: Item, seconds: int) -> Result:
    signal.alarm(seconds)  # not handled: ends the process even inside a decoder
    try:
        return function(item)
    finally:
        signal.alarm(0)


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


def _end_with_this_process(read: Any) -> None:
    """Kill the workers of `read` when Python exits with it still alive, as after an exception.

    multiprocessing would send them SIGTERM, which they ignore, and wait for ever.
    """
    _watch_exit()
    _live.add(read)


@functools.cache
def _watch_exit() -> None:
    atexit.register(_kill_live)  # runs before multiprocessing's own, which is registered by now


def _kill_live() -> None:
    for read in list(_live):
        for worker in read._workers:
            worker.kill()


def _ignore_signals() -> None:
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _start_reader(_: int) -> None:
    import decord

    _ignore_signals()
    decord.logging.set_level(decord.logging.QUIET)


def _start_expendable() -> None:
    _ignore_signals()
    with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _as_is(batch: Any) -> Any:
    return batch
