"""What a recipe says of the way frames are chosen; torch-free.

All samplers choose N = `clip.blocks` clips of T = `clip.frames` frames, `clip.stride` apart, from
one video; their formulas are in `recipes.data.samplers` and the modules it joins. `span` is the
number of source frames in which a draw repeats nothing, `problem` says why a clip cannot be drawn.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recipes.config import Strict


class _Sampler(Strict):
    """The defaults of a sampler whose N clips may lie anywhere, each inside the video."""

    def span(self, blocks: int, frames: int, stride: int) -> int:
        """Source frames of one clip, first to last."""
        return (frames - 1) * stride + 1

    def problem(self, blocks: int, frames: int, stride: int) -> str:
        """Why these numbers do not fit this sampler; empty if they do."""
        return ""


class _Pair(_Sampler):
    """Two clips that belong together."""

    def problem(self, blocks: int, frames: int, stride: int) -> str:
        """There must be two."""
        name = getattr(self, "name", "this")
        return "" if blocks == 2 else f"sampler {name} gives two clips: set blocks to 2"


class Blocks(_Sampler):
    """Adjacent blocks from one uniform start (DPC)."""

    name: Literal["blocks"] = "blocks"

    def span(self, blocks: int, frames: int, stride: int) -> int:
        """With the gap behind the last frame (N*S*ds), as DPC's code counts."""
        return blocks * frames * stride


class RandomConsecutive(_Sampler):
    """One clip with the start of simionAndrei/MScThesis; N views of it show the same frames."""

    name: Literal["random_consecutive"] = "random_consecutive"


class Strided(_Sampler):
    """One clip with a uniform start; N views of it show the same frames."""

    name: Literal["strided"] = "strided"


class Chunk(_Sampler):
    """One clip of contiguous frames with a uniform start; N views of it show the same frames."""

    name: Literal["chunk"] = "chunk"

    def problem(self, blocks: int, frames: int, stride: int) -> str:
        """Contiguous means a stride of one."""
        return "" if stride == 1 else "sampler chunk takes contiguous frames: set stride to 1"


class RandomFrames(_Sampler):
    """T frames drawn independently, for a 2D backbone; N views show the same frames."""

    name: Literal["random_frames"] = "random_frames"

    def span(self, blocks: int, frames: int, stride: int) -> int:
        """Frames may repeat, so one is enough."""
        return 1

    def problem(self, blocks: int, frames: int, stride: int) -> str:
        """A stride would have no meaning."""
        return "" if stride == 1 else "sampler random_frames has no stride: set stride to 1"


class ClipTuple(_Sampler):
    """N clips in order with `gap` unused frames between them (VCOP: 3 x 16 frames, gap 8)."""

    name: Literal["clip_tuple"] = "clip_tuple"
    gap: int = Field(8, ge=0, description="unused source frames between two clips")

    def span(self, blocks: int, frames: int, stride: int) -> int:
        """N*L + (N-1)*gap for a stride of one."""
        return blocks * ((frames - 1) * stride + 1) + (blocks - 1) * self.gap


class TwoClipsUniform(_Pair):
    """Two clips with independent uniform starts."""

    name: Literal["two_clips_uniform"] = "two_clips_uniform"


class TwoClipsDecreasing(_Pair):
    """Two clips whose distance t has a density proportional to 1-(t/T)^power (CVRL: 1)."""

    name: Literal["two_clips_decreasing"] = "two_clips_decreasing"
    power: float = Field(1.0, gt=0.0)


class RhoViews(_Sampler):
    """N clips with independent uniform starts, sorted by time (SlowFast's contrastive code)."""

    name: Literal["rho_views"] = "rho_views"


class TemporalShift(_Sampler):
    """N views of one window, each displaced by U{-shift..shift-1} frames of the clip."""

    name: Literal["temporal_shift"] = "temporal_shift"
    shift: int = Field(8, ge=1, description="frames; 8 on UCF101 and 4 on HMDB51 were best")

    def span(self, blocks: int, frames: int, stride: int) -> int:
        """A window of T+2s frames."""
        return (frames + 2 * self.shift - 1) * stride + 1


class TemporalDrop(_Pair):
    """Two views of one window of 2T frames: the even ones and the odd ones, in random order."""

    name: Literal["temporal_drop"] = "temporal_drop"

    def span(self, blocks: int, frames: int, stride: int) -> int:
        """A window of 2T frames."""
        return (2 * frames - 1) * stride + 1


class TemporalReverse(_Sampler):
    """Two views of one clip, one of them backwards; a single view is backwards half the time."""

    name: Literal["temporal_reverse"] = "temporal_reverse"

    def problem(self, blocks: int, frames: int, stride: int) -> str:
        """One view (arrow of time) or two (contrast)."""
        return "" if blocks <= 2 else "sampler temporal_reverse gives one or two views, not more"


class TemporalShuffle(_Sampler):
    """N views of one clip, each in a random order of its own."""

    name: Literal["temporal_shuffle"] = "temporal_shuffle"


class CameraPair(_Pair):
    """The same instants seen by two cameras; needs a data set with instances and cameras.

    `pick` says whether the instants are contiguous (`chunk`, for 3D networks) or drawn one by one
    (`frames`, for 2D networks).
    """

    name: Literal["camera_pair"] = "camera_pair"
    pick: Literal["chunk", "frames"] = "chunk"

    def span(self, blocks: int, frames: int, stride: int) -> int:
        """Frames both cameras must have in common."""
        return (frames - 1) * stride + 1 if self.pick == "chunk" else 1


class ConstantRate(_Sampler):
    """Each clip at a playback rate drawn from `rates`; the clips of one video differ in rate.

    With `short: loop` a clip starts at any frame and goes on at the first one past the end, as the
    released pace code does: such a cut is a cue for the rate. With `short: drop` clips lie inside
    the video, rates that do not fit are not drawn for it, and a video is left out when fewer than
    `blocks` rates fit.
    """

    name: Literal["constant_rate"] = "constant_rate"
    rates: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 3, 4)

    def span(self, blocks: int, frames: int, stride: int) -> int:
        """Frames with which `blocks` different rates fit."""
        spans = sorted((frames - 1) * rate * stride + 1 for rate in self.rates)
        return spans[blocks - 1]

    def problem(self, blocks: int, frames: int, stride: int) -> str:
        """Rates must rise and there must be enough of them."""
        if not self.rates or list(self.rates) != sorted(set(self.rates)):
            return f"sampler constant_rate needs rates that rise, not {list(self.rates)}"
        return _enough(blocks, len(self.rates), "rates")


class RateChange(_Sampler):
    """Clips whose playback rate may change inside (speediness change, seed 000).

    With 8 `classes`: constant at rate 1, 2, 3, 4; up by one or two levels; down by one or two. With
    3: constant, up, down. Classes are uniform, those of one video's clips differ; the pair of rates
    is uniform among those of its class. `change` is the last frame of the first rate, counted from
    1: the middle, a fixed number, or U{margin..T-margin}. `short` works as in `constant_rate`.
    """

    name: Literal["rate_change"] = "rate_change"
    classes: Literal[8, 3] = 8
    change: Literal["middle", "random"] | int = "middle"
    margin: int | None = Field(
        None, ge=2, description="for change: random; default: an eighth of the frames, at least 2"
    )

    def changes(self, frames: int) -> tuple[int, int]:
        """The first and the last possible change."""
        if self.change == "random":
            margin = self.margin or max(2, frames // 8)
            return margin, frames - margin
        change = frames // 2 if self.change == "middle" else int(self.change)
        return change, change

    def span(self, blocks: int, frames: int, stride: int) -> int:
        """Frames with which `blocks` different classes fit, wherever the change is."""
        spans = sorted(
            min(
                max(rate_span(frames, stride, *pair, c) for c in self.changes(frames))
                for pair in pairs
            )
            for pairs in RATE_CLASSES[self.classes]
        )
        return spans[blocks - 1]

    def problem(self, blocks: int, frames: int, stride: int) -> str:
        """The change must lie inside the clip."""
        first, last = self.changes(frames)
        if not 1 < first <= last < frames:
            return (
                f"sampler rate_change: the rate of {frames} frames cannot change at "
                f"{first if first == last else f'{first} to {last}'}; it must be above 1 and below "
                "frames: raise frames or change `change` or `margin`"
            )
        if self.margin is not None and self.change != "random":
            return "sampler rate_change: margin is for change: random only"
        return _enough(blocks, self.classes, "classes")


_CONSTANT = tuple((rate, rate) for rate in (1, 2, 3, 4))
_UP_1, _UP_2 = ((1, 2), (2, 3), (3, 4)), ((1, 3), (2, 4))
_DOWN_1, _DOWN_2 = ((2, 1), (3, 2), (4, 3)), ((3, 1), (4, 2))
# For each label the pairs of rates it may have (seed 000; changes by three levels do not occur).
RATE_CLASSES: dict[int, tuple[tuple[tuple[int, int], ...], ...]] = {
    8: (*((pair,) for pair in _CONSTANT), _UP_1, _UP_2, _DOWN_1, _DOWN_2),
    3: (_CONSTANT, _UP_1 + _UP_2, _DOWN_1 + _DOWN_2),
}


def rate_span(frames: int, stride: int, first: int, second: int, change: int) -> int:
    """Source frames of a clip with c-1 steps of rate `first` and T-c steps of rate `second`."""
    return ((change - 1) * first + (frames - change) * second) * stride + 1


def _enough(blocks: int, choices: int, what: str) -> str:
    if blocks <= choices:
        return ""
    return f"{blocks} clips of one video cannot differ in {choices} {what}: lower blocks"


SamplerConfig = Annotated[
    Blocks
    | RandomConsecutive
    | Strided
    | Chunk
    | RandomFrames
    | ClipTuple
    | TwoClipsUniform
    | TwoClipsDecreasing
    | RhoViews
    | TemporalShift
    | TemporalDrop
    | TemporalReverse
    | TemporalShuffle
    | CameraPair
    | ConstantRate
    | RateChange,
    Field(discriminator="name"),
]
