"""What will happen to each stage of a recipe: the recipe and what exists become a plan; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import fsio
from cluster.contract import GpuRequest, Resources
from orchestrator.errors import RecipeError, RecipeErrors
from orchestrator.identity import canonical_json, code_digest, code_modules, stage_key
from orchestrator.load import graph_of, load_recipe
from orchestrator.planned import (
    Action,
    ExternalStage,
    InputRef,
    Plan,
    PlannedStage,
    RegisteredEncoder,
    StageFacts,
)
from orchestrator.policy import combined
from recipes.config import PARTS

if TYPE_CHECKING:
    from orchestrator.graph import Edge, Graph
    from orchestrator.schema import Recipe, StageSpec

__all__ = [
    "Action",
    "ExternalStage",
    "InputRef",
    "Plan",
    "PlannedStage",
    "RegisteredEncoder",
    "StageFacts",
    "decide",
    "load_recipe",
    "make_plan",
]

Facts = Callable[[str, str], StageFacts]
External = Callable[[str, str], ExternalStage | None]
Registered = Callable[[str], RegisteredEncoder]


def _nowhere(run_id: str, stage: str) -> ExternalStage | None:
    return None


def _not_asked(reference: str) -> RegisteredEncoder:
    """Where MLflow is not to be asked, any name is taken for one that it knows."""
    return RegisteredEncoder(file=Path(reference))


def make_plan(
    recipe: Recipe,
    facts: Facts,
    *,
    has_gpus: bool,
    gpu_request: GpuRequest = "gpus-per-node",
    external: External = _nowhere,
    registered: Registered = _not_asked,
) -> Plan:
    """Give each stage of a valid recipe its key, its resources and an action.

    Args:
        recipe: from `load_recipe`.
        facts: what exists of a stage, by kind and key.
        has_gpus: whether the machine or cluster has GPUs, for `device: auto`.
        gpu_request: how they are asked for there, for `gpu_request: auto`.
        external: a stage of another run by run id and stage name; None where there is none.
        registered: an encoder by its name in MLflow; where none is given, it is not checked.

    Raises:
        RecipeErrors: batches that cannot be shared out over the ranks, or inputs from outside the
            recipe that do not exist.
    """
    build = _Planning(
        recipe=recipe,
        graph=graph_of(recipe),
        has_gpus=has_gpus,
        gpu_request=gpu_request,
        external=external,
        registered=registered,
    )
    for name in build.graph.order:
        build.add(name)
    if build.faults:
        raise RecipeErrors(build.faults)
    keys = {stage.name: stage.key for stage in build.stages.values() if stage.part_of is None}
    digest = fsio.sha256_text(canonical_json(keys))
    plan = Plan(
        run_id=f"{recipe.name}-{digest[:8]}", recipe=recipe, stages=tuple(build.stages.values())
    )
    return decide(plan, facts)


def decide(plan: Plan, facts: Facts) -> Plan:
    """The same plan with actions and reasons for what exists now, without parts nobody needs."""
    decided: dict[str, PlannedStage] = {}
    for stage in _needed(plan, facts):
        blocked = [name for name in stage.upstream if decided[name].action == "blocked"]
        action, reason = _action(facts(stage.kind, stage.key), blocked)
        decided[stage.name] = replace(stage, action=action, reason=reason)
    return replace(plan, stages=tuple(decided.values()))


def _needed(plan: Plan, facts: Facts) -> list[PlannedStage]:
    """The stages without the parts of a whole that is done, or at work without them.

    How many parts a whole has is not in its key: it may come from a run with another number. Parts
    that have a result or a job stay in the plan, so that a person finds them there.
    """
    unneeded: set[str] = set()
    for whole, parts in plan.divided():
        wanted = facts(whole.kind, whole.key).asks_for
        unneeded |= {p.name for p in parts if not (wanted(p.key) or _shows(facts(p.kind, p.key)))}
    if not unneeded:
        return list(plan.stages)
    return [stage.without_parts(unneeded) for stage in plan.stages if stage.name not in unneeded]


def _shows(part: StageFacts) -> bool:
    return part.result or part.running


def _action(fact: StageFacts, blocked: list[str]) -> tuple[Action, str]:
    """One row of the table: the first of the facts that holds decides."""
    detail = f": {fact.detail}" if fact.detail else ""
    if fact.result:
        return "reuse", f"finished{detail}"
    if fact.running:
        return "attach", f"submitted before{detail}"
    if fact.blocked:
        return "blocked", fact.blocked
    if blocked:
        return "blocked", f"needs {', '.join(blocked)}"
    if fact.has_checkpoint:
        return "resume", f"continues from its checkpoint{detail}"
    return "run", "has not run yet"


def _wholes(graph: Graph) -> dict[str, str]:
    """Of each part the stage it is a part of: the only one that takes something of it."""
    consumers: dict[str, set[tuple[str, str]]] = {}
    for name, slots in graph.edges.items():
        for slot, edges in slots.items():
            for edge in edges:
                consumers.setdefault(edge.upstream or "", set()).add((name, slot))
    found = {part: next(iter(who)) for part, who in consumers.items() if len(who) == 1}
    return {part: name for part, (name, slot) in found.items() if part and slot == PARTS}


def _folders_outside(recipe: Recipe, graph: Graph) -> tuple[str, ...]:
    """Folders besides the store that jobs read: of videos, lists and encoders of other origin."""
    found: dict[str, None] = {}
    for spec in recipe.stages.values():
        data = getattr(spec, "data", None)
        if data is not None:
            files = data.identity_files()
            root = getattr(data, "root", None)
            found |= dict.fromkeys([root] if root else [])
            found |= dict.fromkeys(str(file.parent) for file in files)
    edges = (edge for slots in graph.edges.values() for each in slots.values() for edge in each)
    files = [Path(edge.reference.file) for edge in edges if edge.reference.file]
    return tuple(found | dict.fromkeys(str(file.parent) for file in files))


@dataclass(kw_only=True)
class _Planning:
    """A plan on its way: stages in order, faults so far, digests of files read once."""

    recipe: Recipe
    graph: Graph
    has_gpus: bool
    gpu_request: GpuRequest
    external: External
    registered: Registered
    stages: dict[str, PlannedStage] = field(default_factory=dict)
    faults: list[RecipeError] = field(default_factory=list)
    digests: dict[Path, str | None] = field(default_factory=dict)
    codes: dict[tuple[str, ...], str] = field(default_factory=dict)
    resources: dict[tuple[int, bool], Resources] = field(default_factory=dict)
    wholes: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.wholes = _wholes(self.graph)
        self.folders = _folders_outside(self.recipe, self.graph)

    def add(self, name: str) -> None:
        """Plan one stage whose upstream is planned."""
        from orchestrator.schema import config_class

        spec = self.recipe.stages[name]
        declared = config_class(spec.kind)
        config = spec.config()
        resources = self._resources(spec, cpu_only=declared.DEVICE == "cpu")
        self._check_batch(name, spec, resources)
        inputs = {
            slot: tuple(filter(None, (self._input(name, slot, edge) for edge in edges)))
            for slot, edges in self.graph.edges[name].items()
        }
        reads_data = not any("dataset" in slot.kinds for slot in declared.INPUTS.values())
        key = stage_key(
            kind=spec.kind,
            version=declared.VERSION,
            code=self._code(code_modules(spec.kind, config, reads_data=reads_data)),
            config=config,
            outside=declared.outside_key(),
            inputs={
                slot: [(ref.artifact, ref.key or ref.sha256 or "") for ref in refs]
                for slot, refs in inputs.items()
                if slot != PARTS
            },
            files=self._identity_files(spec) if reads_data else None,
        )
        self.stages[name] = PlannedStage(
            name=name,
            kind=spec.kind,
            key=key,
            config=config,
            inputs=inputs,
            upstream=self.graph.upstream(name),
            resources=resources,
            policy=combined(spec.policy, self.recipe.cluster.policy),
            part_of=self.wholes.get(name),
            action="run",
            reason="",
        )

    def _input(self, name: str, slot: str, edge: Edge) -> InputRef | None:
        reference = edge.reference
        common: dict[str, Any] = {"ref": reference.text, "kind": edge.kind}
        if edge.upstream is not None:
            upstream = self.stages[edge.upstream]
            return InputRef(
                **common,
                artifact=edge.artifact,
                upstream=upstream.name,
                key=upstream.key,
                folder=upstream.folder,
            )
        if reference.file:
            path = Path(reference.file)
            sha256 = self._digest(path)
            if sha256 is None:
                self._fault(name, slot, reference.text, "a file that exists")
                return None
            return InputRef(**common, artifact=edge.kind, file=path, sha256=sha256)
        if reference.model:
            return self._from_model(reference.model, common)
        return self._from_run(name, slot, edge, common)

    def _from_model(self, model: str, common: dict[str, Any]) -> InputRef:
        """Of a stage in this store where that made it, so that the key is the same either way."""
        found = self.registered(model)
        if found.stage is not None:
            folder = f"{found.stage.kind}-{found.stage.key[:12]}"
            return InputRef(**common, artifact="encoder", key=found.stage.key, folder=folder)
        return InputRef(
            **common,
            artifact="encoder",
            file=found.file,
            sha256=found.sha256,
            model_id=found.model_id,
        )

    def _from_run(
        self, name: str, slot: str, edge: Edge, common: dict[str, Any]
    ) -> InputRef | None:
        from orchestrator.schema import config_class

        reference = edge.reference
        found = self.external(reference.run, reference.stage)
        if found is None:
            self._fault(name, slot, reference.text, "a stage of a run in this store")
            return None
        outputs: dict[str, str] = {**config_class(found.kind).OUTPUTS, "result": "result"}
        if outputs.get(edge.artifact) != edge.kind:
            expected = f"an artifact of kind {edge.kind}; that stage leaves {', '.join(outputs)}"
            self._fault(name, slot, reference.text, expected)
            return None
        if not found.finished:
            self._fault(name, slot, reference.text, "a stage that has finished")
            return None
        folder = f"{found.kind}-{found.key[:12]}"
        return InputRef(**common, artifact=edge.artifact, key=found.key, folder=folder)

    def _fault(self, name: str, slot: str, value: str, expected: str) -> None:
        parts = ("stages", name, "inputs", slot)
        self.faults.append(self.recipe.sources.fault(parts, expected, value))

    def _check_batch(self, name: str, spec: StageSpec, resources: Resources) -> None:
        """The global batch must be shared out evenly over the ranks."""
        accumulation = getattr(spec, "accumulation", None)
        if accumulation is None:
            return
        try:
            accumulation(resources.world_size)
        except ValueError as error:
            value = (
                f"{resources.nodes} nodes x {resources.tasks_per_node} ranks = "
                f"{resources.world_size} ranks"
            )
            hint = (
                "change resources.nodes and resources.gpus_per_node (or tasks_per_node); "
                "batch_size and micro_batch change what is learned"
            )
            at = ("stages", name, "batch_size")
            self.faults.append(self.recipe.sources.fault(at, str(error), value, hint))

    def _identity_files(self, spec: StageSpec) -> dict[str, str | None]:
        data = getattr(spec, "data", None)
        files = data.identity_files() if data is not None else []
        return {str(file): self._digest(file) for file in files}

    def _resources(self, spec: StageSpec, *, cpu_only: bool) -> Resources:
        """What its job asks for; the parts of one stage share the object they ask with."""
        from orchestrator.job_schema import job_resources

        known = id(spec.resources), cpu_only
        if known not in self.resources:
            self.resources[known] = job_resources(
                spec.resources,
                self.recipe.cluster,
                has_gpus=self.has_gpus,
                cpu_only=cpu_only,
                gpu_request=self.gpu_request,
                data=self.folders,
            )
        return self.resources[known]

    def _code(self, modules: tuple[str, ...]) -> str:
        if modules not in self.codes:
            self.codes[modules] = code_digest(modules)
        return self.codes[modules]

    def _digest(self, file: Path) -> str | None:
        if file not in self.digests:
            self.digests[file] = fsio.sha256_file(file) if file.is_file() else None
        return self.digests[file]
