"""Several clips or views of one video: exact distances, distributions, short videos, cameras."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recipes.data.clip_config import ClipConfig
from recipes.data.sampler_config import (
    ClipTuple,
    RhoViews,
    TemporalDrop,
    TemporalReverse,
    TemporalShift,
    TemporalShuffle,
    TwoClipsDecreasing,
    TwoClipsUniform,
)
from recipes.data.samplers import sample
from recipes.data.view_samplers import (
    camera_pair,
    clip_tuple,
    rho_views,
    temporal_drop,
    temporal_reverse,
    temporal_shift,
    temporal_shuffle,
    two_clips_decreasing,
    two_clips_uniform,
)

ALMOST_NEVER = 1e-4  # a correct sampler falls below this p-value once in 10,000 seeds


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def p_of_uniform(values: list[int], count: int) -> float:
    """p-value of {0..count-1} being equally likely; other values make it 0."""
    counts = np.bincount(values, minlength=count)
    return 0.0 if len(counts) > count else float(stats.chisquare(counts).pvalue)


def test_a_tuple_of_vcop_needs_64_frames_and_leaves_8_between_clips() -> None:
    assert ClipConfig(blocks=3, frames=16, sampler=ClipTuple(gap=8)).span == 64
    indices = clip_tuple(64, 3, 16, 8, rng(), short="drop")
    assert indices.tolist() == [list(range(start, start + 16)) for start in (0, 24, 48)]
    with pytest.raises(ValueError, match="63 frames are fewer than the 64 needed"):
        clip_tuple(63, 3, 16, 8, rng(), short="drop")
    assert clip_tuple(10, 2, 3, 8, rng()).tolist() == [[0, 1, 2], [1, 2, 3]]


def test_the_start_of_a_tuple_is_uniform_and_a_stride_spreads_its_clips() -> None:
    generator = rng(1)
    starts = [int(clip_tuple(70, 3, 16, 8, generator)[0, 0]) for _ in range(3000)]
    assert p_of_uniform(starts, 7) > ALMOST_NEVER
    assert clip_tuple(17, 2, 3, 7, rng(), stride=2).tolist() == [[0, 2, 4], [12, 14, 16]]


def test_two_uniform_clips_are_independent() -> None:
    generator = rng(2)
    pairs = np.array([two_clips_uniform(12, 3, 4, generator)[:, 0] for _ in range(4000)])
    joint = (4 * pairs[:, 0] + pairs[:, 1]).tolist()
    assert p_of_uniform(joint, 16) > ALMOST_NEVER


def test_the_distance_of_cvrl_has_mean_a_third_of_the_possible_starts() -> None:
    generator = rng(3)
    frames, stride, n = 16, 2, 300
    possible = n - (frames - 1) * stride
    starts = np.array(
        [two_clips_decreasing(n, frames, stride, generator)[:, 0] for _ in range(100_000)]
    )
    gaps = np.abs(starts[:, 1] - starts[:, 0])
    assert abs(gaps.mean() / (possible / 3) - 1) < 0.01
    assert starts.min() == 0
    assert starts.max() == possible - 1
    assert abs((starts[:, 1] > starts[:, 0]).mean() - 0.5) < 0.01


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_the_distance_follows_its_density(power: float) -> None:
    generator = rng(4)
    possible = 50_000  # starts, so that whole frames are nearly a continuum
    pairs = [two_clips_decreasing(possible, 1, 1, generator, power)[:, 0] for _ in range(3000)]
    shares = [abs(int(two) - int(one)) / possible for one, two in pairs]

    def cumulative(x: np.ndarray) -> np.ndarray:
        return ((power + 1) * x - x ** (power + 1)) / power

    assert stats.kstest(shares, cumulative).pvalue > ALMOST_NEVER
    if power == 1:
        assert stats.kstest(shares, lambda x: 1 - (1 - x) ** 2).pvalue > ALMOST_NEVER


def test_the_earlier_clip_of_cvrl_is_uniform_in_what_the_distance_leaves() -> None:
    generator = rng(5)
    pairs = [np.sort(two_clips_decreasing(5000, 1, 1, generator)[:, 0]) for _ in range(3000)]
    places = [one / (5000 - (two - one)) for one, two in pairs]
    assert stats.kstest(places, "uniform").pvalue > ALMOST_NEVER


def test_two_clips_of_a_short_video_start_anywhere_and_loop() -> None:
    generator = rng(6)
    drawn = [two_clips_decreasing(5, 4, 2, generator) for _ in range(1000)]
    assert p_of_uniform([int(pair[0, 0]) for pair in drawn], 5) > ALMOST_NEVER
    assert all(np.array_equal(pair, (pair[:, :1] + [0, 2, 4, 6]) % 5) for pair in drawn)
    with pytest.raises(ValueError, match="7 needed"):
        two_clips_decreasing(5, 4, 2, generator, short="drop")


def test_rho_views_are_sorted_by_time_and_each_start_is_possible() -> None:
    generator = rng(7)
    drawn = [rho_views(20, 2, 4, 5, generator)[:, 0] for _ in range(5000)]
    assert all(one <= two for one, two in drawn)
    # Sorted pairs of independent uniform starts on {0..4}: equal ones 1/25, others 2/25.
    pairs = [(i, j) for i in range(5) for j in range(i, 5)]
    counts = np.array([sum((a, b) == pair for a, b in drawn) for pair in pairs])
    expected = [5000 * (1 if i == j else 2) / 25 for i, j in pairs]
    assert stats.chisquare(counts, expected).pvalue > ALMOST_NEVER


def test_shifted_views_are_displaced_by_minus_s_to_s_minus_one_each_for_itself() -> None:
    generator = rng(8)
    # A window of 10 in 11 frames starts at 0: the released code never draws the last start.
    drawn = [temporal_shift(11, 2, 4, 3, generator)[:, 0] - 3 for _ in range(6000)]
    joint = [int(6 * (one + 3) + two + 3) for one, two in drawn]
    assert {int(one) for one, _ in drawn} == {-3, -2, -1, 0, 1, 2}
    assert p_of_uniform(joint, 36) > ALMOST_NEVER
    view = temporal_shift(11, 1, 4, 3, generator)[0]
    assert np.diff(view).tolist() == [1, 1, 1]


def test_dropping_frames_leaves_the_even_ones_to_one_view_and_the_odd_to_the_other() -> None:
    generator = rng(9)
    firsts = set()
    for _ in range(50):
        one, two = temporal_drop(9, 4, generator)
        assert sorted([*one, *two]) == list(range(8))
        assert np.diff(one).tolist() == np.diff(two).tolist() == [2, 2, 2]
        firsts.add(int(one[0]))
    assert firsts == {0, 1}


def test_one_of_two_views_is_reversed_and_which_is_random_and_reported() -> None:
    generator = rng(10)
    answers = []
    for _ in range(200):
        views, backwards = temporal_reverse(30, 2, 5, generator)
        assert sorted(backwards) == [0, 1]
        assert np.array_equal(views[0], views[1][::-1])
        assert (np.diff(views[backwards.argmax()]) == -1).all()
        answers.append(int(backwards[0]))
    assert 60 < sum(answers) < 140


def test_a_single_view_is_reversed_half_the_time() -> None:
    generator = rng(11)
    answers = []
    for _ in range(200):
        views, backwards = temporal_reverse(30, 1, 5, generator)
        assert (np.diff(views[0]) == (-1 if backwards[0] else 1)).all()
        answers.append(int(backwards[0]))
    assert 60 < sum(answers) < 140


def test_shuffled_views_have_the_same_frames_in_independent_orders() -> None:
    generator = rng(12)
    orders = []
    for _ in range(2400):
        views = temporal_shuffle(4, 2, 3, generator)
        assert sorted(views[0]) == sorted(views[1]) == [0, 1, 2]
        ranks = [int(np.argsort(view) @ [9, 3, 1]) for view in views]
        orders.append(tuple(ranks))
    seen = sorted({order for pair in orders for order in pair})
    assert len(seen) == 6
    joint = [6 * seen.index(one) + seen.index(two) for one, two in orders]
    assert p_of_uniform(joint, 36) > ALMOST_NEVER


@pytest.mark.parametrize("offsets", [(0, 0), (3, -2), (-4, 0), (10, 12)])
def test_two_cameras_show_the_same_instants(offsets: tuple[int, int]) -> None:
    generator = rng(13)
    lengths = (40, 35)
    for _ in range(200):
        one, two = camera_pair(lengths, offsets, 8, 1, generator, short="drop")
        assert np.array_equal(one - offsets[0], two - offsets[1])
        assert np.diff(one).tolist() == [1] * 7
        assert 0 <= one.min() <= one.max() < 40
        assert 0 <= two.min() <= two.max() < 35


def test_every_common_instant_of_two_cameras_can_be_drawn() -> None:
    generator = rng(14)
    starts = [int(camera_pair((20, 18), (5, 2), 4, 1, generator)[0, 0]) for _ in range(3000)]
    # The 17 instants -2..14 are in both; the first is frame 3 of the first camera.
    assert min(starts) == 3
    assert p_of_uniform([start - 3 for start in starts], 14) > ALMOST_NEVER


def test_single_instants_of_two_cameras_are_drawn_one_by_one() -> None:
    generator = rng(15)
    pairs = [camera_pair((6, 8), (0, 1), 3, 1, generator, "frames") for _ in range(1000)]
    assert all((two - one == 1).all() for one, two in pairs)
    assert p_of_uniform([int(frame) for one, _ in pairs for frame in one], 6) > ALMOST_NEVER


def test_cameras_with_too_little_in_common_loop_inside_it_or_are_refused() -> None:
    one, two = camera_pair((10, 10), (7, 0), 5, 1, rng())
    assert one.tolist() == [7, 8, 9, 7, 8]
    assert two.tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="3 frames are fewer than the 5 needed"):
        camera_pair((10, 10), (7, 0), 5, 1, rng(), short="drop")
    with pytest.raises(ValueError, match="no instant in common"):
        camera_pair((10, 10), (10, 0), 5, 1, rng())


@pytest.mark.parametrize(
    ("sampler", "span"),
    [
        (TwoClipsUniform(), 31),
        (TwoClipsDecreasing(), 31),
        (RhoViews(), 31),
        (TemporalShift(shift=4), 47),
        (TemporalDrop(), 63),
        (TemporalReverse(), 31),
        (TemporalShuffle(), 31),
        (ClipTuple(gap=8), 70),
    ],
)
@pytest.mark.parametrize("short", ["loop", "clamp", "drop"])
def test_views_exist_for_every_length_the_configuration_allows(
    sampler: TemporalShift, span: int, short: str
) -> None:
    clip = ClipConfig.model_validate(
        {"blocks": 2, "frames": 16, "stride": 2, "short": short, "sampler": sampler}
    )
    assert clip.span == span
    assert clip.min_frames == (span if short == "drop" else 1)
    for n in {clip.min_frames, clip.min_frames + 1, span, span + 1, 200}:
        found = sample(n, clip, rng(n)).indices
        assert found.shape == (2, 16)
        assert found.dtype == np.int64
        assert 0 <= found.min() <= found.max() < n
    if short == "drop":
        with pytest.raises(ValueError, match="fewer"):
            sample(span - 1, clip, rng())
