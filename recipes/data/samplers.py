"""Which frames of a video a sample shows: `sample` for training, windows for evaluation.

All functions are pure in (frames of the video, parameters, random state) and return int64 indices
of frames in presentation order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np

from recipes.data.clip_config import ClipConfig
from recipes.data.rate_samplers import draw_rate_changes, draw_rates
from recipes.data.sampler_config import (
    Blocks,
    CameraPair,
    Chunk,
    ClipTuple,
    ConstantRate,
    RandomConsecutive,
    RandomFrames,
    RateChange,
    RhoViews,
    Strided,
    TemporalDrop,
    TemporalReverse,
    TemporalShift,
    TemporalShuffle,
    TwoClipsDecreasing,
    TwoClipsUniform,
)
from recipes.data.single_clips import (
    Indices,
    check_span,
    chunk,
    fit,
    random_consecutive,
    random_frames,
    strided,
)
from recipes.data.view_samplers import (
    clip_tuple,
    rho_views,
    temporal_drop,
    temporal_reverse,
    temporal_shift,
    temporal_shuffle,
    two_clips_decreasing,
    two_clips_uniform,
)

__all__ = [
    "Indices",
    "Sampled",
    "blocks",
    "linspace_clips",
    "random_consecutive",
    "sample",
    "sliding",
    "strided",
    "uniform_windows",
]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The frames of one sample and what a pretext asks about them.

    Attributes:
        indices: (N, T) int64, below the number of frames.
        extra: (N,) int64 arrays, one number a clip; empty for most samplers. `constant_rate`:
            `label` (place in `rates`), `rate`. `rate_change`: `label`, `rate`, `rate_after`,
            `change` (0 for none). `temporal_reverse`: `reversed`.
    """

    indices: Indices
    extra: Mapping[str, Indices] = field(default_factory=dict)


def sample(n: int, clip: ClipConfig, rng: np.random.Generator) -> Sampled:
    """Draw the frames of one training sample, as `clip.sampler` says.

    Args:
        n: frames of the video.
        clip: N clips of T frames.
        rng: consumed; the result depends on nothing else.

    Raises:
        ValueError: the video has no frames or is too short and `short` is `drop`, or the sampler
            is `camera_pair`, which needs two videos: `view_samplers.camera_pair`.
    """
    many, frames, stride, short = clip.blocks, clip.frames, clip.stride, clip.short
    match clip.sampler:
        case Blocks():
            return Sampled(indices=blocks(n, clip, rng))
        case RandomConsecutive():
            return _views(random_consecutive(n, frames, rng, stride, short), many)
        case Strided():
            return _views(strided(n, frames, stride, rng, short), many)
        case Chunk():
            return _views(chunk(n, frames, rng, short), many)
        case RandomFrames():
            return _views(random_frames(n, frames, rng), many)
        case ClipTuple(gap=gap):
            return Sampled(indices=clip_tuple(n, many, frames, gap, rng, stride, short))
        case TwoClipsUniform():
            return Sampled(indices=two_clips_uniform(n, frames, stride, rng, short))
        case TwoClipsDecreasing(power=power):
            return Sampled(indices=two_clips_decreasing(n, frames, stride, rng, power, short))
        case RhoViews():
            return Sampled(indices=rho_views(n, many, frames, stride, rng, short))
        case TemporalShift(shift=shift):
            return Sampled(indices=temporal_shift(n, many, frames, shift, rng, stride, short))
        case TemporalDrop():
            return Sampled(indices=temporal_drop(n, frames, rng, stride, short))
        case TemporalReverse():
            indices, backwards = temporal_reverse(n, many, frames, rng, stride, short)
            return Sampled(indices=indices, extra={"reversed": backwards})
        case TemporalShuffle():
            return Sampled(indices=temporal_shuffle(n, many, frames, rng, stride, short))
        case ConstantRate(rates=rates):
            indices, labels = draw_rates(n, many, frames, rates, rng, short, stride)
            extra = {"label": labels, "rate": np.array(rates, dtype=np.int64)[labels]}
            return Sampled(indices=indices, extra=extra)
        case RateChange() as config:
            indices, facts = draw_rate_changes(n, many, frames, config, rng, short, stride)
            return Sampled(indices=indices, extra=facts)
        case CameraPair():
            raise ValueError("camera_pair draws from the videos of two cameras, not from one")
        case never:
            assert_never(never)


def _views(indices: Indices, count: int) -> Sampled:
    """The same frames `count` times: views that differ by augmentation alone."""
    return Sampled(indices=np.tile(indices, (count, 1)))


def blocks(n: int, clip: ClipConfig, rng: np.random.Generator) -> Indices:
    """Adjacent blocks from one uniform start, as DPC samples them.

    Start a ~ U{0..n - N*T*s - 1}; block i, frame j is a + (i*T + j)*s (TengdaHan/DPC,
    dataset_3d.py). A video of at most N*T*s frames starts at 0 and is looped or clamped.

    Returns:
        (N, T) indices below `n`.

    Raises:
        ValueError: such a video with `short: drop`; such rows are left out of the table before.
    """
    check_span(n, clip.min_frames, clip.short)
    last = max(0, n - clip.num_frames * clip.stride - 1)
    return _blocks_at(int(rng.integers(0, last + 1)), n, clip)


def uniform_windows(n: int, clip: ClipConfig, k: int) -> Indices:
    """`k` windows with equally spaced starts, first and last possible included; k=1 is the centre.

    Returns:
        (k, N, T) indices below `n`, N and T of `clip.evaluated`; windows of a video too short are
        looped or clamped.

    Raises:
        ValueError: the video is too short and `short` is `drop`, or k < 1.
    """
    last, clip = _last_start(n, clip), clip.evaluated
    if k < 1:
        raise ValueError(f"windows must be at least 1, not {k}")
    starts = [last // 2] if k == 1 else [round(i * last / (k - 1)) for i in range(k)]
    return np.stack([_blocks_at(start, n, clip) for start in starts])


def linspace_clips(n: int, clip: ClipConfig, k: int) -> Indices:
    """`k` windows with starts equally spaced on [0, n-L], both ends included, rounded down.

    The evaluation of the VCOP family (xudejing/video-clip-order-prediction, datasets/ucf101.py: 10
    windows). It differs from `uniform_windows` in the rounding, and in a single window: the first.

    Returns:
        (k, N, T) indices below `n`, as `uniform_windows`.

    Raises:
        ValueError: as `uniform_windows`.
    """
    last, clip = _last_start(n, clip), clip.evaluated
    if k < 1:
        raise ValueError(f"windows must be at least 1, not {k}")
    starts = [0] if k == 1 else [i * last // (k - 1) for i in range(k)]
    return np.stack([_blocks_at(start, n, clip) for start in starts])


def sliding(n: int, clip: ClipConfig, overlap: int) -> Indices:
    """All windows of L frames with `overlap` frames in common, from the first frame on.

    Starts are 0, (L-overlap)*s, ...; there are floor((n-span)/((L-overlap)*s)) + 1 windows, an
    incomplete last one is left out. Online action detection (seed 002) has 8 frames with overlap 3
    and 4 with 2; DPC's test has 8 blocks of 5 frames at stride 3 with an overlap of 4 blocks (20).

    Returns:
        (k, N, T) indices below `n`, N and T of `clip.evaluated`; k = 1 for a video too short, which
        is looped or clamped.

    Raises:
        ValueError: the video is too short and `short` is `drop`, or not 0 <= overlap < L.
    """
    last, clip = _last_start(n, clip), clip.evaluated
    if not 0 <= overlap < clip.num_frames:
        raise ValueError(f"overlap must be from 0 to {clip.num_frames - 1} frames, not {overlap}")
    starts = range(0, last + 1, (clip.num_frames - overlap) * clip.stride)
    return np.stack([_blocks_at(start, n, clip) for start in starts])


def _last_start(n: int, clip: ClipConfig) -> int:
    """The last frame a window can start at; 0 in a video too short."""
    check_span(n, clip.min_frames, clip.short)
    clip = clip.evaluated
    return max(0, n - 1 - (clip.num_frames - 1) * clip.stride)


def _blocks_at(start: int, n: int, clip: ClipConfig) -> Indices:
    flat = start + clip.stride * np.arange(clip.num_frames, dtype=np.int64)
    return fit(flat, n, clip.short).reshape(clip.blocks, clip.frames)
