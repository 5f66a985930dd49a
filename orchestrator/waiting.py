"""Staying with a run: until it is done, showing how far it is; the run never depends on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from cluster.contract import Executor, JobHandle, JobState, SchedulerError
from orchestrator.decision import ACTIVE, Status
from orchestrator.explain import Commands
from orchestrator.live import Show, display
from orchestrator.record import read_records
from orchestrator.status import RunStatus, read_status, status_from
from orchestrator.store import Store

_SHOW_SECONDS = 1.0
_POLL_SECONDS = {"local": 1.0}
_CLUSTER_POLL_SECONDS = 5.0
_RETRY_SECONDS = 10.0


def wait_for(
    run_id: str,
    store: Store,
    executor: Executor,
    handles: Sequence[JobHandle],
    stream: IO[str],
) -> RunStatus:
    """Wait until the jobs are gone, showing progress; returns how the run stands then.

    A local run ends with this process, so that an interrupt stops it at a checkpoint; on a cluster
    it goes on. Either way it is said, once, and the interrupt is raised again.

    Raises:
        KeyboardInterrupt: the person does not want to wait any longer.
    """
    with display(stream) as show:
        try:
            _wait_for_all(executor, handles, run_id, store, _ticker(run_id, store, show))
        except KeyboardInterrupt:
            show(read_status(run_id, store, executor))
            print(_after_interrupt(Commands.of(run_id, store), executor), file=sys.stderr)
            raise
        status = read_status(run_id, store, executor)
        show(status)
    return status


def _wait_for_all(
    executor: Executor,
    handles: Sequence[JobHandle],
    run_id: str,
    store: Store,
    on_tick: Callable[[Mapping[JobHandle, JobState]], None],
) -> None:
    """Wait for the jobs, and for those that were queued meanwhile to go on where one failed."""
    open_ones, seen = list(handles), set(handles)
    while open_ones:
        _wait(executor, open_ones, on_tick)
        now = [record.handle for record in read_records(run_id, store)]
        open_ones = [one for one in now if one is not None and one.before and one not in seen]
        seen.update(open_ones)


def _wait(
    executor: Executor,
    handles: Sequence[JobHandle],
    on_tick: Callable[[Mapping[JobHandle, JobState]], None],
) -> None:
    """`Executor.wait`, which outlives a scheduler that does not answer for a while."""
    said = False
    while True:
        try:
            executor.wait(handles, on_tick)
            return
        except SchedulerError as error:
            if executor.name == "local":
                raise
            if not said:
                print(f"the scheduler does not answer, still trying: {error}", file=sys.stderr)
            said = True
            time.sleep(_RETRY_SECONDS)


def _ticker(
    run_id: str, store: Store, show: Show
) -> Callable[[Mapping[JobHandle, JobState]], None]:
    """Shows the run about once a second, however often the executor ticks."""
    shown = -_SHOW_SECONDS

    def tick(states: Mapping[JobHandle, JobState]) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _SHOW_SECONDS:
            show(status_from(run_id, store, states))
            shown = time.monotonic()

    return tick


def _after_interrupt(commands: Commands, executor: Executor) -> str:
    if executor.name == "local":
        return (
            "Stopped. What was trained is saved as far as its last checkpoint; submitting the"
            f" recipe again, or `{commands.resume()}`, continues there."
        )
    return (
        "No longer waiting. The jobs go on: nothing was cancelled."
        f"\n  {commands.status()}\n  {commands.cancel()}"
    )


def watch(run_id: str, store: Store, executor: Executor | None, stream: IO[str]) -> RunStatus:
    """Show a run's status again and again until nothing of it is queued or running."""
    with display(stream) as show:
        while True:
            status = read_status(run_id, store, executor)
            show(status)
            if status.done:
                return status
            time.sleep(_interval(executor))


def stage_is_done(
    run_id: str,
    stage: str,
    store: Store,
    executor: Executor | None,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], bool]:
    """A question that may be asked often: the scheduler is asked only every few seconds."""
    asked, answer = -float("inf"), False

    def done() -> bool:
        nonlocal asked, answer
        if clock() - asked >= _interval(executor):
            status = read_status(run_id, store, executor)
            mine = [one for one in status.stages if one.name == stage]
            asked, answer = clock(), all(one.status not in ACTIVE for one in mine)
        return answer

    return done


def succeeded(status: RunStatus) -> bool:
    """Whether every stage of the run has its result."""
    return status.status is Status.SUCCEEDED


def _interval(executor: Executor | None) -> float:
    return _POLL_SECONDS.get(executor.name if executor else "", _CLUSTER_POLL_SECONDS)
