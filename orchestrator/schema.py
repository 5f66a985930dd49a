"""Models of a recipe, the only validation of what a user writes, and their JSON schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    create_model,
    model_validator,
)

from cluster.contract import Resources
from cluster.executors import EXECUTORS
from orchestrator.policy import PolicySpec
from orchestrator.source_map import SourceMap
from recipes.catalog import STAGES, load
from recipes.config import StageConfig, Strict
from recipes.data.config import DataConfig

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


def _one_line(text: str) -> str:
    """A newline in a value would end a line of the batch script and begin a command."""
    if not text.isprintable() or len(text) > 256:
        raise ValueError("text of at most 256 characters in one line, without control characters")
    return text


def _known_executor(name: str) -> str:
    if name not in EXECUTORS:
        raise ValueError(f"one of the executors: {', '.join(EXECUTORS)}")
    return name


def _no_credentials(uri: str) -> str:
    if re.match(r"^[a-z+]+://[^/]*@", uri):
        raise ValueError(
            "an address without user and password: they would be stored with the run; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return _one_line(uri)


Line = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
OptionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Count = Annotated[int, Field(ge=1)]


class ResourcesSpec(Strict):
    """What a job asks the cluster for; what a stage leaves out, `cluster.resources` gives.

    With `device: auto`, GPUs are used where some are asked for or, if nothing is said of them,
    where the cluster has any: one a node. `cuda` asked for and absent is an error, never a quiet
    run on the CPU.
    """

    nodes: Count = 1
    tasks_per_node: Count | None = Field(
        None, description="ranks a node; default: gpus_per_node, or 1 without GPUs"
    )
    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpus_per_node: int | None = Field(None, ge=0)
    cpus_per_task: Count = 1
    mem_gb: float | None = Field(None, gt=0.0, description="memory a node; default: the cluster's")
    hours: float = Field(1.0, gt=0.0, description="time limit")
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    exclude: Line | None = Field(None, description="nodes not to use")
    gpu_request: Literal["gpus-per-node", "gres"] = Field(
        "gpus-per-node", description="how this cluster wants GPUs to be asked for"
    )
    parts_at_once: Count | None = Field(
        None, description="jobs that may run at once where several share the work of a stage"
    )
    signal_seconds: int = Field(
        300, ge=1, description="warning before the time limit, enough for a checkpoint"
    )
    extra: dict[OptionName, Line | int | bool] = Field(
        {}, description="further options of the scheduler, such as {licenses: 'a:1'}"
    )

    @model_validator(mode="after")
    def _device_and_gpus(self) -> ResourcesSpec:
        if self.device == "cuda" and self.gpus_per_node == 0:
            raise ValueError("device cuda needs gpus_per_node of at least 1")
        return self


class ClusterSpec(Strict):
    """Where jobs run: an executor, defaults of resources, and shell lines that set up each job."""

    executor: Annotated[str, AfterValidator(_known_executor)] = "local"
    resources: ResourcesSpec = ResourcesSpec()
    setup: tuple[Line, ...] = Field((), description="lines such as `module load cuda`")
    policy: PolicySpec = Field(PolicySpec(), description="of all stages that say nothing else")


class TrackingSpec(Strict):
    """Where MLflow records go: `uri` null is a file in the store, for use on one machine.

    In mode `offline` no job connects to it; `orchestrate sync` delivers, where a person runs it.
    """

    enabled: bool = True
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: jobs never connect, `orchestrate sync` delivers later"
    )
    uri: Annotated[str, Field(min_length=1), AfterValidator(_no_credentials)] | None = None
    experiment: Line | None = Field(None, description="default: the recipe's name")


Reference = Annotated[str, Field(min_length=3)]
Scalar = str | int | float | bool


class StageSpec(Strict):
    """The part of a stage that all kinds share; the fields of its kind stand beside it."""

    kind: str
    inputs: dict[Name, Reference | list[Reference]] = Field(
        {}, description="slot: `stage.artifact`, `stage/*.artifact` or a list of them"
    )
    resources: ResourcesSpec = ResourcesSpec()
    policy: PolicySpec = PolicySpec()

    def config(self) -> dict[str, Any]:
        """The fields of the kind with all defaults, as plain JSON."""
        fields = set(config_class(self.kind).model_fields)
        return self.model_dump(mode="json", include=fields)


def _each_dataset(value: Any) -> Any:
    """`data:` holds named data sets, or one of them directly."""
    return {"data": value} if isinstance(value, Mapping) and "format" in value else value


class RecipeHeader(Strict):
    """A recipe without its stages."""

    name: Name
    description: str = ""
    seed: int = Field(0, ge=0, description="seed of every stage that gives none itself")
    data: Annotated[dict[str, DataConfig], BeforeValidator(_each_dataset)] = Field({})
    tracking: TrackingSpec = TrackingSpec()
    cluster: ClusterSpec = ClusterSpec()
    vars: dict[str, Any] = Field({}, description="values of your own, to refer to as ${vars.x}")


class Recipe(RecipeHeader):
    """A recipe, composed, expanded and valid: one entry of `stages` for each cell of a matrix."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    stages: dict[str, SerializeAsAny[StageSpec]]
    _sources: SourceMap = PrivateAttr(default_factory=SourceMap)

    @property
    def sources(self) -> SourceMap:
        """Where each value was written, for messages that come after validation."""
        return self._sources

    def with_sources(self, sources: SourceMap) -> Recipe:
        """Remember where the values were written."""
        self._sources = sources
        return self

    def resolved(self) -> dict[str, Any]:
        """Everything, defaults included, as plain values: what is kept with a run."""
        return self.model_dump(mode="json")


def config_class(kind: str) -> type[StageConfig]:
    """The class of a kind's own fields. Raises KeyError for an unknown kind."""
    found = load(STAGES[kind].config)
    if not (isinstance(found, type) and issubclass(found, StageConfig)):
        raise TypeError(f"{STAGES[kind].config} is no StageConfig")
    return found


@cache
def stage_class(kind: str) -> type[StageSpec]:
    """The model of a whole stage of this kind: common part and fields of the kind side by side.

    Raises:
        KeyError: an unknown kind.
        TypeError: a field of the kind has the name of a common one.
    """
    config = config_class(kind)
    clash = set(config.model_fields) & set(StageSpec.model_fields)
    if clash:
        raise TypeError(f"{config.__name__} must not have the common field {sorted(clash)[0]!r}")
    # create_model is typed for one base class only.
    create: Any = create_model
    model: type[StageSpec] = create(
        f"{kind.capitalize()}Stage",
        __base__=(config, StageSpec),
        __doc__=config.__doc__,
        kind=(Literal[kind], kind),
    )
    return model


def _device(asked: str, gpus: int | None, has_gpus: bool) -> Literal["cuda", "cpu"]:
    if asked == "auto":
        return "cuda" if (has_gpus if gpus is None else gpus > 0) else "cpu"
    return "cuda" if asked == "cuda" else "cpu"


def job_resources(
    stage: ResourcesSpec, cluster: ClusterSpec, *, has_gpus: bool, cpu_only: bool = False
) -> Resources:
    """What one stage's job asks for: its own resources over those of the cluster.

    `has_gpus` says whether the machine or cluster has any. A kind that is `cpu_only` takes no
    nodes, ranks or GPUs from the cluster's defaults: one process, unless the stage says more.
    """
    defaults = cluster.resources.model_dump(exclude_unset=True)
    if cpu_only:
        defaults |= {"device": "cpu", "nodes": 1, "tasks_per_node": None, "gpus_per_node": None}
    own = stage.model_dump(exclude_unset=True)
    extra = {**defaults.pop("extra", {}), **own.pop("extra", {})}
    spec = ResourcesSpec(**{**defaults, **own}, extra=extra)
    device = _device(spec.device, spec.gpus_per_node, has_gpus)
    gpus = 0 if device == "cpu" else spec.gpus_per_node or 1
    fields = spec.model_dump(exclude={"device", "gpus_per_node", "tasks_per_node"})
    return Resources(
        **fields,
        device=device,
        gpus_per_node=gpus,
        tasks_per_node=spec.tasks_per_node or gpus or 1,
        setup=cluster.setup,
    )
