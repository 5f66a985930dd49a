"""What a recipe says of fine-tuning; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from recipes.contract import ArtifactKind
from recipes.data.augment_presets import AUGMENT_PRESETS, PresetName
from recipes.data.clip_config import AugmentConfig
from recipes.engine.config import TRAIN_TRANSIENT, OptimizerConfig, TrainFields
from recipes.evaluation.config import EvaluationConfig

# TengdaHan/DPC, eval/test.py: Adam 1e-3 and weight decay 1e-3.
DPC_OPTIMIZER = OptimizerConfig(name="adam", lr=1e-3, weight_decay=1e-3)


class FinetuneConfig(EvaluationConfig, TrainFields):
    """Trains encoder and a linear classifier on the labels, then tests on all test videos.

    `optimizer.lr` is the rate of the new layers; the encoder's is `backbone_lr_ratio` of it: 0.1
    for a pretrained encoder, 1 for `encoder: random`, which is supervised training from scratch.
    There is no choice of an epoch on the test videos: the last weights count.
    """

    OUTPUTS: ClassVar[Mapping[str, ArtifactKind]] = {"classifier": "classifier"}
    TRANSIENT: ClassVar[frozenset[str]] = TRAIN_TRANSIENT

    encoder: Literal["input", "random"] = "input"
    optimizer: OptimizerConfig = DPC_OPTIMIZER
    backbone_lr_ratio: float | None = Field(
        None, gt=0.0, description="default: 0.1, or 1 for encoder: random"
    )
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="before the classifier")
    augment: PresetName | AugmentConfig = "finetune"

    @property
    def lr_ratio(self) -> float:
        """Learning rate of the encoder over that of the new layers."""
        if self.backbone_lr_ratio is not None:
            return self.backbone_lr_ratio
        return 0.1 if self.encoder == "input" else 1.0

    @property
    def augmentation(self) -> AugmentConfig:
        """The changes of a training clip, a preset's name resolved."""
        given = self.augment
        return given if isinstance(given, AugmentConfig) else AUGMENT_PRESETS[given]

    @model_validator(mode="after")
    def _batch_norm_has_a_batch(self) -> FinetuneConfig:
        if self.micro_batch < 2:
            raise ValueError("micro_batch must be at least 2: batch norm needs more than one clip")
        return self

    @model_validator(mode="after")
    def _clip_fits(self) -> FinetuneConfig:
        if self.clip is not None:
            self.augmentation.check_blocks(self.clip.blocks)
            if self.clip.sampler.name == "camera_pair":
                raise ValueError("clip.sampler camera_pair is for pretraining: remove it")
        return self
