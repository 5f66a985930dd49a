"""Which frames of a video make a clip: pure functions of (frames, parameters, random state)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recipes.data.clip_config import ClipConfig

Indices = NDArray[np.int64]


def random_consecutive(n: int, frames: int, rng: np.random.Generator) -> Indices:
    """`frames` consecutive frames; a shorter video is repeated cyclically.

    Args:
        n: frames of the video.
        frames: frames asked for.
        rng: consumed once, always.

    Returns:
        (T,) indices below `n`. Start uniform on {0..max(0, n-T-1)}
        (simionAndrei/MScThesis, temporal_transform.py).
    """
    _check(n)
    start = int(rng.integers(0, max(0, n - frames - 1) + 1))
    return (start + np.arange(frames, dtype=np.int64)) % n


def strided(
    n: int,
    frames: int,
    stride: int,
    rng: np.random.Generator,
    short: Literal["loop", "clamp", "drop"] = "loop",
) -> Indices:
    """`frames` frames `stride` apart from a uniform start: (T,) indices below `n`.

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    _check(n)
    span = (frames - 1) * stride + 1
    start = int(rng.integers(0, max(0, n - span) + 1))
    if n < span and short == "drop":
        raise ValueError(f"{n} frames are fewer than the {span} needed")
    return _fit(start + stride * np.arange(frames, dtype=np.int64), n, short)


def blocks(n: int, clip: ClipConfig, rng: np.random.Generator) -> Indices:
    """Adjacent blocks from one uniform start, as DPC samples them.

    Start a ~ U{0..n - N*T*s - 1}; block i, frame j is a + (i*T + j)*s (TengdaHan/DPC,
    dataset_3d.py). A video of at most N*T*s frames starts at 0 and is looped or clamped.

    Returns:
        (N, T) indices below `n`.

    Raises:
        ValueError: such a video with `short: drop`; such rows are left out of the table before.
    """
    _check(n)
    start = int(rng.integers(0, max(0, n - clip.span - 1) + 1))
    if n < clip.min_frames:
        raise ValueError(f"{n} frames are fewer than the {clip.min_frames} needed")
    return _blocks_at(start, n, clip)


def uniform_windows(n: int, clip: ClipConfig, k: int) -> Indices:
    """`k` windows with equally spaced starts, first and last possible included; k=1 is the centre.

    Returns:
        (k, N, T) indices below `n`; windows of a video too short are looped or clamped.

    Raises:
        ValueError: the video is too short and `short` is `drop`, or k < 1.
    """
    _check(n)
    if k < 1:
        raise ValueError(f"windows must be at least 1, not {k}")
    if n < clip.min_frames:
        raise ValueError(f"{n} frames are fewer than the {clip.min_frames} needed")
    last = max(0, n - 1 - (clip.num_frames - 1) * clip.stride)
    starts = [last // 2] if k == 1 else [round(i * last / (k - 1)) for i in range(k)]
    return np.stack([_blocks_at(start, n, clip) for start in starts])


def _blocks_at(start: int, n: int, clip: ClipConfig) -> Indices:
    flat = start + clip.stride * np.arange(clip.num_frames, dtype=np.int64)
    return _fit(flat, n, clip.short).reshape(clip.blocks, clip.frames)


def _fit(indices: Indices, n: int, short: str) -> Indices:
    return np.minimum(indices, n - 1) if short == "clamp" else indices % n


def _check(n: int) -> None:
    if n < 1:
        raise ValueError("a video without frames cannot be sampled")
