"""Stops a run or a part of it: marked first, children before parents, nothing left in the queue."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cluster import fsio
from cluster.contract import Executor, JobHandle, Phase, SchedulerError
from orchestrator.facts import live_handle
from orchestrator.sharing import cancel_file_of, dependents, other_runs
from orchestrator.store import SCHEMA_VERSION, StageDir, Store

_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Target:
    """A stage whose job waits or runs; `shared` are other runs that use it."""

    name: str
    folder: StageDir
    handle: JobHandle
    shared: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cancellation:
    """What is to be stopped, dependents first; `whole` says that it is the run and no part of it.

    `unreachable` is why the scheduler could not be asked what still lives: then every stage
    without a result is a target.
    """

    run_id: str
    targets: tuple[Target, ...]
    whole: bool
    unreachable: str = ""

    @property
    def shared(self) -> Mapping[str, tuple[str, ...]]:
        """Of each stage that other runs use as well those runs."""
        return {target.name: target.shared for target in self.targets if target.shared}


def look(run_id: str, store: Store, executor: Executor, stage: str | None = None) -> Cancellation:
    """Find the stages whose jobs live; asks the scheduler once, changes nothing.

    With `stage`, only that stage, its parts and what depends on it.
    """
    entries = store.read_plan(run_id)["stages"]
    names = None if stage is None else dependents(stage, entries)
    found: dict[str, tuple[str, StageDir, JobHandle]] = {}
    for entry in reversed(entries):
        folder = store.stage_dir(entry["kind"], entry["key"])
        if (names is not None and entry["name"] not in names) or folder.result() is not None:
            continue
        handle = live_handle(folder)
        if handle is not None:
            found[entry["name"]] = (str(entry["key"]), folder, handle)
    handles, unreachable = [handle for _, _, handle in found.values()], ""
    try:
        alive = _alive(handles, executor)
    except SchedulerError as error:
        alive, unreachable = handles, str(error)
    living = {name: one for name, one in found.items() if one[2] in alive}
    shared = other_runs(run_id, [key for key, _, _ in living.values()], store)
    targets = (
        Target(name=name, folder=folder, handle=handle, shared=shared.get(key, ()))
        for name, (key, folder, handle) in living.items()
    )
    return Cancellation(
        run_id=run_id, targets=tuple(targets), whole=stage is None, unreachable=unreachable
    )


def cancel(
    cancellation: Cancellation, store: Store, executor: Executor, keep: Collection[str] = ()
) -> list[str]:
    """Stop the targets but those in `keep`; returns their names.

    Raises:
        SchedulerError: it cannot be reached. What was marked stays so: no job starts again.
    """
    targets = [target for target in cancellation.targets if target.name not in keep]
    who = {"user": getpass.getuser(), "host": socket.gethostname(), "at": time.time()}
    record = {"schema_version": SCHEMA_VERSION, **who}
    for target in targets:
        # Written before the signal: a job that ends of it must not start again.
        fsio.write_json(target.folder.cancel_file, record)
    if cancellation.whole:
        fsio.write_json(cancel_file_of(cancellation.run_id, store), record)
    try:
        _stop(targets, executor)
    except SchedulerError as error:
        names = ", ".join(target.name for target in targets)
        raise SchedulerError(
            f"{error}\n  {names}: noted in the store, so none of them starts another attempt; to"
            " end what runs now, repeat the command when the scheduler answers"
        ) from error
    return [target.name for target in targets]


def _stop(targets: Sequence[Target], executor: Executor) -> None:
    """Cancel the jobs, and successors that were queued while this went on."""
    stopped: set[JobHandle] = set()
    for _ in range(_ROUNDS):
        now = [_newest(target) for target in targets]
        new = [handle for handle in dict.fromkeys(now) if handle not in stopped]
        if not new:
            return
        executor.cancel(new)
        stopped.update(new)


def _newest(target: Target) -> JobHandle:
    """The job that carries the stage now: a successor may have been recorded meanwhile."""
    submission = target.folder.latest_submission()
    handle = submission.handle if submission is not None else None
    return handle or target.handle


def _alive(handles: Sequence[JobHandle], executor: Executor) -> set[JobHandle] | list[JobHandle]:
    states = executor.query(handles) if handles else {}
    return {handle for handle, state in states.items() if state.phase is not Phase.GONE}
