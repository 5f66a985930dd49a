"""Clip samplers: exact indices, ranges of the random start, short videos."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.clip_config import ClipConfig
from recipes.data.samplers import blocks, random_consecutive, strided, uniform_windows

DPC = ClipConfig(blocks=8, frames=5, stride=3, size=128)


def test_dpc_blocks_are_forty_frames_three_apart() -> None:
    for seed in range(50):
        indices = blocks(300, DPC, np.random.default_rng(seed))
        start = indices[0, 0]
        assert indices.shape == (8, 5)
        assert indices.dtype == np.int64
        assert indices.ravel().tolist() == list(range(start, start + 118, 3))


def test_the_start_of_blocks_is_uniform_up_to_n_minus_span_minus_one() -> None:
    rng = np.random.default_rng(0)
    starts = [blocks(130, DPC, rng)[0, 0] for _ in range(5000)]
    counts = np.bincount(starts)
    assert len(counts) == 10  # {0..130 - 120 - 1}
    assert counts.min() > 500 - 5 * 21  # five standard deviations of a count
    assert counts.max() < 500 + 5 * 21


def test_a_video_of_exactly_one_span_starts_at_zero_and_repeats_nothing() -> None:
    clip = ClipConfig(blocks=4, frames=5, stride=1, size=32)
    assert blocks(20, clip, np.random.default_rng(3)).ravel().tolist() == list(range(20))


@pytest.mark.parametrize(
    ("short", "expected"),
    [("loop", [0, 2, 4, 1, 3, 0]), ("clamp", [0, 2, 4, 4, 4, 4])],
)
def test_a_short_video_is_looped_or_clamped(
    short: Literal["loop", "clamp"], expected: list[int]
) -> None:
    clip = ClipConfig(blocks=2, frames=3, stride=2, size=32, short=short)
    assert blocks(5, clip, np.random.default_rng(0)).ravel().tolist() == expected
    assert uniform_windows(5, clip, 2).reshape(2, 6).tolist() == [expected, expected]


def test_a_dropped_length_is_an_error_and_the_limit_is_that_of_dpc() -> None:
    clip = DPC.model_copy(update={"short": "drop"})
    assert clip.min_frames == 121
    blocks(121, clip, np.random.default_rng(0))
    with pytest.raises(ValueError, match="120 frames are fewer than the 121 needed"):
        blocks(120, clip, np.random.default_rng(0))
    with pytest.raises(ValueError, match="fewer"):
        uniform_windows(120, clip, 3)


def test_windows_are_equally_spaced_and_include_both_ends() -> None:
    clip = ClipConfig(blocks=1, frames=16, stride=2, size=32)
    windows = uniform_windows(100, clip, 4)
    assert windows.shape == (4, 1, 16)
    assert windows[:, 0, 0].tolist() == [0, 23, 46, 69]
    assert windows[-1, 0, -1] == 99


def test_one_window_is_the_centre() -> None:
    clip = ClipConfig(blocks=1, frames=10, stride=1, size=32)
    assert uniform_windows(30, clip, 1)[0, 0].tolist() == list(range(10, 20))


def test_consecutive_frames_start_below_n_minus_m_and_loop_when_short() -> None:
    rng = np.random.default_rng(0)
    starts = {int(random_consecutive(20, 16, rng)[0]) for _ in range(500)}
    assert starts == {0, 1, 2, 3}
    assert random_consecutive(4, 6, rng).tolist() == [0, 1, 2, 3, 0, 1]


def test_strided_reaches_the_last_frame_and_no_further() -> None:
    rng = np.random.default_rng(0)
    ends = {int(strided(20, 4, 5, rng)[-1]) for _ in range(500)}
    assert ends == {15, 16, 17, 18, 19}
    assert strided(10, 4, 5, rng, "clamp").tolist()[-1] == 9
    with pytest.raises(ValueError, match="16 needed"):
        strided(10, 4, 5, rng, "drop")


@given(
    n=st.integers(1, 400),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)),
    short=st.sampled_from(["loop", "clamp"]),
    seed=st.integers(0, 2**32),
)
def test_every_index_exists_and_the_seed_decides(
    n: int, shape: tuple[int, int, int], short: Literal["loop", "clamp"], seed: int
) -> None:
    clip = ClipConfig(blocks=shape[0], frames=shape[1], stride=shape[2], size=32, short=short)
    first = blocks(n, clip, np.random.default_rng(seed))
    again = blocks(n, clip, np.random.default_rng(seed))
    windows = uniform_windows(n, clip, 3)
    assert np.array_equal(first, again)
    for indices in (first, windows):
        assert indices.min() >= 0
        assert indices.max() < n


def test_a_video_without_frames_is_an_error() -> None:
    with pytest.raises(ValueError, match="without frames"):
        random_consecutive(0, 4, np.random.default_rng(0))
