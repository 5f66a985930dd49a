"""What a recipe says of an index stage; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from recipes.config import StageConfig
from recipes.contract import ArtifactKind, InputSlot
from recipes.data.config import DataConfig


class IndexConfig(StageConfig):
    """Looks at every video of a data set once and writes what it found as a table.

    With `parts` given (one for each share of the listing) it merges them instead of looking. What
    happens to the files afterwards (`data.prepare`) does not change the table, except that files
    it can mend are not counted as bad: `mendable_ok`, which the planner sets.
    """

    INPUTS: ClassVar[Mapping[str, InputSlot]] = {
        "parts": InputSlot(("part",), required=False, many=True)
    }
    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"dataset": "dataset"}
    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"workers", "data.prepare"})
    DEVICE: ClassVar[Literal["auto", "cpu"]] = "cpu"

    data: DataConfig
    mendable_ok: bool = Field(
        False, description="videos that re-encoding can mend do not count towards max_bad_share"
    )
    workers: int | None = Field(None, ge=1, description="processes; default: the cores of the job")
