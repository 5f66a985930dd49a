"""What a recipe says of clips and their augmentation; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recipes.config import Strict
from recipes.data.sampler_config import Blocks, SamplerConfig

Probability = Annotated[float, Field(ge=0.0, le=1.0)]

# For whom a random change is drawn anew: once for the whole sample, for each of its N clips (blocks
# or views), or for each frame. "Per clip" of a method with two views is `per_block` here.
Scope = Literal["per_clip", "per_block", "per_frame"]


class ClipConfig(Strict):
    """Which frames make a sample and how large they are.

    A sample is N = `blocks` clips (blocks, clips of a tuple, or views) of `frames` frames, `stride`
    source frames apart, all of one video; side `size` pixels. `sampler` says where they lie; by
    default they are adjacent blocks. `short` says what becomes of a video that is too short for it:
    frames are repeated cyclically, the last one is repeated, or the video is left out.
    """

    blocks: int = Field(1, ge=1)
    frames: int = Field(16, ge=1)
    stride: int = Field(1, ge=1)
    size: int = Field(112, ge=8)
    short: Literal["loop", "clamp", "drop"] = "loop"
    sampler: SamplerConfig = Blocks()

    @model_validator(mode="after")
    def _sampler_fits(self) -> ClipConfig:
        problem = self.sampler.problem(self.blocks, self.frames, self.stride)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def num_frames(self) -> int:
        """Frames a sample has, over all blocks."""
        return self.blocks * self.frames

    @property
    def span(self) -> int:
        """Source frames in which nothing has to be repeated; N*T*stride for adjacent blocks."""
        return self.sampler.span(self.blocks, self.frames, self.stride)

    @property
    def min_frames(self) -> int:
        """Frames a video needs to be used at all; DPC's code drops those of `span` or fewer."""
        if self.short != "drop":
            return 1
        return self.span + 1 if self.sampler.name == "blocks" else self.span

    @property
    def evaluated(self) -> ClipConfig:
        """What evaluation windows show: adjacent blocks as they are, else one plain clip."""
        if self.sampler.name == "blocks":
            return self
        return self.model_copy(update={"blocks": 1, "sampler": Blocks()})


class JitterConfig(Strict):
    """Colour jitter: relative ranges of brightness, contrast, saturation; hue in turns (<= 0.5)."""

    brightness: float = Field(0.0, ge=0.0, le=1.0)
    contrast: float = Field(0.0, ge=0.0, le=1.0)
    saturation: float = Field(0.0, ge=0.0, le=1.0)
    hue: float = Field(0.0, ge=0.0, le=0.5)
    p: Probability = 1.0


class AugmentConfig(Strict):
    """Random changes of a training clip; the default changes nothing but crops the centre.

    At most one of `crop_area` (resized crop), `crop_side` (square) and `crop_window` says what is
    cut out at random; without any it is the largest square in the middle. `crop_within` first takes
    a square from the middle. `rotate` turns the crop by up to so many degrees; pixels outside the
    picture are black. A horizontal flip is wrong where left and right are classes.

    `gray_split` copies one random channel to all three (DPC's "gray"); `gray` is luma.
    `colour_scope` is that of jitter, gray_split and gray.
    """

    crop_area: tuple[float, float] | None = Field(
        None, description="smallest and largest share of the area"
    )
    crop_aspect: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="for crop_area: smallest and largest width over height"
    )
    crop_side: tuple[float, float] | None = Field(
        None, description="smallest and largest side of a square, as shares of the short side"
    )
    crop_window: tuple[float, float] | None = Field(
        None, description="shares of height and width: resize to H x W, crop h x w is (h/H, w/W)"
    )
    crop_within: float = Field(
        1.0, gt=0.0, le=1.0, description="side of the square in the middle, of the short side"
    )
    crop_shift: int = Field(
        0, ge=0, description="each frame's crop moves by up to so many pixels of the clip"
    )
    crop_scope: Scope = "per_clip"
    rotate: float = Field(0.0, ge=0.0, le=180.0, description="degrees, with the scope of the crop")
    rotate_p: Probability = 1.0
    flip: Probability = 0.0
    flip_scope: Scope = "per_clip"
    jitter: JitterConfig = JitterConfig(p=0.0)
    gray_split: Probability = 0.0
    gray: Probability = 0.0
    blur: Probability = 0.0
    colour_scope: Literal["per_frame", "per_clip"] = "per_clip"

    @field_validator("crop_area", "crop_side")
    @classmethod
    def _range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0.0 < value[0] <= value[1] <= 1.0:
            raise ValueError("expected two shares with 0 < smallest <= largest <= 1")
        return value

    @field_validator("crop_window")
    @classmethod
    def _window(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not all(0.0 < share <= 1.0 for share in value):
            raise ValueError("expected the shares of height and width, above 0 and at most 1")
        return value

    @field_validator("crop_aspect")
    @classmethod
    def _aspect(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 < value[0] <= value[1]:
            raise ValueError("expected two ratios of width to height, smallest first, above 0")
        return value

    @model_validator(mode="after")
    def _one_crop(self) -> AugmentConfig:
        kinds = {
            "crop_area": self.crop_area,
            "crop_side": self.crop_side,
            "crop_window": self.crop_window,
        }
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different kinds of crop: keep one")
        return self


NO_AUGMENT = AugmentConfig()

# DPC on Kinetics-400 (TengdaHan/DPC, dpc/main.py); on UCF101 that code crops 224 of 240 to 256 px.
DPC_AUGMENT = AugmentConfig(
    crop_area=(0.5, 1.0),
    flip=0.5,
    jitter=JitterConfig(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, p=1.0),
    gray_split=0.5,
    colour_scope="per_frame",
)

# DPC's fine-tuning (TengdaHan/DPC, eval/test.py).
FINETUNE_AUGMENT = AugmentConfig(
    crop_area=(0.5, 1.0),
    flip=0.5,
    jitter=JitterConfig(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, p=0.3),
    colour_scope="per_clip",
)

AUGMENT_PRESETS: dict[str, AugmentConfig] = {
    "dpc": DPC_AUGMENT,
    "finetune": FINETUNE_AUGMENT,
    "none": NO_AUGMENT,
}
