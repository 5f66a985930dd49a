"""What a recipe says of an index stage; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from recipes.config import StageConfig
from recipes.contract import ArtifactKind
from recipes.data.config import DataConfig


class IndexConfig(StageConfig):
    """Looks at every video of a data set once and writes what it found as a table."""

    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"dataset": "dataset"}
    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"workers"})
    DEVICE: ClassVar[Literal["auto", "cpu"]] = "cpu"

    data: DataConfig
    workers: int | None = Field(None, ge=1, description="processes; default: the cores of the job")
