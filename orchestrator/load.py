"""From a recipe file to a valid recipe: compose, expand, resolve, validate, connect; all faults."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.compose import compose_recipe
from orchestrator.errors import RecipeError, RecipeErrors, nearest
from orchestrator.graph import Graph, Node, connect
from orchestrator.index_stages import with_data_stages
from orchestrator.interpolate import MISSING, TOO_MANY, Unresolved, expansion, resolve
from orchestrator.references import MAX_CELLS, NAME, NAME_IN_WORDS, GraphFault, cells
from orchestrator.shards import RECIPE_KINDS, with_parts
from orchestrator.source import MAX_NODES
from orchestrator.source_map import Cell, SourceMap, shown

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from pydantic import BaseModel

    from orchestrator.schema import Recipe, RecipeHeader, StageSpec

Parts = tuple[str | int, ...]
_Model = TypeVar("_Model", bound="BaseModel")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file with overrides in Hydra's grammar; the result is valid throughout.

    Raises:
        RecipeErrors: everything that is wrong with it, together.
    """
    with _collector_paused():
        return build_recipe(compose_recipe(path, overrides))


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Many short-lived objects, hardly a cycle: the collector would take a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def build_recipe(composed: SourceMap) -> Recipe:
    """Expand, resolve and validate a composed recipe. Raises RecipeErrors."""
    from omegaconf import OmegaConf

    from orchestrator.schema import Recipe

    build = _Build(
        sources=composed,
        root=OmegaConf.create(dict(composed.raw)),
        size=expansion(composed.raw),
    )
    header = _header(build)
    _expand(build)
    written = _validate_stages(build, header.seed if header else 0)
    specs = with_parts(with_data_stages(written))
    _check_inputs(build, specs)
    if header is not None:
        _check_resources(build, written, header)
    if build.faults or header is None:
        raise RecipeErrors(sorted(build.faults, key=lambda each: (each.file, each.line or 0)))
    fields = {name: getattr(header, name) for name in type(header).model_fields}
    return Recipe(**fields, stages=specs).with_sources(build.sources)


def graph_of(recipe: Recipe) -> Graph:
    """The graph of a valid recipe."""
    return connect([_node(name, spec) for name, spec in recipe.stages.items()])[0]


@dataclass(kw_only=True)
class _Build:
    """A recipe on its way: its sources, the resolved stages by cell, and the faults so far."""

    sources: SourceMap
    root: DictConfig
    size: Callable[[str], int]
    stages: dict[str, Any] = field(default_factory=dict)
    faults: list[RecipeError] = field(default_factory=list)
    unresolved: list[Parts] = field(default_factory=list)

    def fault(self, parts: Parts, expected: str, value: str | None = None, hint: str = "") -> None:
        """Record a fault of the value at `parts`."""
        self.faults.append(self.sources.fault(parts, expected, value, hint))

    def resolve(self, keys: Sequence[str], at: Parts) -> Any:
        """The plain value below `keys`, which stands at `at` once stages are expanded."""
        found: list[Unresolved] = []
        if self.size(".".join(keys)) > MAX_NODES:
            self.fault(at, TOO_MANY)
            self.unresolved.append(at)
            return None
        value = resolve(self.root, keys, found)
        for each in found:
            parts = (*at, *each.path)
            hint = each.hint
            if each.value == MISSING:
                path = self.sources.locate(parts)[0]
                hint = f"write it in the recipe or add {path}=... to the command line"
            self.fault(parts, each.expected, each.value, hint)
            self.unresolved.append(parts)
        return value

    def validate(
        self, model: type[_Model], raw: Any, at: Parts, whole: type[BaseModel] | None = None
    ) -> _Model | None:
        """An instance of a model, or None with the faults recorded.

        Strict: text is never taken for a number. What did not resolve is not reported again.
        `whole` is the model whose names hints may propose, if it is another.
        """
        from pydantic import ValidationError

        from orchestrator.schema_faults import translate

        try:
            return model.model_validate_json(json.dumps(raw), strict=True)
        except ValidationError as error:
            for parts, fault in translate(error, whole or model, raw, at, self.sources):
                if not any(_related(parts, other) for other in self.unresolved):
                    self.faults.append(fault)
        return None


def _related(one: Parts, other: Parts) -> bool:
    """Whether one path is the other or above it."""
    return one[: len(other)] == other or other[: len(one)] == one


def _header(build: _Build) -> RecipeHeader | None:
    from orchestrator.schema import Recipe, RecipeHeader

    raw = {key: build.resolve((key,), (key,)) for key in build.sources.raw if key != "stages"}
    return build.validate(RecipeHeader, raw, (), whole=Recipe)


def _expand(build: _Build) -> None:
    """Fill `build.stages`: each cell with its matrix values at the root while it is resolved."""
    written = build.sources.raw.get("stages")
    if not isinstance(written, Mapping) or not written:
        expected = "a mapping of stage names, such as {pretrain: {kind: pretrain, ...}}"
        build.fault(("stages",), expected, None if written is None else shown(written))
        return
    found: dict[str, Cell] = {}
    for name, raw in written.items():
        at = ("stages", name)
        if not NAME.fullmatch(name):
            build.fault(at, NAME_IN_WORDS, shown(name))
        elif not isinstance(raw, Mapping):
            build.fault(at, "a mapping with the key `kind`", shown(raw))
        else:
            found |= _cells_of(build, name, raw)
    if len(found) > MAX_CELLS:
        build.fault(("stages",), f"at most {MAX_CELLS} stages and cells", f"{len(found)}")
        return
    build.sources = replace(build.sources, cells=found)
    for cell, origin in found.items():
        build.root["matrix"] = dict(origin.matrix)
        raw = build.resolve(("stages", origin.stage), ("stages", cell))
        if isinstance(raw, Mapping):
            build.stages[cell] = {key: value for key, value in raw.items() if key != "matrix"}


def _cells_of(build: _Build, name: str, raw: Mapping[str, Any]) -> dict[str, Cell]:
    if raw.get("matrix") is None:
        return {name: Cell(stage=name)}
    at = ("stages", name, "matrix")
    before = len(build.faults)
    matrix = build.resolve(at, at)
    if len(build.faults) > before:
        return {}
    if not _is_matrix(matrix):
        expected = "lists of values by name, such as {target: [ucf101, hmdb51], split: [1, 2, 3]}"
        build.fault(at, expected, shown(matrix))
        return {}
    try:
        return {c: Cell(stage=name, matrix=v) for c, v in cells(name, matrix).items()}
    except GraphFault as fault:
        build.fault(at, fault.expected, shown(matrix), fault.hint)
        return {}


def _is_matrix(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(values, list) and values for values in value.values())
        and all(isinstance(v, str | int | float) for values in value.values() for v in values)
    )


def _validate_stages(build: _Build, seed: int) -> dict[str, StageSpec]:
    from orchestrator.schema import stage_class

    specs: dict[str, StageSpec] = {}
    for name, raw in build.stages.items():
        at = ("stages", name)
        kind = raw.get("kind")
        if kind not in RECIPE_KINDS:
            expected = f"one of the stage kinds: {', '.join(RECIPE_KINDS)}"
            value = None if kind is None else shown(kind)
            hint = nearest(str(kind), list(RECIPE_KINDS)) if kind is not None else ""
            build.fault((*at, "kind"), expected, value, hint if hint.startswith("did") else "")
            continue
        model = stage_class(kind)
        raw.setdefault("seed", seed)
        _absolute_paths(raw.get("data"))
        spec = build.validate(model, raw, at)
        if spec is not None:
            specs[name] = spec
    return specs


def _absolute_paths(data: Any) -> None:
    """A job starts in another folder, so what is relative to here becomes absolute now."""
    from recipes.data.config import expand

    for key in ("root", "file"):
        if isinstance(data, dict) and isinstance(data.get(key), str) and data[key]:
            data[key] = str(expand(data[key]))


def _check_inputs(build: _Build, specs: Mapping[str, StageSpec]) -> None:
    _, faults = connect(_nodes(build, specs))
    for each in faults:
        build.fault(
            ("stages", each.stage, "inputs", each.slot), each.expected, each.value, each.hint
        )
    for name, spec in specs.items():
        # Whether an optional input is needed may depend on the configuration: the kind knows.
        missing_inputs = getattr(spec, "missing_inputs", None)
        for words in missing_inputs(tuple(spec.inputs)) if missing_inputs else ():
            build.fault(("stages", name, "inputs"), words)


def _check_resources(build: _Build, specs: Mapping[str, StageSpec], header: RecipeHeader) -> None:
    """What a stage asks for must also fit together with what it takes from the cluster."""
    from pydantic import ValidationError

    from orchestrator.job_schema import merged
    from orchestrator.schema import config_class

    for name, spec in specs.items():
        try:
            merged(spec.resources, header.cluster, cpu_only=config_class(spec.kind).DEVICE == "cpu")
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            key = str(detail["loc"][0]) if detail["loc"] else ""
            words = str(detail.get("ctx", {}).get("error", detail["msg"]))
            hint = "together with what cluster.resources gives"
            build.fault(("stages", name, "resources"), f"{key}: {words}", None, hint)


def _node(name: str, spec: StageSpec) -> Node:
    from orchestrator.schema import config_class

    config = config_class(spec.kind)
    inputs = {s: (r,) if isinstance(r, str) else tuple(r) for s, r in spec.inputs.items()}
    return Node(name=name, inputs=inputs, slots=config.INPUTS, outputs=config.OUTPUTS)


def _nodes(build: _Build, specs: Mapping[str, StageSpec]) -> list[Node]:
    """Nodes of all stages; one that is not valid still has its name and outputs."""
    from orchestrator.schema import config_class

    nodes = [_node(name, spec) for name, spec in specs.items()]
    for name, raw in build.stages.items():
        if name not in specs:
            kind = raw.get("kind")
            outputs = config_class(kind).OUTPUTS if kind in RECIPE_KINDS else {}
            nodes.append(Node(name=name, inputs={}, slots={}, outputs=outputs))
    return nodes
