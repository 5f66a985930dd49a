"""Colour, blur and erasing on batches: scope, independence of the batch, naive operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.data import colour as module
from recipes.data.augment import augment
from recipes.data.augment_presets import AUGMENT_PRESETS
from recipes.data.augment_presets import DPC as DPC_AUGMENT
from recipes.data.clip_config import (
    NO_AUGMENT,
    AugmentConfig,
    JitterConfig,
    Scope,
)
from tests.recipes.clips_for_tests import constant_clips, frames_of, random_clips

JITTER = JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, p=1.0)
LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)


def colour(scope: Scope) -> AugmentConfig:
    return AugmentConfig(
        jitter=JITTER,
        gray_split=0.3,
        gray=0.3,
        solarize=0.5,
        colour_scope=scope,
        blur=0.5,
        blur_scope=scope,
        erase=0.5,
        erase_scope=scope,
    )


SCOPES: tuple[Scope, ...] = ("per_clip", "per_block", "per_frame")


@pytest.mark.parametrize(
    "changes",
    [
        {"jitter": JITTER},
        {"gray_split": 1.0},
        {"gray": 0.5},
        {"solarize": 0.5},
        {"blur": 1.0},
        {"erase": 1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_constant_video_differs_between_draws_and_nowhere_else(
    scope: Scope, changes: dict[str, Any]
) -> None:
    config = AugmentConfig(**changes, colour_scope=scope, blur_scope=scope, erase_scope=scope)
    frames = augment(constant_clips(), torch.arange(3), config).transpose(2, 3)
    same_time = (frames == frames[:, :, :1]).flatten(3).all(dim=3)
    same_block = (frames == frames[:, :1]).flatten(2).all(dim=2)
    assert bool(same_time.all()) == (scope != "per_frame")
    assert bool(same_block.all()) == (scope == "per_clip")


def test_all_frames_of_a_constant_video_differ_per_frame() -> None:
    frames = frames_of(augment(constant_clips(), torch.arange(3), colour("per_frame")))
    for sample in frames.flatten(2):
        assert len(torch.unique(sample, dim=0)) == 8


@pytest.mark.parametrize("scope", SCOPES)
def test_a_sample_does_not_depend_on_its_batch(scope: Scope) -> None:
    clips, seeds = random_clips(7), torch.arange(7) * 1000 + 5
    whole = augment(clips, seeds, colour(scope))
    order = torch.tensor([6, 2, 4])
    assert torch.equal(augment(clips[order], seeds[order], colour(scope)), whole[order])
    assert torch.equal(augment(clips[3:4], seeds[3:4], colour(scope)), whole[3:4])


@pytest.mark.parametrize("changes", [{"erase": 0.0}, {"solarize": 0.0}])
def test_switching_one_change_off_leaves_the_draws_of_the_others(changes: dict[str, Any]) -> None:
    clips, seeds = random_clips(6), torch.arange(6)
    full = augment(clips, seeds, colour("per_block"))
    less = augment(clips, seeds, colour("per_block").model_copy(update=changes))
    touched = (full != less).flatten(1).any(dim=1)
    assert touched.any()
    assert not touched.all()


def test_another_seed_gives_another_result_and_the_same_seed_the_same() -> None:
    clips = random_clips(1).expand(2, -1, -1, -1, -1, -1)
    one, two = augment(clips, torch.tensor([1, 2]), DPC_AUGMENT)
    assert not torch.equal(one, two)
    same, again = augment(clips, torch.tensor([2**62, 2**62]), DPC_AUGMENT)
    assert torch.equal(same, again)


def test_without_augmentation_values_are_only_scaled() -> None:
    clips = random_clips(2)
    assert torch.equal(augment(clips, torch.arange(2), NO_AUGMENT), clips.float() / 255)


def test_values_stay_between_zero_and_one() -> None:
    strong = JitterConfig(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
    result = augment(random_clips(8), torch.arange(8), AugmentConfig(jitter=strong))
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1


def test_gray_split_copies_one_channel() -> None:
    clips = random_clips(40)
    result = augment(clips, torch.arange(40), AugmentConfig(gray_split=1.0))
    assert torch.equal(result[:, :, 0], result[:, :, 1])
    assert torch.equal(result[:, :, 0], result[:, :, 2])
    source = clips.float() / 255
    used = [
        next(c for c in range(3) if torch.allclose(result[b, :, 0], source[b, :, c], atol=1e-6))
        for b in range(40)
    ]
    assert set(used) == {0, 1, 2}


def test_gray_is_luma() -> None:
    clips = random_clips(2)
    result = augment(clips, torch.arange(2), AugmentConfig(gray=1.0))
    expected = torch.einsum("bncthw,c->bnthw", clips.double() / 255, LUMA)
    for channel in range(3):
        assert torch.allclose(result[:, :, channel].double(), expected, atol=1e-6)


def test_probabilities_are_met_per_sample() -> None:
    clips = random_clips(1).expand(400, -1, -1, -1, -1, -1)
    config = AugmentConfig(jitter=JitterConfig(brightness=0.4, p=0.3))
    result = augment(clips, torch.arange(400), config)
    changed = (result - clips.float() / 255).abs().flatten(1).amax(dim=1) > 1e-6
    assert 120 - 5 * 9.2 < changed.sum() < 120 + 5 * 9.2


def naive_jitter(frame: Tensor, factors: np.ndarray, order: np.ndarray) -> Tensor:
    """Brightness, contrast, saturation and hue of (C, H, W), one after the other."""
    yiq = torch.tensor(module.YIQ)
    b, c, s, h = factors
    for operation in order:
        luma = torch.einsum("chw,c->hw", frame, LUMA)
        if operation == 0:
            frame = frame * (1 + JITTER.brightness * b)
        elif operation == 1:
            factor = 1 + JITTER.contrast * c
            frame = factor * frame + (1 - factor) * luma.mean()
        elif operation == 2:
            factor = 1 + JITTER.saturation * s
            frame = factor * frame + (1 - factor) * luma
        else:
            turn = complex(np.cos(2 * np.pi * JITTER.hue * h), np.sin(2 * np.pi * JITTER.hue * h))
            y, i, q = torch.einsum("dc,chw->dhw", yiq, frame)
            chroma = (i + 1j * q) * turn
            stacked = torch.stack([y, chroma.real, chroma.imag])
            frame = torch.einsum("dc,chw->dhw", torch.linalg.inv(yiq), stacked)
    return frame


def test_the_fused_jitter_equals_the_operations_one_by_one() -> None:
    clips = random_clips(6, low=110, high=140)  # mid-tones: nothing is clamped
    seeds = torch.arange(6)
    config = AugmentConfig(jitter=JITTER, colour_scope="per_frame")
    result = frames_of(augment(clips, seeds, config))
    frames = frames_of(clips).double() / 255
    orders = set()
    for sample in range(6):
        draws = module.draw_colours(np.random.default_rng(sample), 8, config)
        for frame in range(8):
            expected = naive_jitter(frames[sample, frame], draws.factors[frame], draws.order[frame])
            assert expected.min() > 0
            assert expected.max() < 1
            assert torch.allclose(result[sample, frame].double(), expected, atol=1e-5)
            orders.add(tuple(draws.order[frame]))
    assert len(orders) > 10


def test_turning_the_hue_keeps_luma() -> None:
    clips = random_clips(4, low=110, high=140)
    config = AugmentConfig(jitter=JitterConfig(hue=0.5))
    result = augment(clips, torch.arange(4), config).double()
    before = torch.einsum("bncthw,c->bnthw", clips.double() / 255, LUMA)
    after = torch.einsum("bncthw,c->bnthw", result, LUMA)
    assert torch.allclose(before, after, atol=1e-3)
    assert (result - clips.double() / 255).abs().max() > 0.02


def test_older_recipes_keep_the_values_they_had() -> None:
    numbers = torch.arange(2 * 3 * 2 * 8 * 8).view(1, 2, 3, 2, 8, 8)
    clips = (numbers * 37 % 256).to(torch.uint8)
    cases = [
        (
            AUGMENT_PRESETS["dpc"],
            12,
            [
                0.35291,
                0.35291,
                0.35291,
                0.7468,
                0.72113,
                0.1773,
                0.21313,
                0.21313,
                0.21313,
                1,
                1,
                1,
            ],
        ),
        (
            AUGMENT_PRESETS["finetune"],
            12,
            [
                *(0.26072, 0.41106, 0.11211, 0.40562, 0.55596, 0.257),
                *(0.35291, 0.20257, 0.50153, 0.49781, 0.34747, 0.64643),
            ],
        ),
        (
            AugmentConfig(blur=1.0, gray=0.5),
            3,
            [
                *(0.25428, 0.69412, 0.25428, 0.44314, 0.632, 0.44314),
                *(0.69412, 0.25428, 0.69412, 0.632, 0.44314, 0.632),
            ],
        ),
    ]
    for config, seed, expected in cases:
        result = augment(clips, torch.tensor([seed]), config)
        found = result[0, :, :, :, 3, 5].transpose(1, 2).flatten()
        assert found.tolist() == pytest.approx(expected, abs=2e-5)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        augment(torch.zeros(1, 1, 3, 2, 4, 4), torch.arange(1), NO_AUGMENT)


@pytest.mark.parametrize("name", AUGMENT_PRESETS)
def test_every_preset_is_valid_as_a_recipe_writes_it_and_runs_on_two_views(name: Any) -> None:
    preset = AUGMENT_PRESETS[name]
    assert AugmentConfig.model_validate_json(preset.model_dump_json(), strict=True) == preset
    result = augment(random_clips(3), torch.arange(3), preset)
    assert result.min() >= 0
    assert result.max() <= 1
    frames = augment(constant_clips(), torch.arange(3), preset).transpose(2, 3)
    static = bool((frames == frames[:, :, :1]).all())
    assert static == (preset.colour_scope != "per_frame")


def test_the_presets_are_those_of_their_papers() -> None:
    dpc, finetune = AUGMENT_PRESETS["dpc"], AUGMENT_PRESETS["finetune"]
    assert (dpc.jitter.p, finetune.jitter.p) == (1.0, 0.3)
    assert (dpc.colour_scope, finetune.colour_scope) == ("per_frame", "per_clip")
    assert dpc.gray_split == 0.5
    assert AUGMENT_PRESETS["none"] == AugmentConfig()
    per_frame = {name for name, p in AUGMENT_PRESETS.items() if p.colour_scope == "per_frame"}
    assert per_frame == {
        *("dpc", "dpc_ucf101", "memdpc", "oad_frames", "opn", "pace", "tce", "videomoco")
    }
    without_flip = {name for name, p in AUGMENT_PRESETS.items() if not p.flip}
    assert without_flip == {"none", "vcop"}
    assert AUGMENT_PRESETS["cvrl"].blur == (1.0, 0.1)
    assert AUGMENT_PRESETS["cvrl"].solarize == (0.0, 0.2)
