"""What the planner says of one share of a prepare stage; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from recipes.contract import ArtifactKind, InputSlot
from recipes.stages.prepare.config import PrepareConfig


class PreparePartConfig(PrepareConfig):
    """Re-encodes every `parts`-th row of the index, from row `part` on; `prepare` merges."""

    INPUTS: ClassVar[Mapping[str, InputSlot]] = {"dataset": InputSlot(("dataset",))}
    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"part": "part"}
    TRANSIENT: ClassVar[frozenset[str]] = PrepareConfig.TRANSIENT | {"data.max_bad_share"}

    part: int = Field(ge=0, description="number of this share, from 0")
    parts: int = Field(ge=1, description="number of shares")

    @model_validator(mode="after")
    def _one_of_them(self) -> PreparePartConfig:
        if self.part >= self.parts:
            raise ValueError(f"part {self.part} of {self.parts}: parts are numbered from 0")
        return self
