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


# The slot through which the shares of divided work come back to the stage they are shares of. They
# hold what it would have found by itself, so they are no part of its identity.
PARTS = "parts"
_NUMBERS_OF_JOBS = frozenset({"data.index.shards", "data.prepare.shards"})
_SAID_BY_THE_INPUT = frozenset({"data.index", "data.prepare"})


class StageConfig(Strict):
    """What a recipe says of one stage apart from where it runs.

    Class variables declare the stage kind: the inputs it takes, the artifacts it leaves (each stage
    also leaves `result`), a version to raise when its meaning changes, the dotted paths of fields
    that do not change the result (workers, logging, checkpoint intervals), and `cpu` as the device
    of a kind that has no use for a GPU: it runs as one process unless its resources say more.

    A kind whose work several jobs can share has a second kind, `<kind>_part`, with the same fields
    and `part` and `parts`; what those leave comes back through the slot `parts`.
    """

    INPUTS: ClassVar[Mapping[str, InputSlot]] = {}
    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {}
    VERSION: ClassVar[int] = 1
    TRANSIENT: ClassVar[frozenset[str]] = frozenset()
    DEVICE: ClassVar[Literal["auto", "cpu"]] = "auto"

    seed: int = 0

    @classmethod
    def outside_key(cls) -> frozenset[str]:
        """Dotted paths of the fields that are not in the key of a stage of this kind.

        Those are the transient ones and the number of jobs that share the work. How a data set was
        indexed and prepared belongs to the keys of those stages: where it comes in as an input, the
        key of that input says it.
        """
        taken = _SAID_BY_THE_INPUT if "data" in cls.INPUTS else frozenset()
        return cls.TRANSIENT | _NUMBERS_OF_JOBS | taken
