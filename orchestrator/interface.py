"""The MLflow UI of a store: what no job could deliver is brought in first, then it is served."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.decision import ACTIVE
from orchestrator.listing import runs
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.status import RunStatus
    from tracking.stagefiles import State


def tracking_uri(store: Store, run_id: str | None) -> str:
    """Where a run's records are; without one, or without a server, the store's own database."""
    from tracking.server import default_uri

    tracking = store.read_run(run_id).get("tracking") or {} if run_id else {}
    return str(tracking.get("uri") or default_uri(store.root))


def bring_in(store: Store, uri: str, last: int = 20) -> None:
    """Deliver to `uri` what the last runs have recorded and nobody has shipped yet.

    Jobs of a cluster without an MLflow server ship nothing, because they must not share an SQLite
    file over the network; and a killed job leaves the end of its records behind.
    """
    for run in reversed(runs(store, last)):
        tracking = store.read_run(run.run_id).get("tracking") or {}
        if tracking.get("uri") in (None, uri):
            deliver(store, run, uri)


def deliver(store: Store, run: RunStatus, uri: str | None = None) -> None:
    """Deliver one run and close what is over, where its tracking is on; problems are only told."""
    from tracking.sync import sync_run

    os.umask(0o077)  # MLflow copies artifacts with the modes of this process
    _say(sync_run(store.root, run.run_id, states=states_of(run), uri=uri).problems)


def states_of(run: RunStatus) -> dict[str, State]:
    """What each stage is doing, in the words that tracking takes."""
    from tracking.stagefiles import State

    return {
        stage.name: State(
            name=str(stage.status), reason=stage.told.reason, final=stage.status not in ACTIVE
        )
        for stage in run.stages
    }


def _say(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
