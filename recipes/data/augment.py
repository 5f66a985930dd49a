"""Random colour and blur of whole batches in torch, decided by one seed a sample.

Brightness, contrast, saturation and hue of a frame are one 3x4 affine map of its RGB values, so
they are fused and applied once, with one clamp at the end. Hue turns the chroma plane of YIQ, which
is linear; it approximates the rotation in HSV that other libraries use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.data.clip_config import AugmentConfig, JitterConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_BLUR_SIGMA = (0.1, 2.0)  # SimCLR
_BLUR_SHARE = 0.1  # kernel size as a share of the side, SimCLR

Floats = NDArray[np.float64]


def augment(clips: Tensor, seeds: Tensor, config: AugmentConfig) -> Tensor:
    """Colour and blur each sample by its own seed.

    Args:
        clips: (B, N, C=3, T, H, W) uint8, on any device.
        seeds: (B,) int64; a sample's result depends on its pixels, its seed and `config` alone,
            never on the other samples of the batch.
        config: crop and flip are done where frames are read; the rest happens here.

    Returns:
        (B, N, C, T, H, W) float32 in [0, 1].
    """
    if clips.dtype != torch.uint8 or clips.ndim != 6 or clips.shape[2] != 3:
        raise ValueError(f"expected uint8 B x N x 3 x T x H x W, not {clips.dtype} {clips.shape}")
    generators = [np.random.default_rng(int(seed)) for seed in seeds.tolist()]
    if config.jitter.p or config.gray_split or config.gray:
        images = _colour(clips, generators, config)
    else:
        images = clips.float().div_(255.0)
    if config.blur:
        _blur_(images, generators, config.blur)
    return images


def normalize(clips: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation.

    Args:
        clips: (..., C=3, T, H, W) float in [0, 1].
    """
    shape = (3, 1, 1, 1)
    mean = torch.tensor(IMAGENET_MEAN, dtype=clips.dtype, device=clips.device).view(shape)
    std = torch.tensor(IMAGENET_STD, dtype=clips.dtype, device=clips.device).view(shape)
    return (clips - mean) / std


@dataclass(frozen=True, kw_only=True)
class _Draws:
    """What was drawn for F frames; `factors` in [-1, 1] for the four operations of the jitter."""

    split: NDArray[np.bool_]
    channel: NDArray[np.int64]
    factors: Floats
    order: NDArray[np.int64]
    gray: NDArray[np.bool_]


def _draw(generator: np.random.Generator, count: int, config: AugmentConfig) -> _Draws:
    """Draw for `count` frames; the generator advances by the same amount whatever comes out."""
    split = generator.random(count) < config.gray_split
    channel = generator.integers(0, 3, count)
    jitter = generator.random(count) < config.jitter.p
    factors = (generator.random((count, 4)) * 2 - 1) * jitter[:, None]
    order = generator.permuted(np.broadcast_to(np.arange(4), (count, 4)), axis=1)
    gray = generator.random(count) < config.gray
    return _Draws(split=split, channel=channel, factors=factors, order=order, gray=gray)


def _colour_maps(draws: _Draws, means: Floats, config: JitterConfig) -> tuple[Floats, Floats]:
    """Affine map of each frame: one channel copied to all (DPC's gray), jitter, luma gray.

    Args:
        draws: for F frames.
        means: (F, 3) mean RGB in [0, 1] before any change; contrast mixes with its luma.
        config: ranges of the jitter.

    Returns:
        Matrices (F, 3, 3) and offsets (F, 3).
    """
    count = len(means)
    matrix = np.broadcast_to(np.eye(3), (count, 3, 3)).copy()
    offset = np.zeros((count, 3))
    matrix[draws.split] = np.eye(3)[draws.channel[draws.split]][:, None, :]
    brightness = (1 + config.brightness * draws.factors[:, 0])[:, None, None] * np.eye(3)
    contrast = 1 + config.contrast * draws.factors[:, 1]
    saturation = _saturate(1 + config.saturation * draws.factors[:, 2])
    hue = _turn(2 * np.pi * config.hue * draws.factors[:, 3])
    for place in range(4):
        operation = draws.order[:, place]
        is_contrast = operation == 1
        luma = _apply(matrix, means, offset) @ _LUMA
        steps = np.stack([brightness, contrast[:, None, None] * np.eye(3), saturation, hue])
        step = steps[operation, np.arange(count)]
        shift = np.where(is_contrast, (1 - contrast) * luma, 0.0)
        matrix = step @ matrix
        offset = _apply(step, offset, shift[:, None])
    matrix[draws.gray] = (_LUMA @ matrix[draws.gray])[:, None, :]
    offset[draws.gray] = (offset[draws.gray] @ _LUMA)[:, None]
    return matrix, offset


def _apply(matrix: Floats, vector: Floats, offset: Floats) -> Floats:
    result: Floats = (matrix @ vector[..., None])[..., 0] + offset
    return result


def _saturate(factor: Floats) -> Floats:
    mixed: Floats = factor[:, None, None] * np.eye(3) + (1 - factor)[:, None, None] * _LUMA
    return mixed


def _turn(angle: Floats) -> Floats:
    turn = np.broadcast_to(np.eye(3), (len(angle), 3, 3)).copy()
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    turned: Floats = np.linalg.inv(_YIQ) @ turn @ _YIQ
    return turned


def _colour(clips: Tensor, generators: list[np.random.Generator], config: AugmentConfig) -> Tensor:
    batch, blocks, _, frames, height, width = clips.shape
    # Integer sums are exact, so the mean cannot depend on how the reduction is split.
    sums = clips.sum(dim=(-2, -1), dtype=torch.int64).cpu().numpy()
    means = sums.transpose(0, 1, 3, 2).reshape(batch, blocks * frames, 3) / (255.0 * height * width)
    shape = (batch, blocks, frames) if config.colour_scope == "per_frame" else (batch, 1, 1)
    if config.colour_scope == "per_clip":
        means = means.mean(axis=1, keepdims=True)
    matrices, offsets = [], []
    for generator, mean in zip(generators, means, strict=True):
        draws = _draw(generator, len(mean), config)
        matrix, offset = _colour_maps(draws, mean, config.jitter)
        matrices.append(matrix / 255.0)
        offsets.append(offset)
    return _affine(
        clips,
        torch.from_numpy(np.stack(matrices)).float().view(*shape, 3, 3).to(clips.device),
        torch.from_numpy(np.stack(offsets)).float().view(*shape, 3).to(clips.device),
    )


def _affine(clips: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Apply (B, N|1, T|1, 3, 3) matrices and (B, N|1, T|1, 3) offsets to each frame, and clamp.

    Products and sums are separate operations on purpose: a fused one rounds differently at the end
    of a vector register, and a sample's bits would depend on its place in the batch.
    """
    source = clips.float()
    result = torch.empty_like(source)
    product = torch.empty_like(source[:, :, 0])
    for row in range(3):
        target = result[:, :, row]
        target.copy_(offset[..., row, None, None].expand_as(target))
        for column in range(3):
            weight = matrix[..., row, column, None, None]
            torch.mul(source[:, :, column], weight, out=product)
            target.add_(product)
    return result.clamp_(0.0, 1.0)


def _blur_(images: Tensor, generators: list[np.random.Generator], probability: float) -> None:
    """Gaussian blur in place, one sigma ~ U[0.1, 2] for all frames of a chosen sample.

    As two products with a band matrix, which is several times faster than a convolution on a CPU.
    """
    height, width = images.shape[-2:]
    for sample, generator in enumerate(generators):
        chosen, sigma = generator.random() < probability, generator.uniform(*_BLUR_SIGMA)
        if chosen:
            down = torch.from_numpy(blur_matrix(height, sigma)).to(images)
            across = torch.from_numpy(blur_matrix(width, sigma)).to(images)
            images[sample] = down @ images[sample] @ across.T


def blur_matrix(side: int, sigma: float) -> Floats:
    """(side, side) matrix of a Gaussian of about a tenth of the side, reflected at the borders."""
    radius = min(max(1, int(_BLUR_SHARE * side) // 2), side - 1)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    places = np.abs(np.arange(side)[:, None] + offsets)
    places = np.where(places >= side, 2 * (side - 1) - places, places)
    matrix = np.zeros((side, side))
    rows = np.broadcast_to(np.arange(side)[:, None], places.shape)
    np.add.at(matrix, (rows, places), kernel / kernel.sum())
    return matrix
