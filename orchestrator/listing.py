"""What there is: runs of a store, and everything a recipe can name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence

from cluster.contract import SchedulerError
from cluster.fsio import DamagedFile
from orchestrator.naming import shipped_recipes
from orchestrator.record import read_records
from orchestrator.shards import RECIPE_KINDS
from orchestrator.status import RunStatus, read_statuses
from orchestrator.store import Store


def runs(store: Store, last: int | None) -> list[RunStatus]:
    """The last runs, newest first; each scheduler is asked once for all of them.

    A run with a damaged file is passed over, with a warning on stderr.

    Args:
        store: where they lie.
        last: how many; None for all.
    """
    ids = store.run_ids()
    wanted = ids if last is None else ids[-last:]
    try:
        return statuses(store, wanted)[::-1]
    except DamagedFile:
        return statuses(store, [one for one in wanted if _readable(store, one)])[::-1]


def _readable(store: Store, run_id: str) -> bool:
    try:
        store.read_run(run_id)
        read_records(run_id, store)
    except DamagedFile as error:
        print(f"warning: {run_id} is left out: {error}", file=sys.stderr)
        return False
    return True


def statuses(store: Store, run_ids: Sequence[str]) -> list[RunStatus]:
    """The status of these runs, in order; each scheduler is asked once for all of them."""
    from cluster.executors import make

    by_executor: dict[str, list[str]] = {}
    for run_id in run_ids:
        by_executor.setdefault(str(store.read_run(run_id)["executor"]), []).append(run_id)
    found: dict[str, RunStatus] = {}
    for name, group in by_executor.items():
        try:
            executor = make(name)
        except (ValueError, ImportError, SchedulerError):
            executor = None
        found.update({run.run_id: run for run in read_statuses(group, store, executor)})
    return [found[run_id] for run_id in run_ids]


def named(what: str) -> list[tuple[str, str]]:
    """Name and description of all recipes, stages, methods, backbones or datasets."""
    from recipes import catalog

    if what == "recipes":
        return shipped_recipes()
    tables: Mapping[str, Mapping[str, catalog.Entry]] = {
        "stages": {kind: catalog.STAGES[kind] for kind in RECIPE_KINDS},
        "methods": catalog.METHODS,
        "backbones": catalog.BACKBONES,
        "datasets": catalog.DATASETS,
    }
    return [(name, _about(entry.config)) for name, entry in tables[what].items()]


def _about(config: str) -> str:
    """First line of the docstring of a config class."""
    from recipes.catalog import load

    return (inspect.getdoc(load(config)) or "").partition("\n")[0]
