"""Finds the stages of other runs that an input names as `run:<run_id>:<stage>.<artifact>`."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.planned import ExternalStage
from orchestrator.store import Store


def external_stages(store: Store) -> Callable[[str, str], ExternalStage | None]:
    """A function that looks up a stage by run id and stage name; for `make_plan`.

    It answers None where the store has no such run or the run no such stage.
    """

    def find(run_id: str, stage: str) -> ExternalStage | None:
        try:
            entries = store.read_plan(run_id)["stages"]
        except FileNotFoundError:
            return None
        for entry in entries:
            if entry["name"] == stage:
                kind, key = str(entry["kind"]), str(entry["key"])
                finished = store.stage_dir(kind, key).result() is not None
                return ExternalStage(kind=kind, key=key, finished=finished)
        return None

    return find
