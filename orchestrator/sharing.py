"""Which other runs use the stages of a run, and what depends on a stage; reads files only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster import fsio
from orchestrator.store import Store


def cancel_file_of(run_id: str, store: Store) -> Path:
    """The record that a person cancelled the run as a whole."""
    return store.run_dir(run_id) / "cancel.json"


def given_up(run: Mapping[str, Any], store: Store) -> bool:
    """Whether a person cancelled the run as a whole, and nobody submitted or resumed it since."""
    cancel = fsio.read_json_or_none(cancel_file_of(str(run["run_id"]), store))
    return cancel is not None and float(cancel["at"]) >= float(run.get("submitted_at", 0.0))


def other_runs(
    run_id: str, keys: Iterable[str], store: Store, *, wanted: bool = True
) -> dict[str, tuple[str, ...]]:
    """For each key of a stage the other runs that have it, oldest first; keys of none are left out.

    Args:
        run_id: the run that asks.
        keys: keys of its stages.
        store: where all lie.
        wanted: only runs that nobody has given up.
    """
    asked, found = set(keys), dict[str, tuple[str, ...]]()
    for other in store.run_ids() if asked else ():
        if other == run_id or (wanted and given_up(store.read_run(other), store)):
            continue
        plan = fsio.read_json_or_none(store.run_dir(other) / "plan.json") or {"stages": ()}
        for key in {str(entry["key"]) for entry in plan["stages"]} & asked:
            found[key] = (*found.get(key, ()), other)
    return found


def dependents(stage: str, entries: Iterable[Mapping[str, Any]]) -> set[str]:
    """The stage, its parts, and everything in its run that takes from them."""
    entries = list(entries)
    wanted = {stage, *(entry["name"] for entry in entries if entry.get("part_of") == stage)}
    for entry in entries:
        if wanted & set(entry["upstream"]):
            wanted.add(entry["name"])
    return wanted
