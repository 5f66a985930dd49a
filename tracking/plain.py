"""Lets plain `mlflow.log_*` calls in a stage's own code land in the stage's run.

Nothing here imports MLflow or waits: a finder stands in the way of the first `import mlflow` of the
process, and only a stage that uses it waits until its run is known.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from cluster import fsio
from tracking.backend import CLIENT_DEFAULTS
from tracking.outbox import Outbox

_LOG = logging.getLogger(__name__)
_PATIENCE_SECONDS = 30.0


class _BeforeMlflow(MetaPathFinder):
    """Finds nothing; does something once, before `mlflow` is imported for the first time."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare = prepare

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for every module, after the preparation where it is MLflow."""
        if fullname == "mlflow" and self in sys.meta_path:
            sys.meta_path.remove(self)
            self._prepare()
        return None


def aim_at_run(stage_dir: Path, rank: int, uri: str, outbox: Outbox | None) -> None:
    """From now on, what this process imports as `mlflow` writes into the run of its stage.

    Where there is no run to write to (mode offline, no server, a server that is away, every rank
    but 0), it writes into a database of the rank in the stage's folder, `own-mlflow/rank<n>.db`:
    such a call neither fails nor waits, and nothing of it is published. An address that the user's
    own environment names is left alone.

    Args:
        stage_dir: the stage.
        rank: of this process.
        uri: the server or database that the stage's outbox delivers to; empty without one.
        outbox: the one that this process started, if it did.
    """
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    if chosen is None or chosen == uri:
        sys.meta_path.insert(0, _BeforeMlflow(lambda: _prepare(stage_dir, rank, uri, outbox)))


def _prepare(stage_dir: Path, rank: int, uri: str, outbox: Outbox | None) -> None:
    for name, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    run_id = outbox.run_id(_PATIENCE_SECONDS) if outbox is not None else ""
    if run_id:
        os.environ.update({"MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": run_id})
        return
    database = fsio.make_dir(stage_dir.absolute() / "own-mlflow") / f"rank{rank}.db"
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    os.environ.pop("MLFLOW_RUN_ID", None)
    if rank == 0:
        _LOG.info("mlflow calls of this stage go to %s: no server is in reach of it", database)
