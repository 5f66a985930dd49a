"""Random colour, blur and erasing of whole batches in torch, decided by one seed a sample.

Crop, rotation and flip come before, where frames are read (`recipes.data.crop_resize`). All is
drawn on the CPU: a result depends on the pixels, the seed and the configuration alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recipes.data.blur import blur_
from recipes.data.boxes import drawn, random_box
from recipes.data.clip_config import AugmentConfig
from recipes.data.colour import Generators, colour, draw_chosen, part_of, solarize_

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Domains of the random streams; colour and blur share the first, which is the bare seed.
_SOLARIZE, _ERASE = 1, 2


def augment(clips: Tensor, seeds: Tensor, config: AugmentConfig) -> Tensor:
    """Colour, blur, solarize and erase each sample by its own seed, in this order.

    Args:
        clips: (B, N, C=3, T, H, W) uint8, on any device.
        seeds: (B,) int64; a sample's result depends on its pixels, its seed and `config` alone,
            never on the other samples of the batch.
        config: crop, rotation and flip are done where frames are read; the rest happens here.

    Returns:
        (B, N, C, T, H, W) float32 in [0, 1].

    Raises:
        ValueError: the clips are of another form, or a list in `config` is not for N clips.
    """
    if clips.dtype != torch.uint8 or clips.ndim != 6 or clips.shape[2] != 3:
        raise ValueError(f"expected uint8 B x N x 3 x T x H x W, not {clips.dtype} {clips.shape}")
    config.check_blocks(clips.shape[1])
    numbers = seeds.tolist()
    generators = [np.random.default_rng(seed) for seed in numbers]
    if config.jitter.p or config.gray_split or config.gray:
        images = colour(clips, generators, config)
    else:
        images = clips.float().div_(255.0)
    if config.blur:
        blur_(images, generators, config)
    if config.solarize:
        solarize_(images, [np.random.default_rng([_SOLARIZE, seed]) for seed in numbers], config)
    if config.erase:
        _erase_(images, [np.random.default_rng([_ERASE, seed]) for seed in numbers], config)
    return images


def normalize(
    clips: Tensor,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Tensor:
    """Subtract a mean and divide by a standard deviation, by default ImageNet's.

    Args:
        clips: (..., C=3, T, H, W) float in [0, 1].
        mean: of red, green and blue.
        std: likewise.
    """
    shape = (3, 1, 1, 1)
    means = torch.tensor(mean, dtype=clips.dtype, device=clips.device).view(shape)
    stds = torch.tensor(std, dtype=clips.dtype, device=clips.device).view(shape)
    return (clips - means) / stds


def residual_frames(clips: Tensor, shifted: bool = False) -> Tensor:
    """Differences x[t+1] - x[t] of frames that follow each other, in [-1, 1].

    Args:
        clips: (..., T, H, W) float in [0, 1].
        shifted: bring them to [0, 1] by (x + 1) / 2.

    Returns:
        (..., T-1, H, W).
    """
    differences = clips.diff(dim=-3)
    return (differences + 1.0) / 2.0 if shifted else differences


def quarter_turns(clips: Tensor, turns: Tensor) -> Tensor:
    """Turn square frames counter-clockwise by multiples of 90 degrees, exactly.

    The turns are given, as they are the answer of a pretext; their shape is their scope.

    Args:
        clips: (B, N, C, T, S, S) of any type.
        turns: (B,), (B, N) or (B, N, T) numbers of quarter turns, on any device.
    """
    if clips.shape[-1] != clips.shape[-2]:
        raise ValueError(f"only square frames can be turned by 90 degrees, not {clips.shape}")
    result = clips.clone()
    frames, turned = clips.transpose(2, 3), result.transpose(2, 3)
    shape = (*turns.shape, *(1 for _ in range(3 - turns.ndim)))
    every = turns.to(clips.device).view(shape).expand(frames.shape[:3]) % 4
    for count in (1, 2, 3):
        chosen = every == count
        turned[chosen] = torch.rot90(frames[chosen], count, dims=(-2, -1))
    return result


def _erase_(images: Tensor, generators: Generators, config: AugmentConfig) -> None:
    """Set a random rectangle of what is drawn to 0 (black), in place."""
    blocks, frames, height, width = images.shape[1], *images.shape[3:]
    shape = drawn((blocks, frames), config.erase_scope)
    for image, generator in zip(images, generators, strict=True):
        chosen = draw_chosen(generator, config.erase, shape)
        for clip, frame in np.argwhere(chosen).tolist():
            box = random_box(height, width, config.erase_area, config.erase_aspect, generator)
            top, left = round(box.top), round(box.left)
            bottom, right = round(box.top + box.height), round(box.left + box.width)
            part_of(image, shape, clip, frame)[..., top:bottom, left:right] = 0.0
