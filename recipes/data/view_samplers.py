"""Frame numbers of several clips or views of one video, and of one instant in two videos.

Pure functions of (frames of the video, parameters, random state).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recipes.data.single_clips import (
    Indices,
    Short,
    check_length,
    check_span,
    fit,
    random_consecutive,
    strided,
)


def clip_tuple(
    n: int,
    clips: int,
    frames: int,
    gap: int,
    rng: np.random.Generator,
    stride: int = 1,
    short: Short = "loop",
) -> Indices:
    """`clips` clips in order of time with `gap` unused frames between them: (N, T) indices.

    Start uniform on {0..n - (N*L + (N-1)*gap)} where L = (T-1)*s+1 is the length of a clip
    (xudejing/video-clip-order-prediction, datasets/ucf101.py: 3 x 16 frames, gap 8, 64 in all).

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    length = (frames - 1) * stride + 1
    span = clips * length + (clips - 1) * gap
    check_span(n, span, short)
    start = int(rng.integers(0, max(0, n - span) + 1))
    starts = start + (length + gap) * np.arange(clips, dtype=np.int64)
    return fit(starts[:, None] + stride * np.arange(frames, dtype=np.int64), n, short)


def two_clips_uniform(
    n: int, frames: int, stride: int, rng: np.random.Generator, short: Short = "loop"
) -> Indices:
    """Two clips with independent uniform starts, in the order they were drawn: (2, T) indices.

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    return np.stack([strided(n, frames, stride, rng, short) for _ in range(2)])


def two_clips_decreasing(
    n: int,
    frames: int,
    stride: int,
    rng: np.random.Generator,
    power: float = 1.0,
    short: Short = "loop",
) -> Indices:
    """Two clips whose distance t in time has a density proportional to 1 - (t/T)^power on [0, T].

    T = n - (F-1)*s counts the possible starts. The earlier start is uniform on [0, T-t]; both are
    drawn as real numbers and rounded down, which leaves the mean distance as it is; which clip
    comes first is random. In a video too short for one clip both starts are uniform on {0..n-1}
    (tensorflow/models, official/projects/video_ssl/ops/video_ssl_preprocess_ops.py).

    Returns:
        (2, T) indices below `n`.

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    check_length(n, frames, stride, short)
    choices = n - (frames - 1) * stride
    if choices < 1:
        starts = rng.integers(0, n, 2, dtype=np.int64)
    else:
        distance = choices * _decreasing(float(rng.random()), power)
        first = rng.random() * (choices - distance)
        pair = np.floor([first, min(first + distance, choices - 1e-6)]).astype(np.int64)
        starts = pair[::-1] if rng.random() < 0.5 else pair
    return fit(starts[:, None] + stride * np.arange(frames, dtype=np.int64), n, short)


def _decreasing(u: float, power: float) -> float:
    """The u-quantile of the density (1+1/p)*(1-x^p) on [0, 1], to 1e-15 by halving.

    For p = 1 it is 1 - sqrt(1-u), with mean 1/3.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if ((power + 1) * middle - middle ** (power + 1)) / power > u:
            high = middle
        else:
            low = middle
    return low


def rho_views(
    n: int,
    clips: int,
    frames: int,
    stride: int,
    rng: np.random.Generator,
    short: Short = "loop",
) -> Indices:
    """Clips with independent uniform starts over the whole video, sorted by time: (N, T) indices.

    facebookresearch/SlowFast, slowfast/datasets/decoder.py.

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    span = check_length(n, frames, stride, short)
    starts = np.sort(rng.integers(0, max(0, n - span) + 1, clips, dtype=np.int64))
    return fit(starts[:, None] + stride * np.arange(frames, dtype=np.int64), n, short)


def temporal_shift(
    n: int,
    views: int,
    frames: int,
    shift: int,
    rng: np.random.Generator,
    stride: int = 1,
    short: Short = "loop",
) -> Indices:
    """Views displaced inside one window of T+2s frames: (N, T) indices.

    View v is frames s+r..s+r+T-1 of the window with r ~ U{-s..s-1} of its own; the window is drawn
    by `random_consecutive` (simionAndrei/MScThesis, data_transform.py).

    Raises:
        ValueError: the video is too short for the window and `short` is `drop`.
    """
    window = random_consecutive(n, frames + 2 * shift, rng, stride, short)
    starts = shift + rng.integers(-shift, shift, views)
    views_of: Indices = window[starts[:, None] + np.arange(frames)]
    return views_of


def temporal_drop(
    n: int, frames: int, rng: np.random.Generator, stride: int = 1, short: Short = "loop"
) -> Indices:
    """Even and odd frames of one window of 2T frames, in random order: (2, T) indices.

    simionAndrei/MScThesis, data_transform.py (`get_temporal_subsample`).

    Raises:
        ValueError: the video is too short for the window and `short` is `drop`.
    """
    window = random_consecutive(n, 2 * frames, rng, stride, short)
    first = int(rng.integers(0, 2))
    return np.stack([window[first::2], window[1 - first :: 2]])


def temporal_reverse(
    n: int,
    views: int,
    frames: int,
    rng: np.random.Generator,
    stride: int = 1,
    short: Short = "loop",
) -> tuple[Indices, Indices]:
    """One clip twice, one of them backwards; which one is random, as in seed 001.

    The released code always reverses the second. With a single view a coin decides whether it is
    reversed, which is the arrow of time as a binary question.

    Returns:
        (N, T) indices, and (N,) 1 for a reversed view and 0 for the other.

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    clip = random_consecutive(n, frames, rng, stride, short)
    backwards = (int(rng.integers(0, 2)) + np.arange(views, dtype=np.int64)) % 2
    return np.stack([clip[::-1] if back else clip for back in backwards]), backwards


def temporal_shuffle(
    n: int,
    views: int,
    frames: int,
    rng: np.random.Generator,
    stride: int = 1,
    short: Short = "loop",
) -> Indices:
    """One clip in `views` independent random orders: (N, T) indices.

    simionAndrei/MScThesis, data_transform.py.

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    clip = random_consecutive(n, frames, rng, stride, short)
    return np.stack([rng.permutation(clip) for _ in range(views)])


def camera_pair(
    lengths: Sequence[int],
    offsets: Sequence[int],
    frames: int,
    stride: int,
    rng: np.random.Generator,
    pick: str = "chunk",
    short: Short = "loop",
) -> Indices:
    """The same instants in the videos of two cameras: (2, T) indices, one row a camera.

    The instant t of the common clock is frame t + offset of a camera, so the two have the instants
    max(-o_a, -o_b) <= t < min(n_a - o_a, n_b - o_b) in common; the clip is drawn among these. Where
    a recording is only part of its file, lengths count from its first frame, which the caller adds.

    Args:
        lengths: frames of the two recordings.
        offsets: frames by which each is late: its frame number at the instant 0.
        frames: T.
        stride: instants from one frame to the next, for `chunk`.
        rng: random state.
        pick: `chunk` for one clip with a uniform start, `frames` for instants drawn one by one.
        short: what becomes of too few common instants; looping stays among the common ones.

    Raises:
        ValueError: no common instant, or too few of them and `short` is `drop`.
    """
    first = max(-offset for offset in offsets)
    last = min(length - offset for length, offset in zip(lengths, offsets, strict=True))
    common = last - first
    if common < 1:
        raise ValueError(
            f"two cameras with {lengths[0]} and {lengths[1]} frames and offsets {offsets[0]} and "
            f"{offsets[1]} have no instant in common"
        )
    if pick == "chunk":
        instants = first + strided(common, frames, stride, rng, short)
    else:
        instants = first + rng.integers(0, common, frames, dtype=np.int64)
    return np.stack([instants + offset for offset in offsets])
