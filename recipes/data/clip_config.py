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
Range = tuple[float, float]


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
    a square from the middle. `rotate` turns the picture behind the crop by up to so many degrees;
    what lies outside the picture is black. A flip is wrong where left and right are classes.

    `gray_split` copies one random channel to all three (DPC's "gray"); `gray` is luma. Their scope
    and that of jitter and `solarize` (values from 0.5 on become 1 minus themselves) is
    `colour_scope`. `erase` sets a random rectangle to 0. Where a probability may be a list, it has
    one entry for each of the N clips.
    """

    crop_area: Range | None = Field(None, description="smallest and largest share of the area")
    crop_aspect: Range = Field(
        (3 / 4, 4 / 3), description="for crop_area: smallest and largest width over height"
    )
    crop_side: Range | None = Field(
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
    solarize: Probability | tuple[Probability, ...] = 0.0
    colour_scope: Scope = "per_clip"
    blur: Probability | tuple[Probability, ...] = 0.0
    blur_scope: Scope = "per_clip"
    erase: Probability = 0.0
    erase_area: Range = Field((0.02, 0.33), description="share of the area; torchvision's")
    erase_aspect: Range = Field((0.3, 3.3), description="width over height; torchvision's")
    erase_scope: Scope = "per_clip"

    @field_validator("crop_area", "crop_side", "erase_area")
    @classmethod
    def _share(cls, value: Range | None) -> Range | None:
        if value is not None and not 0.0 < value[0] <= value[1] <= 1.0:
            raise ValueError("expected two shares with 0 < smallest <= largest <= 1")
        return value

    @field_validator("crop_aspect", "erase_aspect")
    @classmethod
    def _aspect(cls, value: Range) -> Range:
        if not 0.0 < value[0] <= value[1]:
            raise ValueError("expected two ratios of width to height, smallest first, above 0")
        return value

    @field_validator("crop_window")
    @classmethod
    def _window(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not all(0.0 < share <= 1.0 for share in value):
            raise ValueError("expected the shares of height and width, above 0 and at most 1")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> AugmentConfig:
        kinds = ("crop_area", "crop_side", "crop_window")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different kinds of crop: keep one")
        scopes = {"blur": self.blur_scope, "solarize": self.colour_scope}
        for name, scope in scopes.items():
            if isinstance(getattr(self, name), tuple) and scope == "per_clip":
                key = "blur_scope" if name == "blur" else "colour_scope"
                raise ValueError(f"{name} differs by clip: set {key} to per_block or per_frame")
        return self

    def check_blocks(self, blocks: int) -> None:
        """Refuse lists of probabilities that do not have one entry for each clip.

        Raises:
            ValueError: one has more or fewer than `blocks` entries.
        """
        for name in ("blur", "solarize"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != blocks:
                raise ValueError(
                    f"{name} has {len(value)} probabilities, one for each clip, but clip.blocks is "
                    f"{blocks}: make them equal"
                )


NO_AUGMENT = AugmentConfig()
