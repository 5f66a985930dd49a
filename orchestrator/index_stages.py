"""Adds index and preparation of each data set a recipe uses and wires the `data` of consumers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.identity import canonical_json, without

if TYPE_CHECKING:
    from orchestrator.schema import StageSpec


def with_data_stages(specs: Mapping[str, StageSpec]) -> dict[str, StageSpec]:
    """Wire the `data` of each stage to what indexes or prepares it, added where nobody has.

    A stage that names an input `data` itself keeps it. One index serves all stages whose data are
    equal but for their preparation, one preparation all whose data are equal; written-out ones are
    taken first.
    """
    from orchestrator.schema import config_class

    wiring = _Wiring(taken=set(specs))
    wired: dict[str, StageSpec] = {}
    for name, spec in specs.items():
        if spec.kind == "index":
            wiring.indexes.setdefault(_index_key(spec), name)
            wired[name] = _index_of(spec)
    for name, spec in specs.items():
        if spec.kind == "prepare":
            wiring.prepared.setdefault(_prepare_key(spec), name)
    for name, spec in specs.items():
        slots = config_class(spec.kind).INPUTS
        if spec.kind == "prepare" and "dataset" not in spec.inputs:
            wired[name] = _with_input(spec, "dataset", wiring.index(spec))
        elif "data" in slots and "data" not in spec.inputs and _data(spec) is not None:
            wired[name] = _with_input(spec, "data", wiring.consumed(spec))
    return {**wiring.added, **{name: wired.get(name, spec) for name, spec in specs.items()}}


@dataclass(kw_only=True)
class _Wiring:
    """Names of the stages that index and prepare, by what makes two of them the same."""

    taken: set[str]
    indexes: dict[str, str] = field(default_factory=dict)
    prepared: dict[str, str] = field(default_factory=dict)
    added: dict[str, StageSpec] = field(default_factory=dict)

    def consumed(self, spec: StageSpec) -> str:
        """The stage whose table a consumer of these data takes."""
        return self.index(spec) if _options(spec) is None else self.prepare(spec)

    def index(self, spec: StageSpec) -> str:
        """The stage that indexes the data of this one."""
        key = _index_key(spec)
        if key not in self.indexes:
            self.indexes[key] = self._add("index", spec, {"data": _data(spec)})
            name = self.indexes[key]
            self.added[name] = _index_of(self.added[name])
        return self.indexes[key]

    def prepare(self, spec: StageSpec) -> str:
        """The stage that prepares the data of this one."""
        key = _prepare_key(spec)
        if key not in self.prepared:
            inputs = {"dataset": f"{self.index(spec)}.dataset"}
            fields = {"data": _data(spec), "inputs": inputs}
            self.prepared[key] = self._add("prepare", spec, fields)
        return self.prepared[key]

    def _add(self, kind: str, spec: StageSpec, fields: Mapping[str, Any]) -> str:
        from orchestrator.schema import stage_class

        name = _free_name(f"{kind}-{_word(_data(spec).name)}", self.taken)
        self.taken.add(name)
        self.added[name] = stage_class(kind).model_validate({"kind": kind, **fields})
        return name


def _data(spec: StageSpec) -> Any:
    return getattr(spec, "data", None)


def _options(spec: StageSpec) -> Any:
    """How the data of a stage are to be prepared; None where they are not."""
    return getattr(_data(spec), "prepare", None)


def _index_of(spec: StageSpec) -> StageSpec:
    """An index as it is run: of the preparation it knows only that there will be one.

    So a change of how videos are prepared leaves the index alone, written out or not.
    """
    data, options = _data(spec), _options(spec)
    if options is None:
        return spec
    changes: dict[str, Any] = {"data": data.model_copy(update={"prepare": None})}
    if "mendable_ok" not in spec.model_fields_set:
        changes["mendable_ok"] = True
    return spec.model_copy(update=changes)


def _index_key(spec: StageSpec) -> str:
    data = _data(spec).model_dump(mode="json")
    indexed = without(data, ("index.shards", "prepare"))
    return canonical_json({"data": indexed, "prepared": data.get("prepare") is not None})


def _prepare_key(spec: StageSpec) -> str:
    data = _data(spec).model_dump(mode="json")
    return canonical_json(without(data, ("index.shards", "prepare.shards")))


def _with_input(spec: StageSpec, slot: str, stage: str) -> StageSpec:
    inputs = {**spec.inputs, slot: f"{stage}.dataset"}
    return spec.model_copy(update={"inputs": inputs})


def _word(data_name: str) -> str:
    return (re.sub(r"[^A-Za-z0-9._-]+", "-", data_name).strip("-") or "data")[:50]


def _free_name(base: str, taken: set[str]) -> str:
    """The base, or the base with a number; the cells of a matrix take its name as well."""
    used = {name.partition("/")[0] for name in taken}
    names = [base, *(f"{base}-{n}" for n in range(2, len(used) + 3))]
    return next(name for name in names if name not in used)
