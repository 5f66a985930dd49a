"""Clip samplers: exact indices, ranges of the random start, short videos."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from recipes.data.clip_config import ClipConfig
from recipes.data.samplers import (
    blocks,
    linspace_clips,
    random_consecutive,
    sample,
    sliding,
    strided,
    uniform_windows,
)
from recipes.data.single_clips import random_frames
from recipes.stages.finetune.config import FinetuneConfig
from recipes.stages.pretrain.config import PretrainConfig

DPC = ClipConfig(blocks=8, frames=5, stride=3, size=128)

PRETRAIN: dict[str, Any] = {
    "data": {"format": "synthetic"},
    "method": {"name": "dpc"},
    "backbone": {"name": "r2d3d_tiny"},
    "clip": {"blocks": 4, "frames": 4},
    "max_steps": 1,
    "batch_size": 4,
    "micro_batch": 4,
}
FINETUNE = {"data": {"format": "synthetic"}, "max_steps": 1, "batch_size": 4, "micro_batch": 4}

# Every sampler of one video, with a number of clips and a stride it allows.
SAMPLERS: dict[str, dict[str, Any]] = {
    "blocks": {"blocks": 3, "stride": 2},
    "random_consecutive": {"blocks": 2, "stride": 2},
    "strided": {"blocks": 2, "stride": 3},
    "chunk": {"blocks": 2},
    "random_frames": {"blocks": 2},
    "clip_tuple": {"blocks": 3, "stride": 2},
    "two_clips_uniform": {"blocks": 2, "stride": 2},
    "two_clips_decreasing": {"blocks": 2, "stride": 2},
    "rho_views": {"blocks": 4, "stride": 2},
    "temporal_shift": {"blocks": 3, "stride": 2},
    "temporal_drop": {"blocks": 2, "stride": 2},
    "temporal_reverse": {"blocks": 2, "stride": 2},
    "temporal_shuffle": {"blocks": 3, "stride": 2},
    "constant_rate": {"blocks": 3},
    "rate_change": {"blocks": 3},
}


def clip_with(name: str, **changes: Any) -> ClipConfig:
    values = {"frames": 6, "size": 32, "sampler": {"name": name}, **SAMPLERS[name], **changes}
    return ClipConfig.model_validate(values)


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


@given(
    name=st.sampled_from(sorted(SAMPLERS)),
    n=st.integers(1, 200),
    short=st.sampled_from(["loop", "clamp"]),
    seed=st.integers(0, 2**32),
)
def test_every_sampler_gives_frames_that_exist_and_is_decided_by_its_seed(
    name: str, n: int, short: str, seed: int
) -> None:
    clip = clip_with(name, short=short)
    first = sample(n, clip, np.random.default_rng(seed))
    again = sample(n, clip, np.random.default_rng(seed))
    assert np.array_equal(first.indices, again.indices)
    assert first.indices.shape == (clip.blocks, clip.frames)
    assert first.indices.dtype == np.int64
    assert first.indices.min() >= 0
    assert first.indices.max() < n
    for key, values in first.extra.items():
        assert values.shape == (clip.blocks,)
        assert np.array_equal(values, again.extra[key])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_dropped_video_is_one_frame_below_min_frames(name: str) -> None:
    clip = clip_with(name, short="drop")
    for seed in range(20):
        sample(clip.min_frames, clip, np.random.default_rng(seed))
    if clip.min_frames > 1:
        with pytest.raises(ValueError, match="few"):
            for seed in range(20):
                sample(clip.min_frames - 1, clip, np.random.default_rng(seed))


def test_without_a_sampler_a_clip_is_drawn_as_blocks_always_were() -> None:
    for seed in range(5):
        drawn = sample(300, DPC, np.random.default_rng(seed))
        assert np.array_equal(drawn.indices, blocks(300, DPC, np.random.default_rng(seed)))
        assert drawn.indices[0, 0] == np.random.default_rng(seed).integers(0, 180)
        assert drawn.extra == {}
    assert (DPC.num_frames, DPC.span, DPC.min_frames) == (40, 120, 1)


@pytest.mark.parametrize("name", ["random_consecutive", "strided", "chunk", "random_frames"])
def test_views_of_one_clip_show_the_same_frames(name: str) -> None:
    drawn = sample(100, clip_with(name), np.random.default_rng(0)).indices
    assert np.array_equal(drawn[0], drawn[1])


def test_random_frames_are_independent_and_uniform() -> None:
    rng = np.random.default_rng(0)
    pairs = np.array([random_frames(5, 2, rng) for _ in range(5000)])
    counts = np.bincount(5 * pairs[:, 0] + pairs[:, 1], minlength=25)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_chunk_starts_anywhere_it_fits() -> None:
    clip = clip_with("chunk")
    rng = np.random.default_rng(0)
    starts = [int(sample(10, clip, rng).indices[0, 0]) for _ in range(2000)]
    assert stats.chisquare(np.bincount(starts, minlength=5)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("frames", "overlap", "windows", "starts"),
    [(8, 3, 19, [0, 5, 10]), (4, 2, 49, [0, 2, 4]), (8, 0, 12, [0, 8, 16])],
)
def test_windows_of_online_action_detection_slide_and_drop_the_incomplete_tail(
    frames: int, overlap: int, windows: int, starts: list[int]
) -> None:
    found = sliding(100, ClipConfig(frames=frames, size=32), overlap)
    assert found.shape == (windows, 1, frames)
    assert found[:3, 0, 0].tolist() == starts
    assert found[-1, 0, -1] <= 99
    assert found[-1, 0, -1] + frames - overlap > 99


def test_sliding_blocks_are_those_of_the_test_of_dpc() -> None:
    found = sliding(240, DPC, overlap=20)
    assert found.shape == (3, 8, 5)
    assert found[:, 0, 0].tolist() == [0, 60, 120]
    assert np.array_equal(found[0, 4:], found[1, :4])


def test_sliding_over_a_short_video_gives_one_window() -> None:
    assert sliding(3, ClipConfig(frames=4, size=32), 2).tolist() == [[[0, 1, 2, 0]]]
    clip = ClipConfig(frames=4, size=32, short="drop")
    with pytest.raises(ValueError, match="fewer"):
        sliding(3, clip, 2)
    with pytest.raises(ValueError, match="overlap must be from 0 to 3 frames, not 4"):
        sliding(30, clip, 4)


@pytest.mark.parametrize("n", [16, 17, 61, 100, 333])
def test_linspace_clips_are_those_of_vcop(n: int) -> None:
    clip = ClipConfig(frames=16, size=112)
    found = linspace_clips(n, clip, 10)[:, 0]
    centres = np.linspace(8, n - 8, 10)
    # Where the product of floating-point numbers ends just below a whole one, VCOP's code is one
    # frame early.
    expected = np.array([int(centre - 8) for centre in centres])
    assert ((found[:, 0] == expected) | (found[:, 0] == expected + 1)).all()
    assert (found[:, 0] == expected).mean() >= 0.8
    assert (found[0, 0], found[-1, -1]) == (0, n - 1)
    assert linspace_clips(n, clip, 1)[0, 0, 0] == 0


@pytest.mark.parametrize("windows", [uniform_windows, linspace_clips])
def test_no_window_is_an_error(windows: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        windows(30, ClipConfig(frames=4, size=32), 0)


def test_evaluation_shows_one_plain_clip_of_what_was_trained_on_views() -> None:
    clip = clip_with("temporal_shift", short="drop")
    assert clip.evaluated == ClipConfig(frames=6, stride=2, size=32, short="drop")
    assert uniform_windows(clip.min_frames, clip, 3).shape == (3, 1, 6)
    assert sliding(50, clip, 2).shape == (5, 1, 6)
    assert DPC.evaluated == DPC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": {"name": "two_clips_uniform"}}, "gives two clips: set blocks to 2"),
        ({"sampler": {"name": "temporal_drop"}, "blocks": 3}, "gives two clips: set blocks to 2"),
        ({"sampler": {"name": "camera_pair"}}, "gives two clips: set blocks to 2"),
        ({"sampler": {"name": "temporal_reverse"}, "blocks": 3}, "one or two views"),
        ({"sampler": {"name": "chunk"}, "stride": 2}, "set stride to 1"),
        ({"sampler": {"name": "random_frames"}, "stride": 2}, "set stride to 1"),
        ({"sampler": {"name": "temporal_shift", "shift": 0}}, "greater than or equal to 1"),
        ({"sampler": {"name": "everything"}}, "sampler"),
    ],
)
def test_a_clip_that_does_not_fit_its_sampler_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ClipConfig.model_validate(changes)


def test_a_pair_of_cameras_cannot_be_drawn_from_one_video() -> None:
    clip = ClipConfig.model_validate({"blocks": 2, "sampler": {"name": "camera_pair"}})
    with pytest.raises(ValueError, match="two cameras"):
        sample(100, clip, np.random.default_rng(0))


def test_plan_refuses_dpc_without_adjacent_blocks() -> None:
    PretrainConfig.model_validate(PRETRAIN)
    clip = {"blocks": 4, "frames": 4, "sampler": {"name": "rho_views"}}
    with pytest.raises(ValidationError, match=r"rho_views: remove clip\.sampler"):
        PretrainConfig.model_validate({**PRETRAIN, "clip": clip})


def test_plan_refuses_a_pair_of_cameras_for_finetuning() -> None:
    clip = {"blocks": 2, "frames": 4, "sampler": {"name": "camera_pair"}}
    with pytest.raises(ValidationError, match="camera_pair is for pretraining"):
        FinetuneConfig.model_validate({**FINETUNE, "clip": clip})


def test_plan_refuses_probabilities_for_another_number_of_clips() -> None:
    augment = {"blur": [1.0, 0.1], "blur_scope": "per_block"}
    with pytest.raises(ValidationError, match=r"2 probabilities, .* but clip\.blocks is 4"):
        PretrainConfig.model_validate({**PRETRAIN, "method": {"name": "dpc", "augment": augment}})
    with pytest.raises(ValidationError, match=r"2 probabilities, .* but clip\.blocks is 3"):
        FinetuneConfig.model_validate({**FINETUNE, "clip": {"blocks": 3}, "augment": "cvrl"})
