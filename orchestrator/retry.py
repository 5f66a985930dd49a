"""Starts one stage anew: what it has come to is moved aside, never deleted, and it is submitted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import fsio
from cluster.contract import JobHandle, Phase
from orchestrator.errors import Refused
from orchestrator.explain import Commands
from orchestrator.facts import live_handle, query_all
from orchestrator.sharing import dependents, other_runs
from orchestrator.store import StageDir, Store

# In this order: without its result the stage is not finished, whatever happens in between. Logs,
# metrics and records of attempts stay: they are history, and the next attempt has a number of its
# own.
_MOVED = ("result.json", "checkpoints", "outputs", "progress.json")
_CLEARED = re.compile(r"cleared-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Clearing:
    """What a stage has come to, that another beginning would leave behind.

    Attributes:
        name: the stage.
        folder: its folder.
        finished: it has a result.
        steps: of its checkpoints.
        num_bytes: size of what is moved.
        shared: other runs that use the stage.
        stale: finished stages, as RUN:STAGE, that were made from its result.
        aside: the folder that what it has goes to.
    """

    name: str
    folder: StageDir
    finished: bool
    steps: tuple[int, ...]
    num_bytes: int
    shared: tuple[str, ...]
    stale: tuple[str, ...]
    aside: Path

    @property
    def empty(self) -> bool:
        """Whether there is nothing to move."""
        return not (self.finished or self.num_bytes)


def look(run_id: str, stage: str, store: Store) -> Clearing:
    """Find what clearing a stage would move; asks the scheduler once, changes nothing.

    Raises:
        Refused: its job, or one that reads what it made, waits or runs.
    """
    entries = {entry["name"]: entry for entry in store.read_plan(run_id)["stages"]}
    folder = store.stage_dir(entries[stage]["kind"], entries[stage]["key"])
    key = str(entries[stage]["key"])
    shared = other_runs(run_id, [key], store, wanted=False).get(key, ())
    consumers = dict(_consumers((run_id, *shared), key, store))
    _refuse_live(run_id, stage, folder, consumers, store)
    there = [folder.path / name for name in _MOVED]
    return Clearing(
        name=stage,
        folder=folder,
        finished=folder.result() is not None,
        steps=tuple(sorted(_steps(folder))),
        num_bytes=sum(map(_size, there)),
        shared=shared,
        stale=tuple(name for name, one in consumers.items() if one.result() is not None),
        aside=folder.path / f"cleared-{_next_number(folder)}",
    )


def clear(clearing: Clearing) -> None:
    """Move it aside. Done again after it was interrupted, it goes on."""
    fsio.make_dir(clearing.aside)
    for name in _MOVED:
        source = clearing.folder.path / name
        if source.exists():
            source.rename(clearing.aside / name)
    fsio.make_dir(clearing.folder.outputs)


def _consumers(run_ids: tuple[str, ...], key: str, store: Store) -> Iterator[tuple[str, StageDir]]:
    """Everything in these runs that takes from the stage with this key, by RUN:STAGE."""
    seen = set()
    for run_id in run_ids:
        entries = store.read_plan(run_id)["stages"]
        for mine in [entry["name"] for entry in entries if entry["key"] == key]:
            behind = dependents(mine, entries)
            for entry in entries:
                takes = entry["name"] in behind and entry["name"] != mine
                if takes and entry.get("part_of") != mine and entry["key"] not in seen:
                    seen.add(entry["key"])
                    yield f"{run_id}:{entry['name']}", store.stage_dir(entry["kind"], entry["key"])


def _refuse_live(
    run_id: str, stage: str, folder: StageDir, consumers: dict[str, StageDir], store: Store
) -> None:
    named = {f"{run_id}:{stage}": folder, **consumers}
    handles: dict[str, JobHandle] = {
        name: handle
        for name, one in named.items()
        if one.result() is None and (handle := live_handle(one)) is not None
    }
    states = query_all(list(handles.values()))
    alive = [name for name, handle in handles.items() if states[handle].phase is not Phase.GONE]
    if alive:
        run, _, name = alive[0].partition(":")
        command = Commands.of(run, store).cancel(name)
        jobs = ", ".join(f"{one} (job {handles[one].job_id})" for one in alive)
        raise Refused(f"there are jobs that work with {stage}: {jobs}; first `{command}`")


def _steps(folder: StageDir) -> Iterator[int]:
    for path in folder.checkpoints.glob("step_*/manifest.json"):
        digits = path.parent.name.removeprefix("step_")
        if digits.isdecimal():
            yield int(digits)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def _next_number(folder: StageDir) -> int:
    names = [path.name for path in folder.path.iterdir()] if folder.path.is_dir() else []
    found = [int(match[1]) for name in names if (match := _CLEARED.fullmatch(name))]
    return max(found, default=0) + 1
