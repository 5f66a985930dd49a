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
)

from orchestrator.env_schema import Line, one_line
from orchestrator.job_schema import ClusterSpec, ResourcesSpec
from orchestrator.policy import PolicySpec
from orchestrator.source_map import SourceMap
from recipes.catalog import STAGES, load
from recipes.config import StageConfig, Strict
from recipes.data.config import DataConfig

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


def _no_credentials(uri: str) -> str:
    if re.match(r"^[a-z+]+://[^/]*@", uri):
        raise ValueError(
            "an address without user and password: they would be stored with the run; "
            "write MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD into a file that only you "
            "can read and name it in cluster.env_file"
        )
    return one_line(uri)


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
    registered_model: Name | None = Field(
        None, description="every encoder becomes a version of this model in MLflow's registry"
    )
    system_metrics: bool = Field(
        False, description="processors, memory and GPUs of rank 0's node, every 10 seconds"
    )


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
