"""What the planner says of one share of an index stage; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from recipes.contract import ArtifactKind, InputSlot
from recipes.stages.index.config import IndexConfig


class IndexPartConfig(IndexConfig):
    """Looks at every `parts`-th video of the listing, from number `part` on; the index merges."""

    INPUTS: ClassVar[Mapping[str, InputSlot]] = {}
    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"part": "part"}
    TRANSIENT: ClassVar[frozenset[str]] = IndexConfig.TRANSIENT | {
        "mendable_ok",
        "data.max_bad_share",
    }

    part: int = Field(ge=0, description="number of this share, from 0")
    parts: int = Field(ge=1, description="number of shares")

    @model_validator(mode="after")
    def _one_of_them(self) -> IndexPartConfig:
        if self.part >= self.parts:
            raise ValueError(f"part {self.part} of {self.parts}: parts are numbered from 0")
        return self
