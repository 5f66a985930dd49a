"""The strict pydantic base of everything a recipe can say; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from recipes.contract import ArtifactKind, InputSlot


class Strict(BaseModel):
    """Refuses unknown keys and cannot be changed once made."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class StageConfig(Strict):
    """What a recipe says of one stage apart from where it runs.

    Class variables declare the stage kind: the inputs it takes, the artifacts it leaves (each stage
    also leaves `result`), a version to raise when its meaning changes, the dotted paths of fields
    that do not change the result (workers, logging, checkpoint intervals), and `cpu` as the device
    of a kind that has no use for a GPU: it runs as one process unless its resources say more.
    """

    INPUTS: ClassVar[Mapping[str, InputSlot]] = {}
    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {}
    VERSION: ClassVar[int] = 1
    TRANSIENT: ClassVar[frozenset[str]] = frozenset()
    DEVICE: ClassVar[Literal["auto", "cpu"]] = "auto"

    seed: int = 0
