"""Colour of whole batches: channel splitting, jitter and gray as one affine map of RGB, solarize.

Brightness, contrast, saturation and hue of a frame are one 3x4 affine map of its RGB values, so
they are fused and applied once, with one clamp at the end. Hue turns the chroma plane of YIQ, which
is linear; it approximates the rotation in HSV that other libraries use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.data.boxes import drawn
from recipes.data.clip_config import AugmentConfig, JitterConfig

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_THRESHOLD = 0.5  # of solarize; SimCLR's successors

Floats = NDArray[np.float64]
Generators = Sequence[np.random.Generator]


@dataclass(frozen=True, kw_only=True)
class ColourDraws:
    """What was drawn for F frames; `factors` in [-1, 1] for the four operations of the jitter."""

    split: NDArray[np.bool_]
    channel: NDArray[np.int64]
    factors: Floats
    order: NDArray[np.int64]
    gray: NDArray[np.bool_]


def draw_colours(generator: np.random.Generator, count: int, config: AugmentConfig) -> ColourDraws:
    """Draw for `count` frames; the generator advances by the same amount whatever comes out."""
    split = generator.random(count) < config.gray_split
    channel = generator.integers(0, 3, count)
    jitter = generator.random(count) < config.jitter.p
    factors = (generator.random((count, 4)) * 2 - 1) * jitter[:, None]
    order = generator.permuted(np.broadcast_to(np.arange(4), (count, 4)), axis=1)
    gray = generator.random(count) < config.gray
    return ColourDraws(split=split, channel=channel, factors=factors, order=order, gray=gray)


def colour(clips: Tensor, generators: Generators, config: AugmentConfig) -> Tensor:
    """Split channels, jitter and turn to gray, as drawn from one generator a sample.

    Args:
        clips: (B, N, C=3, T, H, W) uint8.
        generators: B of them; each is consumed by its own sample.
        config: `gray_split`, `jitter`, `gray` and `colour_scope`.

    Returns:
        (B, N, C, T, H, W) float32 in [0, 1].
    """
    result = torch.empty(clips.shape, dtype=torch.float32, device=clips.device)
    # On a CPU sample by sample, whose pixels stay in the cache between the passes; on other devices
    # all at once, which takes the fewest launches.
    size = 1 if clips.device.type == "cpu" else len(clips)
    for start in range(0, len(clips), size):
        rows = slice(start, start + size)
        source = clips[rows].float()
        matrices, offsets = _maps(source, generators[rows], config)
        _affine_into(result[rows], source, matrices, offsets)
    return result


def _maps(source: Tensor, generators: Generators, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Draw the maps of (B, N, C, T, H, W) values from 0 to 255.

    Returns:
        Matrices (B, n, t, 3, 3) and offsets (B, n, t, 3) on the device of `source`.
    """
    batch, blocks, _, frames, height, width = source.shape
    clip_draws, frame_draws = drawn((blocks, frames), config.colour_scope)
    # Sums of whole numbers, exact in either type: no mean depends on how a reduction is split.
    sums = source.sum(dim=-1).sum(dim=-1, dtype=torch.float64).cpu().numpy()
    means = sums.transpose(0, 1, 3, 2) / (255.0 * height * width)
    means = means.reshape(batch, clip_draws * frame_draws, -1, 3).mean(axis=2)
    maps = []
    for generator, mean in zip(generators, means, strict=True):
        draws = draw_colours(generator, len(mean), config)
        maps.append(colour_maps(draws, mean, config.jitter))
    shape = (batch, clip_draws, frame_draws)
    matrices = torch.from_numpy(np.stack([matrix / 255.0 for matrix, _ in maps]))
    offsets = torch.from_numpy(np.stack([offset for _, offset in maps]))
    return (
        matrices.float().view(*shape, 3, 3).to(source.device),
        offsets.float().view(*shape, 3).to(source.device),
    )


def solarize_(images: Tensor, generators: Generators, config: AugmentConfig) -> None:
    """Replace x by 1-x where x >= 0.5, in place, for what is drawn with `config.solarize`.

    Args:
        images: (B, N, C, T, H, W) float in [0, 1].
        generators: B of them.
        config: the probability, one number or one a clip, with the scope of the colours.
    """
    shape = (images.shape[1], images.shape[3])
    for image, generator in zip(images, generators, strict=True):
        chosen = draw_chosen(generator, config.solarize, drawn(shape, config.colour_scope))
        for part in chosen_parts(image, chosen):
            part.copy_(torch.where(part >= _THRESHOLD, 1.0 - part, part))


def draw_chosen(
    generator: np.random.Generator, probability: float | tuple[float, ...], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which of n x t draws happen: (n, t); a tuple has one probability for each of n clips."""
    limits = np.array(probability, dtype=np.float64).reshape(-1, 1)
    chosen: NDArray[np.bool_] = generator.random(shape) < limits
    return chosen


def chosen_parts(image: Tensor, chosen: NDArray[np.bool_]) -> list[Tensor]:
    """Views (n, C, t, H, W) of a sample (N, C, T, H, W), one for each draw (n, t) that is true."""
    return [part_of(image, chosen.shape, *place) for place in np.argwhere(chosen).tolist()]


def part_of(image: Tensor, shape: tuple[int, ...], clip: int, frame: int) -> Tensor:
    """The view of a sample (N, C, T, H, W) that one of n x t draws is for."""
    part = image if shape[0] == 1 else image[clip : clip + 1]
    return part if shape[1] == 1 else part[:, :, frame : frame + 1]


def colour_maps(draws: ColourDraws, means: Floats, config: JitterConfig) -> tuple[Floats, Floats]:
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
    steps = np.stack([brightness, contrast[:, None, None] * np.eye(3), saturation, hue])
    for place in range(4):
        operation = draws.order[:, place]
        luma = _apply(matrix, means, offset) @ LUMA
        step = steps[operation, np.arange(count)]
        shift = np.where(operation == 1, (1 - contrast) * luma, 0.0)
        matrix = step @ matrix
        offset = _apply(step, offset, shift[:, None])
    matrix[draws.gray] = (LUMA @ matrix[draws.gray])[:, None, :]
    offset[draws.gray] = (offset[draws.gray] @ LUMA)[:, None]
    return matrix, offset


def _apply(matrix: Floats, vector: Floats, offset: Floats) -> Floats:
    result: Floats = (matrix @ vector[..., None])[..., 0] + offset
    return result


def _saturate(factor: Floats) -> Floats:
    mixed: Floats = factor[:, None, None] * np.eye(3) + (1 - factor)[:, None, None] * LUMA
    return mixed


def _turn(angle: Floats) -> Floats:
    turn = np.broadcast_to(np.eye(3), (len(angle), 3, 3)).copy()
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    turned: Floats = np.linalg.inv(YIQ) @ turn @ YIQ
    return turned


def _affine_into(result: Tensor, source: Tensor, matrix: Tensor, offset: Tensor) -> None:
    """Apply (B, n, t, 3, 3) matrices and (B, n, t, 3) offsets to each frame, and clamp.

    Products and sums are separate operations on purpose: a fused one rounds differently at the end
    of a vector register, and the bits of a sample would depend on the number of threads.
    """
    product = torch.empty_like(source[:, :, 0])
    for row in range(3):
        target = result[:, :, row]
        target.copy_(offset[..., row, None, None].expand_as(target))
        for column in range(3):
            torch.mul(source[:, :, column], matrix[..., row, column, None, None], out=product)
            target.add_(product)
        target.clamp_(0.0, 1.0)
