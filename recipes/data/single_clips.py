"""Frame numbers of one clip: pure functions of (frames of the video, parameters, random state)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Short = Literal["loop", "clamp", "drop"]


def random_consecutive(
    n: int, frames: int, rng: np.random.Generator, stride: int = 1, short: Short = "loop"
) -> Indices:
    """`frames` consecutive frames; a shorter video is repeated cyclically.

    Args:
        n: frames of the video.
        frames: frames asked for.
        rng: consumed once, always.
        stride: source frames from one frame to the next; the seed has 1.
        short: what becomes of a video that is too short.

    Returns:
        (T,) indices below `n`. Start uniform on {0..max(0, n-T-1)}: the last possible start is
        never drawn (simionAndrei/MScThesis, temporal_transform.py).

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    span = check_length(n, frames, stride, short)
    start = int(rng.integers(0, max(0, n - span - 1) + 1))
    return fit(start + stride * np.arange(frames, dtype=np.int64), n, short)


def strided(
    n: int, frames: int, stride: int, rng: np.random.Generator, short: Short = "loop"
) -> Indices:
    """`frames` frames `stride` apart from a uniform start on {0..n-1-(T-1)*s}: (T,) indices.

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    span = check_length(n, frames, stride, short)
    start = int(rng.integers(0, max(0, n - span) + 1))
    return fit(start + stride * np.arange(frames, dtype=np.int64), n, short)


def chunk(n: int, frames: int, rng: np.random.Generator, short: Short = "loop") -> Indices:
    """`frames` contiguous frames from a uniform start on {0..n-T}: (T,) indices (seed 002)."""
    return strided(n, frames, 1, rng, short)


def random_frames(n: int, frames: int, rng: np.random.Generator) -> Indices:
    """Frames drawn independently and uniformly on {0..n-1}: (T,) indices (seed 002)."""
    check_length(n, 1, 1, "loop")
    return rng.integers(0, n, frames, dtype=np.int64)


def fit(indices: Indices, n: int, short: Short) -> Indices:
    """Bring indices past the end back into a video of `n` frames."""
    return np.minimum(indices, n - 1) if short == "clamp" else indices % n


def check_length(n: int, frames: int, stride: int, short: Short) -> int:
    """Source frames of a clip, (T-1)*s+1.

    Raises:
        ValueError: the video has no frames, or is too short and `short` is `drop`.
    """
    span = (frames - 1) * stride + 1
    check_span(n, span, short)
    return span


def check_span(n: int, span: int, short: Short) -> None:
    """Refuse a video of `n` frames that cannot give `span`.

    Raises:
        ValueError: it has no frames, or is too short and `short` is `drop`.
    """
    if n < 1:
        raise ValueError("a video without frames cannot be sampled")
    if n < span and short == "drop":
        raise ValueError(f"{n} frames are fewer than the {span} needed")
