"""What a recipe says of the encoder that is evaluated and of its videos; torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from recipes.config import StageConfig
from recipes.contract import InputSlot
from recipes.data.clip_config import ClipConfig
from recipes.data.config import DataConfig
from recipes.models.config import BackboneConfig, ContextConfig

Feature = Literal["pooled", "context"]

# Data sets whose authors published three numbered train/test splits.
NUMBERED_SPLITS = ("ucf101", "hmdb51")

DATA_AND_ENCODER: Mapping[str, InputSlot] = {
    "data": InputSlot(("dataset",)),
    "encoder": InputSlot(("encoder",), required=False),
}


class EvaluationConfig(StageConfig):
    """The videos and the encoder of a probe, a retrieval or a fine-tuning.

    `encoder: input` takes the network from the stage's input, which carries its own description;
    `clip` then only overrides the clip it was trained on. `encoder: random` is the baseline with
    random weights and needs `backbone` and `clip`; `context` adds the recurrent network.
    """

    INPUTS: ClassVar[Mapping[str, InputSlot]] = DATA_AND_ENCODER
    # Choices of `encoder` that are a network built here from `backbone`.
    BUILT: ClassVar[tuple[str, ...]] = ("random",)

    data: DataConfig
    split: int | None = Field(
        None, ge=1, le=3, description="numbered split of UCF101 or HMDB51; without it the first"
    )
    encoder: str = "input"
    backbone: BackboneConfig | None = Field(None, description="encoder: random only")
    context: ContextConfig | None = Field(None, description="encoder: random only")
    clip: ClipConfig | None = Field(None, description="default: what the encoder was trained on")
    windows: int = Field(
        10, ge=1, description="equally spaced clips of a video whose outputs are averaged"
    )

    @property
    def fold(self) -> int | None:
        """The numbered split in use, None for a data set that has none."""
        return (self.split or 1) if self.data.format in NUMBERED_SPLITS else None

    def missing_inputs(self, given: Collection[str]) -> list[str]:
        """What is wrong with the inputs a recipe gives this stage, in words; empty when nothing."""
        if self.encoder == "input" and "encoder" not in given:
            return ["encoder: input needs `inputs: {encoder: <stage>.encoder}`, or set another"]
        if self.encoder != "input" and "encoder" in given:
            return [f"encoder: {self.encoder} uses no input: remove inputs.encoder"]
        return []

    @model_validator(mode="after")
    def _split_exists(self) -> EvaluationConfig:
        if self.split is not None and self.data.format not in NUMBERED_SPLITS:
            raise ValueError(
                f"split {self.split}: only {' and '.join(NUMBERED_SPLITS)} have numbered splits; "
                f"remove it for format {self.data.format}"
            )
        return self

    @model_validator(mode="after")
    def _network_is_described(self) -> EvaluationConfig:
        built = self.encoder in self.BUILT
        if built and self.backbone is None:
            raise ValueError(f"encoder: {self.encoder} needs backbone, such as {{name: r2d3d18}}")
        if self.encoder != "input" and self.clip is None:
            raise ValueError(f"encoder: {self.encoder} needs clip: there is no trained one to ask")
        if not built and (self.backbone is not None or self.context is not None):
            raise ValueError(
                f"backbone and context describe encoder: random; encoder: {self.encoder} "
                "does not build a network from them: remove them"
            )
        return self


class FrozenConfig(EvaluationConfig):
    """What a probe and a retrieval share: features of a network that is not trained here.

    Batch-norm layers of a random network hold mean 0 and variance 1, which fit nothing; by default
    their statistics are collected on training videos first, or the margin over the baseline would
    be free. A trained encoder brings its own statistics and is never changed.
    """

    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"workers", "read_seconds", "batch_size"})

    feature: Feature = Field(
        "pooled", description="pooled: mean of the last map; context: last state of the ConvGRU"
    )
    calibrate_batchnorm: bool | None = Field(None, description="default: yes for encoder: random")
    batch_size: int = Field(20, ge=1, description="clips in one forward on one device")
    workers: int = Field(2, ge=0, description="decoding processes a rank; 0: the rank, unprotected")
    read_seconds: float = Field(
        20.0, gt=0.0, description="for a video; a decoding process that takes longer is replaced"
    )

    @property
    def calibrates(self) -> bool:
        """Whether batch-norm statistics are collected before features are taken."""
        return self.encoder in self.BUILT and self.calibrate_batchnorm is not False

    @model_validator(mode="after")
    def _feature_exists(self) -> FrozenConfig:
        if self.encoder in self.BUILT and self.feature == "context" and self.context is None:
            raise ValueError("feature: context of a random encoder needs context: {name: conv_gru}")
        if self.calibrate_batchnorm and self.encoder not in self.BUILT:
            raise ValueError(
                f"calibrate_batchnorm would change what encoder: {self.encoder} learned; "
                "it is for encoder: random"
            )
        return self
