"""Blur, solarize, erasing, residual frames and normalization, against naive operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from recipes.data.augment import augment, normalize, residual_frames
from recipes.data.blur import blur_matrix
from recipes.data.clip_config import AugmentConfig
from tests.recipes.clips_for_tests import constant_clips, random_clips


@pytest.mark.parametrize(("side", "sigma"), [(12, 0.5), (40, 2.0), (112, 1.3)])
def test_blur_equals_a_convolution_with_reflected_borders(side: int, sigma: float) -> None:
    signal = np.random.default_rng(0).random(side)
    radius = max(1, int(0.1 * side) // 2)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    expected = np.convolve(np.pad(signal, radius, mode="reflect"), kernel / kernel.sum(), "valid")
    assert np.allclose(blur_matrix(side, sigma) @ signal, expected)


@pytest.mark.parametrize("sides", [(50, 64), (112, 40)])
def test_blur_of_blocks_equals_the_product_with_the_whole_matrix(sides: tuple[int, int]) -> None:
    clips = torch.randint(0, 256, (1, 1, 3, 2, *sides), dtype=torch.uint8)
    result = augment(clips, torch.tensor([4]), AugmentConfig(blur=1.0))
    generator = np.random.default_rng(4)
    generator.random()
    sigma = generator.uniform(0.1, 2.0)
    down, across = (torch.from_numpy(blur_matrix(side, sigma)) for side in sides)
    expected = down @ (clips.double() / 255) @ across.T
    assert torch.allclose(result.double(), expected, atol=1e-6)


def test_blur_smooths() -> None:
    clips = constant_clips()
    result = augment(clips, torch.arange(3), AugmentConfig(blur=1.0))
    assert result.diff(dim=-1).abs().mean() < (clips.float() / 255).diff(dim=-1).abs().mean()


def test_each_view_has_its_own_probability() -> None:
    clips = random_clips(1).expand(300, -1, -1, -1, -1, -1)
    config = AugmentConfig(
        blur=(1.0, 0.1), blur_scope="per_block", solarize=(0.0, 0.2), colour_scope="per_block"
    )
    blurred = augment(clips, torch.arange(300), config.model_copy(update={"solarize": 0.0}))
    solarized = augment(clips, torch.arange(300), config.model_copy(update={"blur": 0.0}))
    for result, shares in ((blurred, (1.0, 0.1)), (solarized, (0.0, 0.2))):
        changed = (result != clips.float() / 255).flatten(2).any(dim=2).double().mean(dim=0)
        for share, expected in zip(changed.tolist(), shares, strict=True):
            assert abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 300)


def test_probabilities_for_another_number_of_views_are_an_error() -> None:
    config = AugmentConfig(blur=(1.0, 0.1, 0.1), blur_scope="per_block")
    with pytest.raises(ValueError, match=r"blur has 3 probabilities.*clip\.blocks is 2"):
        augment(random_clips(2), torch.arange(2), config)
    with pytest.raises(ValidationError, match="set blur_scope to per_block or per_frame"):
        AugmentConfig(blur=(1.0, 0.1))
    with pytest.raises(ValidationError, match="set colour_scope to per_block or per_frame"):
        AugmentConfig(solarize=(0.0, 0.2))


def test_solarizing_inverts_the_bright_half() -> None:
    clips = random_clips(2)
    result = augment(clips, torch.arange(2), AugmentConfig(solarize=1.0))
    source = clips.float() / 255
    assert torch.equal(result, torch.where(source >= 0.5, 1 - source, source))
    assert result.max() <= 0.5


def test_erasing_blackens_one_rectangle_of_the_right_size() -> None:
    clips = torch.full((200, 1, 3, 2, 40, 50), 200, dtype=torch.uint8)
    result = augment(clips, torch.arange(200), AugmentConfig(erase=0.5))
    erased = (result[:, 0, 0, 0] == 0).numpy()
    assert torch.equal(result == 0, (result[:, :1, :1, :1] == 0).expand_as(result))
    happened = erased.any(axis=(1, 2))
    assert 100 - 5 * 7.1 < happened.sum() < 100 + 5 * 7.1
    shares = []
    for mask in erased[happened]:
        height, width = mask.any(axis=1).sum(), mask.any(axis=0).sum()
        assert mask.sum() == height * width
        shares.append(mask.mean())
        assert 0.3 * 0.8 < width / height < 3.3 * 1.2
    assert min(shares) > 0.01
    assert max(shares) < 0.36
    assert np.mean(shares) == pytest.approx(0.175, abs=0.03)


def test_residual_frames_are_differences_of_neighbours() -> None:
    clips = random_clips(2).float() / 255
    result = residual_frames(clips)
    assert result.shape == (2, 2, 3, 3, 12, 10)
    assert torch.equal(result[:, :, :, 1], clips[:, :, :, 2] - clips[:, :, :, 1])
    shifted = residual_frames(clips, shifted=True)
    assert torch.allclose(shifted, (result + 1) / 2)
    assert shifted.min() >= 0
    assert shifted.max() <= 1
    assert torch.equal(residual_frames(constant_clips().float()), torch.zeros(3, 2, 3, 3, 12, 10))


def test_normalize_gives_imagenet_statistics() -> None:
    clips = torch.full((1, 2, 3, 4, 5, 5), 0.5)
    expected = [
        (0.5 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    assert torch.allclose(normalize(clips)[0, 0, :, 0, 0, 0], torch.tensor(expected))
    assert normalize(clips[:, 0]).shape == (1, 3, 4, 5, 5)
    own = normalize(clips, mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 0.25))
    assert own[0, 0, :, 0, 0, 0].tolist() == [0.0, 0.5, 2.0]
