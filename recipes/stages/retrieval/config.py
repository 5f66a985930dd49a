"""What a recipe says of nearest-neighbour retrieval; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from recipes.contract import ArtifactKind
from recipes.evaluation.config import FrozenConfig

RECALL_AT = (1, 5, 10, 20, 50)


class RetrievalConfig(FrozenConfig):
    """Looks up each test video among the training videos.

    A test video is a hit at k when any of its k nearest training videos has its class. Features are
    compared by cosine; `encoder: mean_color` is the baseline without a network: the mean colour of
    the clips, compared by Euclidean distance. Cut-offs above the number of training videos are left
    out unless `recall_at` names them.
    """

    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"features": "features"}

    encoder: Literal["input", "random", "mean_color"] = "input"
    recall_at: tuple[Annotated[int, Field(ge=1)], ...] = Field(RECALL_AT, min_length=1)
    num_queries: int = Field(8, ge=0, description="test videos in the picture of neighbours")
    num_neighbours: int = Field(5, ge=1, description="neighbours shown for each of them")

    @field_validator("recall_at")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("cut-offs must rise and differ, such as [1, 5, 10]")
        return value
