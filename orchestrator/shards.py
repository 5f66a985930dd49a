"""Divides a stage whose data set asks for several shards into parts that come back to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from recipes.catalog import STAGES
from recipes.config import PARTS

if TYPE_CHECKING:
    from orchestrator.schema import StageSpec

# Kinds whose work can be divided, and the kind of their parts, which no recipe writes out.
DIVISIBLE = {kind: f"{kind}_part" for kind in STAGES if f"{kind}_part" in STAGES}
RECIPE_KINDS = tuple(kind for kind in STAGES if kind not in DIVISIBLE.values())


def with_parts(specs: Mapping[str, StageSpec]) -> dict[str, StageSpec]:
    """Add `<stage>/part-000`, ... for each stage to be divided, in front of it.

    The number of parts is `data.<kind>.shards`.
    """
    divided: dict[str, StageSpec] = {}
    for name, spec in specs.items():
        count = _shards(spec)
        if count > 1:
            divided.update(_parts(name, spec, count))
            inputs = {**spec.inputs, PARTS: f"{name}/part-*.part"}
            divided[name] = spec.model_copy(update={"inputs": inputs})
        else:
            divided[name] = spec
    return divided


def _shards(spec: StageSpec) -> int:
    """How many jobs share the work of a stage; drawn videos, which have no options, are one's."""
    data = getattr(spec, "data", None) if spec.kind in DIVISIBLE else None
    return int(getattr(getattr(data, spec.kind, None), "shards", 1))


def _parts(name: str, spec: StageSpec, count: int) -> Iterator[tuple[str, StageSpec]]:
    """The parts share the resources and inputs of the whole; only the first is validated."""
    from orchestrator.schema import stage_class

    kind = DIVISIBLE[spec.kind]
    given = {key: getattr(spec, key) for key in spec.model_fields_set}
    fields = {**given, "kind": kind, "part": 0, "parts": count}
    first = stage_class(kind).model_validate(fields)
    for number in range(count):
        yield f"{name}/part-{number:03}", first.model_copy(update={"part": number})
