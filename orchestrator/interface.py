"""The MLflow UI of a store: what no job could deliver is brought in first, then it is served."""

from __future__ import annotations

import sys

from orchestrator.store import Store
from orchestrator.sync import deliver_runs


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
    wanted = [run_id for run_id in store.run_ids()[-last:] if _goes_to(store, run_id, uri)]
    for _, report in deliver_runs(store, wanted, uri):
        for problem in report.problems:
            print(f"warning: {problem}", file=sys.stderr)


def _goes_to(store: Store, run_id: str, uri: str) -> bool:
    tracking = store.read_run(run_id).get("tracking") or {}
    return tracking.get("uri") in (None, uri)
