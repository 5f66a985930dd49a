"""What a recipe says of a prepare stage; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from recipes.config import StageConfig
from recipes.contract import ArtifactKind, InputSlot
from recipes.data.config import DataConfig, PrepareOptions


class PrepareConfig(StageConfig):
    """Re-encodes the videos of an index as `data.prepare` says and writes the table anew.

    With `parts` given (one for each share of the rows) it merges them instead of encoding. How the
    files were indexed (`data.index`) is in the key of the index.
    """

    INPUTS: ClassVar[Mapping[str, InputSlot]] = {
        "dataset": InputSlot(("dataset",)),
        "parts": InputSlot(("part",), required=False, many=True),
    }
    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"dataset": "dataset"}
    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"workers", "data.index"})
    DEVICE: ClassVar[Literal["auto", "cpu"]] = "cpu"

    data: DataConfig
    workers: int | None = Field(None, ge=1, description="processes; default: the cores of the job")

    @field_validator("data")
    @classmethod
    def _is_wanted(cls, value: DataConfig) -> DataConfig:
        if getattr(value, "prepare", None) is None:
            raise ValueError(f"{value.name} has no `prepare`: nothing is to be re-encoded")
        return value

    @property
    def options(self) -> PrepareOptions:
        """How to encode; `data.prepare` is never None here."""
        options: PrepareOptions = getattr(self.data, "prepare")  # noqa: B009
        return options

    @property
    def decoder(self) -> str:
        """The decoder that will read the videos."""
        return str(getattr(self.data, "decoder"))  # noqa: B009
