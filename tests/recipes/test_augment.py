"""Colour and blur on batches: scope, independence of the batch, agreement with naive operations."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.data import colour as module
from recipes.data.augment import augment, normalize
from recipes.data.augment_presets import AUGMENT_PRESETS
from recipes.data.augment_presets import DPC as DPC_AUGMENT
from recipes.data.blur import blur_matrix
from recipes.data.clip_config import (
    NO_AUGMENT,
    AugmentConfig,
    JitterConfig,
)

JITTER = JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, p=1.0)
LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)


def random_clips(batch: int, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, 2, 3, 4, 12, 10)
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator)


def constant_clips() -> Tensor:
    frame = random_clips(3)[:, :1, :, :1]
    return frame.expand(3, 2, 3, 4, 12, 10).contiguous()


def frames_of(clips: Tensor) -> Tensor:
    """(B, N*T, C, H, W)."""
    return clips.transpose(2, 3).flatten(1, 2)


def colour(scope: Literal["per_frame", "per_clip"]) -> AugmentConfig:
    return AugmentConfig(jitter=JITTER, gray_split=0.3, gray=0.3, blur=0.5, colour_scope=scope)


def test_a_constant_video_stays_constant_over_time_per_clip() -> None:
    frames = frames_of(augment(constant_clips(), torch.arange(3), colour("per_clip")))
    assert torch.equal(frames, frames[:, :1].expand_as(frames))


def test_a_constant_video_varies_over_time_per_frame() -> None:
    frames = frames_of(augment(constant_clips(), torch.arange(3), colour("per_frame")))
    different = (frames[:, 1:] != frames[:, :-1]).flatten(2).any(dim=2)
    assert different.float().mean() > 0.9


@pytest.mark.parametrize("scope", ["per_frame", "per_clip"])
def test_a_sample_does_not_depend_on_its_batch(scope: Literal["per_frame", "per_clip"]) -> None:
    clips, seeds = random_clips(7), torch.arange(7) * 1000 + 5
    whole = augment(clips, seeds, colour(scope))
    order = torch.tensor([6, 2, 4])
    assert torch.equal(augment(clips[order], seeds[order], colour(scope)), whole[order])
    assert torch.equal(augment(clips[3:4], seeds[3:4], colour(scope)), whole[3:4])


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


@pytest.mark.parametrize(("side", "sigma"), [(12, 0.5), (40, 2.0), (112, 1.3)])
def test_blur_equals_a_convolution_with_reflected_borders(side: int, sigma: float) -> None:
    signal = np.random.default_rng(0).random(side)
    radius = max(1, int(0.1 * side) // 2)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    expected = np.convolve(np.pad(signal, radius, mode="reflect"), kernel / kernel.sum(), "valid")
    assert np.allclose(blur_matrix(side, sigma) @ signal, expected)


def test_blur_smooths_whole_clips_alike() -> None:
    clips = constant_clips()
    result = augment(clips, torch.arange(3), AugmentConfig(blur=1.0))
    frames = frames_of(result)
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    assert result.diff(dim=-1).abs().mean() < (clips.float() / 255).diff(dim=-1).abs().mean()


def test_normalize_gives_imagenet_statistics() -> None:
    clips = torch.full((1, 2, 3, 4, 5, 5), 0.5)
    expected = [
        (0.5 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    assert torch.allclose(normalize(clips)[0, 0, :, 0, 0, 0], torch.tensor(expected))
    assert normalize(clips[:, 0]).shape == (1, 3, 4, 5, 5)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        augment(torch.zeros(1, 1, 3, 2, 4, 4), torch.arange(1), NO_AUGMENT)


def test_the_presets_are_those_of_dpc() -> None:
    dpc, finetune = AUGMENT_PRESETS["dpc"], AUGMENT_PRESETS["finetune"]
    assert (dpc.jitter.p, finetune.jitter.p) == (1.0, 0.3)
    assert (dpc.colour_scope, finetune.colour_scope) == ("per_frame", "per_clip")
    assert dpc.gray_split == 0.5
    assert AUGMENT_PRESETS["none"] == AugmentConfig()
