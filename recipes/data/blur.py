"""Gaussian blur as products with band matrices."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.data.boxes import drawn
from recipes.data.clip_config import AugmentConfig
from recipes.data.colour import Generators, draw_chosen, part_of

_SIGMA = (0.1, 2.0)  # SimCLR
_SHARE = 0.1  # kernel size as a share of the side, SimCLR
_BLOCK = 16  # rows of the result computed at once on a CPU

Floats = NDArray[np.float64]


def blur_(images: Tensor, generators: Generators, config: AugmentConfig) -> None:
    """Blur in place what is drawn, each draw with a sigma ~ U[0.1, 2] of its own.

    Args:
        images: (B, N, C, T, H, W) float.
        generators: B of them; each is consumed by its own sample.
        config: `blur`, one probability or one a clip, and `blur_scope`.
    """
    blocks, frames, height, width = images.shape[1], *images.shape[3:]
    shape = drawn((blocks, frames), config.blur_scope)
    for image, generator in zip(images, generators, strict=True):
        chosen = draw_chosen(generator, config.blur, shape)
        sigmas = generator.uniform(*_SIGMA, shape)
        for clip, frame in np.argwhere(chosen).tolist():
            part = part_of(image, shape, clip, frame)
            down = torch.from_numpy(blur_matrix(height, sigmas[clip, frame])).to(image)
            across = torch.from_numpy(blur_matrix(width, sigmas[clip, frame])).to(image)
            _multiply_(part, down, across)


def blur_matrix(side: int, sigma: float) -> Floats:
    """(side, side) matrix of a Gaussian of about a tenth of the side, reflected at the borders."""
    radius = kernel_radius(side)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    places = np.abs(np.arange(side)[:, None] + offsets)
    places = np.where(places >= side, 2 * (side - 1) - places, places)
    matrix = np.zeros((side, side))
    rows = np.broadcast_to(np.arange(side)[:, None], places.shape)
    np.add.at(matrix, (rows, places), kernel / kernel.sum())
    return matrix


def kernel_radius(side: int) -> int:
    """Half the kernel's size, rounded down."""
    return min(max(1, int(_SHARE * side) // 2), side - 1)


def _multiply_(images: Tensor, down: Tensor, across: Tensor) -> None:
    """Replace (..., H, W) images by down @ images @ across^T.

    On a CPU block by block, with the part of the matrix that is not zero: its products are several
    times faster than whole ones, and these than a convolution.
    """
    if images.device.type != "cpu":
        images.copy_(down @ images @ across.T)
        return
    rows = torch.empty(images.shape, dtype=images.dtype)
    for block, band in _bands(len(down)):
        rows[..., block, :] = down[block, band] @ images[..., band, :]
    for block, band in _bands(len(across)):
        images[..., block] = rows[..., band] @ across[block, band].T


def _bands(side: int) -> list[tuple[slice, slice]]:
    """Blocks of rows, and for each the columns where the blur matrix may be other than zero."""
    radius = kernel_radius(side)
    starts = range(0, side, max(_BLOCK, 2 * radius))
    ends = [*starts[1:], side]
    return [
        (slice(start, end), slice(max(0, start - radius), min(side, end + radius)))
        for start, end in zip(starts, ends, strict=True)
    ]
