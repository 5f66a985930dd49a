"""Why a stage was not reused: what of its identity differs from the newest earlier run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import fsio
from orchestrator.identity import code_closure, code_modules, without
from orchestrator.store import Store

_ABSENT = "(absent)"


@dataclass(frozen=True, kw_only=True)
class Changed:
    """One field of a configuration, or one input, then and now."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} {_short(self.old)} -> {_short(self.new)}"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What tells a stage from the one of the same name in an earlier run of its recipe.

    Attributes:
        run: the earlier run.
        fields: of its configuration, those that are in its key.
        inputs: slots whose upstream has another identity.
        code: files of code that differ, relative to the code's folder.
        unknown: why nothing, or not all, could be compared.
    """

    run: str
    fields: tuple[Changed, ...] = ()
    inputs: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    unknown: str = ""

    def __str__(self) -> str:
        parts = [str(field) for field in self.fields]
        parts += [f"input {slot} is another one" for slot in self.inputs]
        parts += [f"code: {', '.join(self.code)}"] if self.code else []
        parts += [self.unknown] if self.unknown else []
        return "; ".join(parts)


def difference(run_id: str, stage: str, store: Store) -> Difference | None:
    """Compare a stage with the newest earlier run of its recipe that has one of its name.

    Returns:
        None where there is no such run, or where the stage there is the same one.
    """
    now = _entry(run_id, stage, store)
    for earlier in _earlier(run_id, store):
        then = _entry(earlier, stage, store)
        if then is None or now is None:
            continue
        return None if then["key"] == now["key"] else _compare(earlier, then, run_id, now, store)
    return None


def _earlier(run_id: str, store: Store) -> Iterator[str]:
    """Runs of the same recipe that were submitted first before this one, newest first."""
    recipe, before = store.read_run(run_id)["recipe"], True
    for other in reversed(store.run_ids()):
        if other == run_id:
            before = False
        elif not before and _recipe(other, store) == recipe:
            yield other


def _recipe(run_id: str, store: Store) -> str | None:
    """None where its file is damaged, which `list` tells."""
    try:
        return str(store.read_run(run_id)["recipe"])
    except fsio.DamagedFile:
        return None


def _entry(run_id: str, stage: str, store: Store) -> Mapping[str, Any] | None:
    entries = store.read_plan(run_id)["stages"]
    return next((entry for entry in entries if entry["name"] == stage), None)


def _compare(
    earlier: str, then: Mapping[str, Any], run_id: str, now: Mapping[str, Any], store: Store
) -> Difference:
    if then["kind"] != now["kind"]:
        kinds = Changed(field="kind", old=then["kind"], new=now["kind"])
        return Difference(run=earlier, fields=(kinds,))
    old, new = (store.stage_dir(one["kind"], one["key"]).stage() for one in (then, now))
    if old is None or new is None:
        return Difference(run=earlier, unknown="the folder of one of them is gone")
    fields, inputs = tuple(_fields(now["kind"], old, new)), tuple(_inputs(old, new))
    code = tuple(_code(now["kind"], new["config"], _root(earlier, store), _root(run_id, store)))
    found = Difference(run=earlier, fields=fields, inputs=inputs, code=code)
    if fields or inputs or code:
        return found
    why = "configuration, inputs and code are equal: the content of the lists of its data differs"
    return Difference(run=earlier, unknown=f"{why}, or its version")


def _fields(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Changed]:
    from orchestrator.schema import config_class

    outside = tuple(config_class(kind).outside_key())
    before, after = (dict(_flat(without(one["config"], outside))) for one in (old, new))
    for name in dict.fromkeys([*after, *before]):
        if before.get(name, _ABSENT) != after.get(name, _ABSENT):
            yield Changed(field=name, old=before.get(name, _ABSENT), new=after.get(name, _ABSENT))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _inputs(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Slots whose artifacts come from stages with another key, or files with another digest."""

    def identities(spec: Mapping[str, Any], slot: str) -> list[str]:
        found = spec.get("inputs", {}).get(slot, ())
        return sorted(f"{one['artifact']} {one.get('key') or one.get('sha256')}" for one in found)

    for slot in dict.fromkeys([*new.get("inputs", {}), *old.get("inputs", {})]):
        if identities(old, slot) != identities(new, slot):
            yield slot


def _code(
    kind: str, config: Mapping[str, Any], before: Path | None, after: Path | None
) -> Iterator[str]:
    """Files of the snapshots of both runs whose code differs, comments apart."""
    from orchestrator.schema import config_class

    if before is None or after is None:
        return
    slots = config_class(kind).INPUTS.values()
    reads_data = not any("dataset" in slot.kinds for slot in slots)
    modules = code_modules(kind, config, reads_data=reads_data)
    old, new = code_closure(modules, before), code_closure(modules, after)
    for module in sorted({*old, *new}):
        if old.get(module) != new.get(module):
            yield f"{module.replace('.', '/')}.py"


def _root(run_id: str, store: Store) -> Path | None:
    """The package `recipes` in the snapshot of a run's code."""
    code = (store.read_run(run_id).get("code") or {}).get("path")
    root = Path(code) / "recipes" if code else None
    return root if root is not None and root.is_dir() else None


def _short(value: Any, most: int = 60) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
