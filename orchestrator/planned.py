"""What a plan consists of: facts of what exists, planned stages with their inputs, the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.contract import Resources
from recipes.contract import ArtifactKind

if TYPE_CHECKING:
    from orchestrator.schema import Recipe

Action = Literal["run", "resume", "reuse", "attach", "blocked"]


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What exists of a stage, as the store and the scheduler know it.

    Attributes:
        result: its result is valid.
        running: a job of it is pending or running.
        has_checkpoint: a committed checkpoint is there to go on from.
        merges: keys of the parts that it was told to merge when it was last submitted.
        detail: what to tell a person, such as `job 4711` or `run quickstart-1a2b3c4d`.
        blocked: why it must not be submitted now; empty where it may.
    """

    result: bool = False
    running: bool = False
    has_checkpoint: bool = False
    merges: frozenset[str] = frozenset()
    detail: str = ""
    blocked: str = ""

    def asks_for(self, part_key: str) -> bool:
        """Whether the result of a part is still wanted, which may be one of another division."""
        return not self.result and (not self.running or part_key in self.merges)


@dataclass(frozen=True, kw_only=True)
class ExternalStage:
    """A stage of another run, named by `run:<run_id>:<stage>.<artifact>`."""

    kind: str
    key: str
    finished: bool


@dataclass(frozen=True, kw_only=True)
class RegisteredEncoder:
    """An encoder that MLflow knows by a name: of a stage in this store, or a file fetched into it.

    Attributes:
        stage: the stage that made it, where this store has it.
        file: where it lies otherwise.
        sha256: digest of the file.
        model_id: the logged model in MLflow; empty where the version is of something else.
    """

    stage: ExternalStage | None = None
    file: Path | None = None
    sha256: str = ""
    model_id: str = ""


@dataclass(frozen=True, kw_only=True)
class InputRef:
    """One artifact a stage takes: of a stage in the store (`key`, `folder`) or a file (`sha256`).

    `upstream` is the name of the stage in this recipe, None for everything outside of it;
    `model_id` is the logged model that a file is of, where MLflow told.
    """

    ref: str
    artifact: str
    kind: ArtifactKind
    upstream: str | None = None
    key: str | None = None
    folder: str | None = None
    file: Path | None = None
    sha256: str | None = None
    model_id: str = ""

    def record(self) -> dict[str, Any]:
        """What stage.json keeps of it."""
        common = {"ref": self.ref, "artifact": self.artifact, "kind": self.kind}
        if self.file is not None:
            model = {"model_id": self.model_id} if self.model_id else {}
            return {**common, "file": str(self.file), "sha256": self.sha256, **model}
        return {**common, "stage": self.folder, "key": self.key}


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage, ready to be submitted: what it is, what it needs and what will be done.

    `part_of` names the stage whose work it does a share of, and which alone takes what it leaves.
    """

    name: str
    kind: str
    key: str
    config: Mapping[str, Any]
    inputs: Mapping[str, tuple[InputRef, ...]]
    upstream: tuple[str, ...]
    resources: Resources
    policy: Mapping[str, Any] = field(default_factory=dict)
    part_of: str | None = None
    action: Action
    reason: str

    def without_parts(self, parts: set[str]) -> PlannedStage:
        """The same stage without these upstream parts."""
        if not parts & set(self.upstream):
            return self
        inputs = {
            slot: tuple(ref for ref in refs if ref.upstream not in parts)
            for slot, refs in self.inputs.items()
        }
        upstream = tuple(name for name in self.upstream if name not in parts)
        return replace(self, inputs=inputs, upstream=upstream)

    @property
    def part(self) -> int | None:
        """Its number among the parts of a stage; None where it is a stage of its own."""
        return None if self.part_of is None else int(self.config["part"])

    @property
    def folder(self) -> str:
        """Name of its folder below `<store>/stages`."""
        return f"{self.kind}-{self.key[:12]}"

    @property
    def gpu_hours(self) -> float:
        """Upper bound: the time limit on all its GPUs."""
        return self.resources.nodes * self.resources.gpus_per_node * self.resources.hours

    def record(self) -> dict[str, Any]:
        """What stage.json keeps of it, without the schema version."""
        return {
            "key": self.key,
            "kind": self.kind,
            "name": self.name,
            "config": dict(self.config),
            "inputs": {slot: [ref.record() for ref in refs] for slot, refs in self.inputs.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages of a recipe in topological order, under the id of the run they make."""

    run_id: str
    recipe: Recipe
    stages: tuple[PlannedStage, ...]

    @property
    def gpu_hours(self) -> float:
        """Upper bound over the stages that will be submitted."""
        return sum(s.gpu_hours for s in self.stages if s.action in ("run", "resume"))

    def divided(self) -> list[tuple[PlannedStage, list[PlannedStage]]]:
        """Each stage whose work is divided, with its parts."""
        found: dict[str, list[PlannedStage]] = {}
        for stage in self.stages:
            if stage.part_of is not None:
                found.setdefault(stage.part_of, []).append(stage)
        return [(stage, found[stage.name]) for stage in self.stages if stage.name in found]

    def stage(self, name: str) -> PlannedStage:
        """The stage of that name. Raises KeyError."""
        return {stage.name: stage for stage in self.stages}[name]

    def record(self) -> dict[str, Any]:
        """What plan.json keeps, without the schema version."""
        return {
            "run_id": self.run_id,
            "stages": [
                {
                    "name": stage.name,
                    "kind": stage.kind,
                    "key": stage.key,
                    "stage": stage.folder,
                    "inputs": {
                        slot: [ref.ref for ref in refs] for slot, refs in stage.inputs.items()
                    },
                    "action": stage.action,
                    "part_of": stage.part_of,
                    "part": stage.part,
                }
                for stage in self.stages
            ],
        }
