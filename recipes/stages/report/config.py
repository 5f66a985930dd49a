"""What a recipe says of a report; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from recipes.config import StageConfig
from recipes.contract import ArtifactKind, InputSlot

CompareKey = Literal["protocol", "data", "split", "clip", "size"]


class ReportConfig(StageConfig):
    """One page for all results of a recipe, baselines and published figures beside them.

    Results that agree in all keys of `compare` stand in one table; others are not comparable.
    """

    INPUTS: ClassVar[Mapping[str, InputSlot]] = {"results": InputSlot(("result",), many=True)}
    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"report": "report", "table": "report"}
    DEVICE: ClassVar[Literal["auto", "cpu"]] = "cpu"

    title: str = Field("Results", min_length=1)
    published: bool = Field(True, description="add published figures that match")
    compare: tuple[CompareKey, ...] = Field(("protocol", "data"), min_length=1)

    @field_validator("compare")
    @classmethod
    def _differ(cls, value: tuple[CompareKey, ...]) -> tuple[CompareKey, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each key once")
        return value
