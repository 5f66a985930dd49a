"""Brings to MLflow what no job could deliver, and closes the runs of jobs that are gone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.decision import ACTIVE, Status
from orchestrator.lineage_graph import read_ancestry
from orchestrator.listing import statuses
from orchestrator.record import read_records
from orchestrator.store import Store
from tracking.ancestry import Ancestry, as_html

if TYPE_CHECKING:
    from cluster.contract import JobHandle
    from orchestrator.status import RunStatus
    from tracking.stagefiles import State
    from tracking.sync import RunSync


def deliver_runs(
    store: Store, run_ids: Sequence[str], uri: str | None = None, *, anew: bool = False
) -> Iterator[tuple[RunStatus, RunSync]]:
    """Deliver runs one after the other; each scheduler is asked once for all of them.

    A server that did not answer is not tried again for the runs after.

    Args:
        store: where they lie.
        run_ids: which ones, oldest first, so that a stage of several runs is a child of the first.
        uri: where runs go that name no server; by default a database in the store.
        anew: send everything, whatever was delivered before.
    """
    from tracking.server import default_uri

    away: dict[str, RunSync] = {}
    ancestry = read_ancestry(store)
    for run in statuses(store, run_ids):
        tracking = store.read_run(run.run_id).get("tracking") or {}
        target = str(tracking.get("uri") or uri or default_uri(store.root))
        if target in away:
            report = replace(away[target], run_id=run.run_id)
        else:
            report = deliver(store, run, ancestry, target, anew=anew)
        if report.away:
            away[target] = report
        yield run, report


def deliver(
    store: Store,
    run: RunStatus,
    ancestry: Ancestry,
    uri: str | None = None,
    *,
    anew: bool = False,
) -> RunSync:
    """Deliver one run and close what is over, where its tracking is on.

    Args:
        store: where it lies.
        run: its status; what the scheduler said of each stage becomes the MLflow run's status.
        ancestry: what came from what in that store; the run's part becomes a page of its parent.
        uri: a server where the run names none.
        anew: send everything, whatever was delivered before.
    """
    from tracking.sync import sync_run

    os.umask(0o077)  # MLflow copies artifacts with the modes of this process
    ids = [id for stage in run.stages if (id := Path(stage.folder).name) in ancestry.items]
    shown = ancestry.around(ids, ["up", "down"])
    page = as_html(f"Lineage of {run.run_id}", ancestry, ids, shown)
    return sync_run(
        store.root,
        run.run_id,
        states=states_of(store, run),
        uri=uri,
        anew=anew,
        pages={"lineage.html": page},
    )


def deliver_finished(store: Store, run: RunStatus) -> RunSync | None:
    """Deliver a run that has just ended on this machine; in mode offline that waits for `sync`."""
    tracking = store.read_run(run.run_id).get("tracking") or {}
    return None if tracking.get("mode") == "offline" else deliver(store, run, read_ancestry(store))


def states_of(store: Store, run: RunStatus) -> dict[str, State]:
    """What each stage is doing, in the words that tracking takes."""
    from tracking.stagefiles import State

    ended = _scheduler_reasons(store, run)
    states = {}
    for stage in run.stages:
        words = [ended.get(stage.name, ""), stage.told.reason]
        # Whose result it is depends on the run that asks, and the stage has one MLflow run.
        reason = "" if stage.status is Status.SUCCEEDED else "; ".join(filter(None, words))
        states[stage.name] = State(
            name=str(stage.status), reason=reason, final=stage.status not in ACTIVE
        )
    return states


def _scheduler_reasons(store: Store, run: RunStatus) -> dict[str, str]:
    """What the scheduler still knows of the end of jobs that are lost, such as NODE_FAIL."""
    from cluster.contract import SchedulerError
    from orchestrator.facts import query_all

    if run.scheduler_error or not any(stage.status is Status.LOST for stage in run.stages):
        return {}
    lost = {stage.name for stage in run.stages if stage.status is Status.LOST}
    handles: dict[str, JobHandle] = {
        record.plan["name"]: record.handle
        for record in read_records(run.run_id, store)
        if record.plan["name"] in lost and record.handle is not None
    }
    try:
        states = query_all(list(handles.values()))
    except (SchedulerError, ImportError, ValueError):
        return {}
    return {
        name: f"scheduler: {states[handle].reason}"
        for name, handle in handles.items()
        if handle in states and states[handle].reason
    }
