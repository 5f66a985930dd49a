"""What a recipe says of a pretraining; torch-free."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from recipes.catalog import METHODS, load
from recipes.config import StageConfig
from recipes.contract import ArtifactKind, InputSlot
from recipes.data.clip_config import ClipConfig
from recipes.data.config import DataConfig
from recipes.engine.config import TRAIN_TRANSIENT, TrainFields
from recipes.models.config import BackboneConfig

# Data sets whose authors published three numbered train/test splits.
_NUMBERED_SPLITS = ("ucf101", "hmdb51")


def _union() -> Any:
    """The configs of all methods in the catalog, told apart by `name`."""
    configs = [load(entry.config) for entry in METHODS.values()]
    union = functools.reduce(operator.or_, configs)
    return union if len(configs) == 1 else Annotated[union, Field(discriminator="name")]


if TYPE_CHECKING:
    # One of them stands for all: they share `name`, `augmentation` and `check_clip`.
    from recipes.methods.dpc.config import DPCConfig as MethodConfig
else:
    MethodConfig = _union()


class PretrainConfig(TrainFields, StageConfig):
    """Trains a method on the training videos of a data set and leaves its encoder.

    Labels are never looked at. With an input `init` the weights start from another pretraining's
    encoder of the same backbone, which makes chains of pretrainings, such as a growing horizon or
    a second data set.
    """

    INPUTS: ClassVar[Mapping[str, InputSlot]] = {
        "data": InputSlot(("dataset",)),
        "init": InputSlot(("encoder",), required=False),
    }
    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"encoder": "encoder"}
    TRANSIENT: ClassVar[frozenset[str]] = TRAIN_TRANSIENT

    data: DataConfig
    split: int | None = Field(
        None, ge=1, le=3, description="numbered split of UCF101 or HMDB51; without it the first"
    )
    method: MethodConfig
    backbone: BackboneConfig
    clip: ClipConfig

    @property
    def fold(self) -> int | None:
        """The numbered split in use, None for a data set that has none."""
        return (self.split or 1) if self.data.format in _NUMBERED_SPLITS else None

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainConfig:
        self.method.check_clip(self.clip)
        self.method.augmentation.check_blocks(self.clip.blocks)
        if self.split is not None and self.data.format not in _NUMBERED_SPLITS:
            raise ValueError(
                f"split {self.split}: only {' and '.join(_NUMBERED_SPLITS)} have numbered splits; "
                f"remove it for format {self.data.format}"
            )
        return self
