"""Clips at other playback rates: the spans of the specification, labels, what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from recipes.data.clip_config import ClipConfig
from recipes.data.rate_samplers import constant_rate, rate_change
from recipes.data.sampler_config import rate_span
from recipes.data.samplers import Sampled, sample

ALMOST_NEVER = 1e-4


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def clip_of(**changes: Any) -> ClipConfig:
    return ClipConfig.model_validate({"frames": 16, "size": 32, **changes})


def test_a_clip_past_the_end_goes_on_at_the_first_frame_however_far_it_is() -> None:
    class Start:
        def integers(self, low: int, high: int) -> int:
            assert (low, high) == (0, 10)
            return 5

    found = constant_rate(10, 8, 3, Start())  # type: ignore[arg-type]
    # As laura-wang/video-pace: 5, 8, then past the end: 0, 3, 6, 9, then 0 again.
    assert found.tolist() == [5, 8, 0, 3, 6, 9, 0, 3]


def test_a_wrapping_clip_equals_the_loop_of_the_released_code() -> None:
    for seed in range(200):
        n, rate = 7 + seed % 40, 1 + seed % 4
        found = constant_rate(n, 16, rate, rng(seed)).tolist()
        start, step, expected = int(rng(seed).integers(0, n)), 0, []
        for _ in range(16):
            expected.append(start + step * rate)
            start, step = (0, 0) if start + (step + 1) * rate >= n else (start, step + 1)
        assert found == expected


def test_the_start_of_a_wrapping_clip_is_any_frame() -> None:
    generator = rng(1)
    starts = [int(constant_rate(8, 4, 4, generator)[0]) for _ in range(2000)]
    assert stats.chisquare(np.bincount(starts, minlength=8)).pvalue > ALMOST_NEVER


def test_a_clip_that_must_fit_never_wraps() -> None:
    generator = rng(2)
    starts = set()
    for _ in range(300):
        found = constant_rate(50, 16, 3, generator, "drop")
        assert (np.diff(found) == 3).all()
        starts.add(int(found[0]))
    assert starts == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="45 frames are fewer than the 46 needed"):
        constant_rate(45, 16, 3, generator, "drop")


@pytest.mark.parametrize(
    ("pair", "span"),
    [
        *(((p, p), 1 + 15 * p) for p in (1, 2, 3, 4)),
        *zip([(1, 2), (2, 3), (3, 4)], [24, 39, 54], strict=True),
        *zip([(1, 3), (2, 4)], [32, 47], strict=True),
        *zip([(2, 1), (3, 2), (4, 3)], [23, 38, 53], strict=True),
        *zip([(3, 1), (4, 2)], [30, 45], strict=True),
    ],
)
def test_the_spans_of_16_frames_are_those_of_the_specification(
    pair: tuple[int, int], span: int
) -> None:
    assert rate_span(16, 1, *pair, 8) == span
    found = rate_change(span, 16, pair, 8, rng(), "drop")
    assert (found[0], found[-1]) == (0, span - 1)
    assert np.diff(found).tolist() == [pair[0]] * 7 + [pair[1]] * 8


@pytest.mark.parametrize("change", [1, 16])
def test_a_change_outside_the_clip_is_refused(change: int) -> None:
    with pytest.raises(ValueError, match="cannot change"):
        rate_change(100, 16, (1, 2), change, rng())
    with pytest.raises(ValidationError, match="above 1 and below frames"):
        clip_of(sampler={"name": "rate_change", "change": change})


def answers_of(found: Sampled, n: int) -> tuple[set[int], ...]:
    """The distinct steps of each clip, a wrap left out."""
    return tuple(set(np.diff(row)[np.diff(row) > 0].tolist()) for row in found.indices)


def test_labels_of_eight_classes_are_uniform_and_tell_the_steps() -> None:
    clip = clip_of(sampler={"name": "rate_change"}, short="drop")
    generator = rng(3)
    labels = []
    for _ in range(4000):
        found = sample(100, clip, generator)
        label, first, second = (int(found.extra[k][0]) for k in ("label", "rate", "rate_after"))
        assert np.diff(found.indices[0]).tolist() == [first] * 7 + [second] * 8
        expected = {0: 4, 1: 4, 2: 5, -1: 6, -2: 7}[second - first]
        assert label == (first - 1 if expected == 4 and first == second else expected)
        assert int(found.extra["change"][0]) == (0 if first == second else 8)
        labels.append(label)
    assert stats.chisquare(np.bincount(labels, minlength=8)).pvalue > ALMOST_NEVER


def test_pairs_are_uniform_within_their_class_and_never_three_levels_apart() -> None:
    clip = clip_of(sampler={"name": "rate_change"}, short="drop")
    generator = rng(4)
    found = [sample(100, clip, generator).extra for _ in range(4000)]
    up = [int(extra["rate"][0]) for extra in found if extra["label"][0] == 4]
    assert stats.chisquare(np.bincount(up)[1:4]).pvalue > ALMOST_NEVER
    assert {abs(int(e["rate_after"][0] - e["rate"][0])) for e in found} == {0, 1, 2}


def test_three_classes_have_a_random_place_of_change_and_none_when_constant() -> None:
    clip = clip_of(sampler={"name": "rate_change", "classes": 3, "change": "random"})
    generator = rng(5)
    labels, changes = [], []
    for _ in range(4000):
        extra = sample(200, clip, generator).extra
        label, first, second = (int(extra[k][0]) for k in ("label", "rate", "rate_after"))
        assert label == {True: 0}.get(first == second, 1 if second > first else 2)
        labels.append(label)
        if label:
            changes.append(int(extra["change"][0]))
        else:
            assert extra["change"][0] == 0
    assert stats.chisquare(np.bincount(labels, minlength=3)).pvalue > ALMOST_NEVER
    # max(2, 16/8) = 2: thirteen places, 2 to 14.
    counts = np.bincount(changes)
    assert counts[:2].sum() == 0
    assert len(counts) == 15
    assert stats.chisquare(counts[2:]).pvalue > ALMOST_NEVER


def test_clips_of_one_video_differ_in_class_or_rate() -> None:
    generator = rng(6)
    change = clip_of(blocks=2, sampler={"name": "rate_change"})
    rates = clip_of(blocks=4, sampler={"name": "constant_rate"})
    for _ in range(100):
        assert len(set(sample(200, change, generator).extra["label"].tolist())) == 2
        extra = sample(200, rates, generator).extra
        assert sorted(extra["rate"].tolist()) == [1, 2, 3, 4]
        assert (extra["rate"] - 1).tolist() == extra["label"].tolist()


def test_rates_that_do_not_fit_a_video_are_not_drawn_for_it() -> None:
    clip = clip_of(sampler={"name": "constant_rate"}, short="drop")
    assert clip.min_frames == 16
    generator = rng(7)
    labels = [int(sample(46, clip, generator).extra["label"][0]) for _ in range(1500)]
    assert stats.chisquare(np.bincount(labels, minlength=3)).pvalue > ALMOST_NEVER
    assert clip_of(blocks=2, sampler={"name": "constant_rate"}, short="drop").min_frames == 31
    with pytest.raises(ValueError, match="30 frames are fewer than the 31 needed"):
        sample(30, clip_of(blocks=2, sampler={"name": "constant_rate"}, short="drop"), generator)


def test_changes_that_do_not_fit_a_video_are_not_drawn_for_it() -> None:
    clip = clip_of(sampler={"name": "rate_change"}, short="drop")
    assert clip.min_frames == 16
    generator = rng(8)
    labels = {int(sample(24, clip, generator).extra["label"][0]) for _ in range(300)}
    assert labels == {0, 4, 6}  # constant at rate 1 (16 frames), 1 to 2 (24), 2 to 1 (23)


@pytest.mark.parametrize("change", ["middle", "random", 3])
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_a_video_of_min_frames_can_always_be_sampled(change: Any, blocks: int) -> None:
    sampler = {"name": "rate_change", "change": change}
    clip = clip_of(blocks=blocks, stride=2, sampler=sampler, short="drop")
    for seed in range(100):
        found = sample(clip.min_frames, clip, rng(seed))
        assert found.indices.shape == (blocks, 16)
        assert found.indices.max() < clip.min_frames
        assert all(len(values) == blocks for values in found.extra.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 5, "sampler": {"name": "constant_rate"}}, "5 clips of one video cannot differ"),
        ({"blocks": 9, "sampler": {"name": "rate_change"}}, "9 clips of one video cannot differ"),
        ({"sampler": {"name": "constant_rate", "rates": [2, 1]}}, "rates that rise"),
        ({"sampler": {"name": "constant_rate", "rates": []}}, "rates that rise"),
        ({"frames": 3, "sampler": {"name": "rate_change"}}, "above 1 and below frames"),
        ({"sampler": {"name": "rate_change", "change": 40}}, "cannot change at 40"),
        ({"sampler": {"name": "rate_change", "margin": 3}}, "margin is for change: random"),
        (
            {"sampler": {"name": "rate_change", "change": "random", "margin": 9}},
            "cannot change at 9 to 7",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_when_the_recipe_is_read(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        clip_of(**changes)
