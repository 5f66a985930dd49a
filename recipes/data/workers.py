"""Functions applied to files by processes of their own: a crash or a hang costs only its file."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from recipes.data.crew import ATTEMPTS, Crew, Reply, Worker, answer, unwrap
from recipes.data.shared import Pulse

Item = TypeVar("Item")
Result = TypeVar("Result")


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

    Args:
        function: importable at module level.
        items: picklable.
        workers: processes.
        seconds: an item that takes longer is killed.
        crashed: result of an item that ended its process twice.
        on_result: told the number of finished items after each; may raise to stop.

    Returns:
        One result an item, in order.
    """
    results: dict[int, Result] = {}
    each = each_expendable(function, items, workers=workers, seconds=seconds, crashed=crashed)
    with contextlib.closing(each):
        for number, result in each:
            results[number] = result
            on_result(len(results))
    return [results[number] for number in range(len(items))]


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
        crashed: result of an item that ended its process twice.
        on_wait: called at least once a second; may raise to stop.

    Yields:
        The number of an item and its result, in the order in which they finish.
    """
    tries: Counter[int] = Counter()
    crew: Crew[int] = Crew(
        min(workers, len(items)),
        lambda: Worker("recipes.data.probe", _serve_items, function, seconds),
        lambda worker, number: worker.pipe.send((number, items[number])),
    )
    try:
        for number in range(len(items)):
            crew.add(number)
        left = len(items)
        while left:
            events = crew.wait()
            on_wait()
            for event in events:
                tries[event.job] += 1
                if isinstance(event, Reply):
                    yield event.job, unwrap(event.content)
                elif tries[event.job] == ATTEMPTS:
                    yield event.job, crashed(items[event.job])
                else:
                    crew.add(event.job, first=True)
                    continue
                left -= 1
    finally:
        crew.close()


def _serve_items(
    pipe: Connection[Any, Any], pulse: Pulse, function: Callable[[Any], object], seconds: int
) -> None:
    pulse.rest()
    while True:
        number, item = pipe.recv()
        pulse.beat(number, seconds)
        answer(pipe, pulse, functools.partial(function, item))
