"""Adds the index stage of each data set a recipe uses and wires the `data` of its consumers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.identity import canonical_json

if TYPE_CHECKING:
    from orchestrator.schema import StageSpec


def with_index_stages(specs: Mapping[str, StageSpec]) -> dict[str, StageSpec]:
    """Wire the `data` of each stage to the index stage of that data set, added where none is.

    A stage that names an input `data` itself keeps it. One index stage serves all stages with equal
    data; written-out ones are taken first.
    """
    from orchestrator.schema import stage_class

    indexes = {_data_key(s): n for n, s in specs.items() if s.kind == "index"}
    added: dict[str, StageSpec] = {}
    wired: dict[str, StageSpec] = {}
    for name, spec in specs.items():
        data = getattr(spec, "data", None)
        wired[name] = spec
        if data is None or spec.kind == "index" or "data" in spec.inputs:
            continue
        key = _data_key(spec)
        if key not in indexes:
            indexes[key] = _free_name(data.name, {*specs, *added})
            added[indexes[key]] = stage_class("index").model_validate(
                {"kind": "index", "data": data}
            )
        inputs = {**spec.inputs, "data": f"{indexes[key]}.dataset"}
        wired[name] = spec.model_copy(update={"inputs": inputs})
    return {**added, **wired}


def _data_key(spec: StageSpec) -> str:
    return canonical_json(spec.config()["data"])


def _free_name(data_name: str, taken: set[str]) -> str:
    base = "index-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", data_name).strip("-") or "data")[:50]
    names = [base, *(f"{base}-{n}" for n in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)
