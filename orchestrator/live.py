"""A run while it goes on: progress bars on a terminal, one line for each change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from orchestrator.decision import ACTIVE, Status, overall
from orchestrator.groups import grouped, name_of
from orchestrator.status import RunStatus, StageStatus
from orchestrator.status_view import group_details
from orchestrator.view import STYLES

Show = Callable[[RunStatus], None]


@contextmanager
def display(stream: IO[str]) -> Iterator[Show]:
    """Yield a function that shows a run's newest status; the last picture stays on the terminal."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        yield Lines(stream).show
        return
    with Progress(
        TextColumn("{task.description}"),
        TextColumn("{task.fields[status]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[details]}"),
        console=console,
        auto_refresh=False,
    ) as progress:
        yield Bars(progress).show


class Bars:
    """A bar for each stage, full when it succeeded; the parts of one share a bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, run: RunStatus) -> None:
        """Draw the run as it is now."""
        for group in grouped(run.stages):
            name, status = name_of(group), overall(stage.status for stage in group)
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(escape(name), status="", details="")
            style = STYLES.get(status, "dim")
            self._progress.update(
                self._tasks[name],
                completed=100 * sum(map(share, group)) / len(group),
                total=100,
                status=f"[{style}]{status}[/]",
                details=escape(group_details(group)),
            )
        self._progress.refresh()


class Lines:
    """A line when a stage changes, and from time to time while it goes on."""

    def __init__(
        self,
        stream: IO[str],
        every_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._every_seconds = every_seconds
        self._clock = clock
        self._said: dict[str, tuple[Status, str, float]] = {}

    def show(self, run: RunStatus) -> None:
        """Print what is new since the last call."""
        for group in grouped(run.stages):
            name, status = name_of(group), overall(stage.status for stage in group)
            text, now = group_details(group), self._clock()
            before, said, at = self._said.get(name, (None, "", 0.0))
            changed = status is not before
            moved = status in ACTIVE and text != said and now - at >= self._every_seconds
            if changed or moved:
                print(f"{name}: {status}  {text}".rstrip(), file=self._stream, flush=True)
                self._said[name] = (status, text, now)


def share(stage: StageStatus) -> float:
    """How much of a stage is done, from 0 to 1, by its steps."""
    if stage.status is Status.SUCCEEDED:
        return 1.0
    progress = stage.progress or {}
    steps = progress.get("steps") or 0
    return min(1.0, progress.get("step", 0) / steps) if steps else 0.0
