"""Frame numbers of clips played at other rates, with the answers their pretexts ask for.

Pure functions of (frames of the video, parameters, random state).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recipes.data.sampler_config import RATE_CLASSES, RateChange, rate_span
from recipes.data.single_clips import Indices, Short, check_span, fit


def constant_rate(
    n: int, frames: int, rate: int, rng: np.random.Generator, short: Short = "loop"
) -> Indices:
    """`frames` frames, `rate` apart: (T,) indices a + k*p below `n`.

    With `loop` the start is uniform on {0..n-1} and a clip that runs past the end goes on at the
    first frame (laura-wang/video-pace, datasets/ucf101.py), however far past the end it is. With
    `clamp` and `drop` the start is such that the clip fits, if it does.

    Raises:
        ValueError: the video is too short and `short` is `drop`.
    """
    return _play(n, np.full(frames - 1, rate, dtype=np.int64), rng, short)


def rate_change(
    n: int,
    frames: int,
    rates: tuple[int, int],
    change: int,
    rng: np.random.Generator,
    short: Short = "loop",
    stride: int = 1,
) -> Indices:
    """A clip whose rate changes: c-1 steps of the first rate, then T-c of the second: (T,) indices.

    Frame `change` (from 1) is the last of the first rate; with two equal rates nothing changes.
    Start and end as in `constant_rate` (seed 000).

    Raises:
        ValueError: not 1 < change < frames, or the video is too short and `short` is `drop`.
    """
    if not 1 < change < frames:
        raise ValueError(f"the rate of {frames} frames cannot change at frame {change}")
    first, second = rates
    steps = np.repeat(np.array([first, second], dtype=np.int64), [change - 1, frames - change])
    return _play(n, stride * steps, rng, short)


def _play(n: int, steps: Indices, rng: np.random.Generator, short: Short) -> Indices:
    """Frames that are `steps` (T-1,) apart, from a random start."""
    span = int(steps.sum()) + 1
    check_span(n, span, short)
    offsets = np.concatenate([[0], np.cumsum(steps)])
    if short != "loop":
        start = int(rng.integers(0, max(0, n - span) + 1))
        return fit(start + offsets, n, short)
    indices = int(rng.integers(0, n)) + offsets
    while indices[-1] >= n:
        past = int(np.argmax(indices >= n))
        indices[past:] -= indices[past]
    return indices


def draw_rates(
    n: int,
    clips: int,
    frames: int,
    rates: Sequence[int],
    rng: np.random.Generator,
    short: Short = "loop",
    stride: int = 1,
) -> tuple[Indices, Indices]:
    """Clips at different rates: the rates uniform among those that may be drawn.

    Returns:
        (N, T) indices, and (N,) places of the rates in `rates`.

    Raises:
        ValueError: fewer than `clips` rates fit the video and `short` is `drop`.
    """
    spans = [(frames - 1) * rate * stride + 1 for rate in rates]
    allowed = [k for k, span in enumerate(spans) if span <= n or short != "drop"]
    if len(allowed) < clips:
        check_span(n, sorted(spans)[clips - 1], short)
    labels = rng.permutation(np.array(allowed, dtype=np.int64))[:clips]
    chosen = [constant_rate(n, frames, rates[label] * stride, rng, short) for label in labels]
    return np.stack(chosen), labels


def draw_rate_changes(
    n: int,
    clips: int,
    frames: int,
    config: RateChange,
    rng: np.random.Generator,
    short: Short = "loop",
    stride: int = 1,
) -> tuple[Indices, dict[str, Indices]]:
    """Clips of different classes of rate change: class uniform, then pair and place of the change.

    Returns:
        (N, T) indices, and four (N,) arrays: `label` of the class, `rate` and `rate_after`, and
        `change`, the last frame of the first rate from 1; 0 for a constant rate.

    Raises:
        ValueError: fewer than `clips` classes fit the video and `short` is `drop`.
    """
    earliest, latest = config.changes(frames)
    free = list(range(config.classes))
    chosen, facts = [], []
    for _ in range(clips):
        change = int(rng.integers(earliest, latest + 1))
        fitting = {
            label: [
                pair
                for pair in RATE_CLASSES[config.classes][label]
                if short != "drop" or rate_span(frames, stride, *pair, change) <= n
            ]
            for label in free
        }
        labels = [label for label, pairs in fitting.items() if pairs]
        if not labels:
            raise ValueError(f"{n} frames are too few for {clips} different changes of rate")
        label = labels[int(rng.integers(len(labels)))]
        pair = fitting[label][int(rng.integers(len(fitting[label])))]
        chosen.append(rate_change(n, frames, pair, change, rng, short, stride))
        facts.append((label, *pair, change if pair[0] != pair[1] else 0))
        free.remove(label)
    names = ("label", "rate", "rate_after", "change")
    columns = np.array(facts, dtype=np.int64).T
    return np.stack(chosen), dict(zip(names, columns, strict=True))
