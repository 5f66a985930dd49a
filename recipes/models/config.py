"""What a recipe says of a backbone, and the description an encoder file carries; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recipes.config import Strict
from recipes.data.clip_config import ClipConfig


class R2D3D18Config(Strict):
    """ResNet-18, last two stages 3D (DPC): 14,057,536 parameters, 256 features, stride 32."""

    name: Literal["r2d3d18"] = "r2d3d18"


class R2D3D34Config(Strict):
    """ResNet-34, last two stages 3D (DPC): 32,422,208 parameters, 256 features, stride 32."""

    name: Literal["r2d3d34"] = "r2d3d34"


class R2D3DTinyConfig(Strict):
    """One block a stage, 64 features, stride 8: for 32 to 64 px on a CPU (quickstart, tests)."""

    name: Literal["r2d3d_tiny"] = "r2d3d_tiny"


BackboneConfig = Annotated[
    R2D3D18Config | R2D3D34Config | R2D3DTinyConfig, Field(discriminator="name")
]


class ContextConfig(Strict):
    """The ConvGRU over blocks: as wide as the backbone's features, 1x1 kernels (DPC)."""

    name: Literal["conv_gru"] = "conv_gru"
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="on the hidden state after each block")


class EncoderConfig(Strict):
    """All that is needed to build an encoder again and to feed it: stored inside its file.

    `clip` is what it was trained on and the default of its consumers; `normalize` names the mean
    and standard deviation its input expects. `method` and `pretrain_data` are for tables; a network
    with random weights has method `random` and no data.
    """

    schema_version: Literal[1] = 1
    backbone: BackboneConfig
    context: ContextConfig | None = None
    clip: ClipConfig
    normalize: Literal["imagenet"] = "imagenet"
    method: str = "random"
    pretrain_data: str | None = None
    pretrain_steps: int = 0
