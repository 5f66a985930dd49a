"""What a recipe says of Dense Predictive Coding; torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recipes.config import Strict
from recipes.data.augment_presets import AUGMENT_PRESETS, PresetName
from recipes.data.clip_config import AugmentConfig, ClipConfig


class HorizonConfig(Strict):
    """From `epoch` on, `steps` blocks are predicted."""

    epoch: int = Field(ge=0)
    steps: int = Field(ge=1)


class DPCConfig(Strict):
    """The last `pred_steps` blocks of a clip are predicted from those before them.

    `horizon` is the curriculum of growing prediction: it starts with few steps and reaches up to
    `pred_steps`; the observed blocks stay the same. Empty, all steps are predicted from the start,
    as in the released code.
    """

    name: Literal["dpc"] = "dpc"
    pred_steps: int = Field(3, ge=1)
    horizon: tuple[HorizonConfig, ...] = ()
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="on the ConvGRU's hidden state")
    augment: PresetName | AugmentConfig = "dpc"

    @model_validator(mode="after")
    def _horizon_fits(self) -> DPCConfig:
        if not self.horizon:
            return self
        epochs = [change.epoch for change in self.horizon]
        if epochs[0] != 0 or epochs != sorted(set(epochs)):
            raise ValueError("horizon must begin at epoch 0 and its epochs must rise")
        longest = max(change.steps for change in self.horizon)
        if longest > self.pred_steps:
            raise ValueError(f"horizon asks for {longest} steps, pred_steps is {self.pred_steps}")
        return self

    @property
    def augmentation(self) -> AugmentConfig:
        """The changes of a training clip, a preset's name resolved."""
        given = self.augment
        return given if isinstance(given, AugmentConfig) else AUGMENT_PRESETS[given]

    def steps_at(self, epoch: int) -> int:
        """Blocks predicted in an epoch; a pure function, so that a resume needs no state."""
        reached = [change.steps for change in self.horizon if change.epoch <= epoch]
        return reached[-1] if reached else self.pred_steps

    def check_clip(self, clip: ClipConfig) -> None:
        """Refuse a clip this method cannot be trained on.

        Raises:
            ValueError: its blocks do not follow each other, or none is left to predict from.
        """
        if clip.sampler.name != "blocks":
            raise ValueError(
                f"dpc predicts blocks from those before them, but clip.sampler is "
                f"{clip.sampler.name}: remove clip.sampler"
            )
        if clip.blocks <= self.pred_steps:
            raise ValueError(
                f"dpc predicts {self.pred_steps} of clip.blocks = {clip.blocks} blocks: none is "
                "left to predict from; raise clip.blocks or lower method.pred_steps"
            )
