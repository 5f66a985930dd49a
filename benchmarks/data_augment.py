"""Augmentation of a batch against kornia and against plain torch operations written by hand (P6).

    python benchmarks/data_augment.py --out benchmarks/results

8 clips of 16 frames, 128 px to 112 px, the same change for all frames of a clip, with SimCLR's
probabilities: resized crop, flip 0.5, jitter 0.4/0.4/0.4/0.1 0.8, gray 0.2, blur with 11 taps 0.5.
What is drawn differs from batch to batch. kornia is measured where it can be imported. All turn
uint8 into float32 between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_videos import Line, at_least, benchmark, importable, in_turns, milliseconds, ratio
from torch import Tensor
from torch.nn import functional

from recipes.data.augment import augment
from recipes.data.boxes import centre_box, draw_crops, draw_flips
from recipes.data.clip_config import AugmentConfig, JitterConfig
from recipes.data.crop_resize import crop_resize

Contestant = Callable[[Tensor, int], Tensor]

BATCH, FRAMES, SIDE, SIZE = 8, 16, 128, 112
CONFIG = AugmentConfig(
    crop_area=(0.3, 1.0),
    flip=0.5,
    jitter=JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
    gray=0.2,
    blur=0.5,
)
LUMA = torch.tensor([0.299, 0.587, 0.114])
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def ours(frames: Tensor, seed: int) -> Tensor:
    """What the loader and the training loop do, one after the other."""
    rng = np.random.default_rng(seed)
    shape = (1, FRAMES)
    picture = centre_box(SIDE, SIDE)
    clips = [
        crop_resize(
            clip,
            picture,
            draw_crops(SIDE, SIDE, CONFIG, shape, SIZE, rng),
            SIZE,
            draw_flips(CONFIG, shape, rng),
        )
        for clip in frames
    ]
    return augment(torch.stack(clips), torch.arange(BATCH) + BATCH * seed, CONFIG)


def by_hand(frames: Tensor, seed: int) -> Tensor:
    """One operation after the other on float clips, in torch, as a good programmer writes it."""
    rng = np.random.default_rng(seed)
    result = torch.empty(BATCH, 3, FRAMES, SIZE, SIZE)
    for place, clip in enumerate(frames[:, 0].permute(0, 1, 4, 2, 3)):
        top, left, side = _square(rng)
        cut = clip[..., top : top + side, left : left + side].float().div_(255)
        images = functional.interpolate(cut, (SIZE, SIZE), mode="bilinear", antialias=True)
        images = images.flip(-1) if rng.random() < 0.5 else images
        if rng.random() < 0.8:
            for operation in rng.permutation(4):
                images = _jitter(images, int(operation), float(rng.uniform(-1, 1)))
        if rng.random() < 0.2:
            images = _luma(images).expand(-1, 3, -1, -1)
        if rng.random() < 0.5:
            images = _convolve(images, rng.uniform(0.1, 2.0))
        result[place] = images.transpose(0, 1)
    return result


def fused(frames: Tensor, seed: int) -> Tensor:
    """The fastest form that was found: bytes as long as possible, one colour matrix, band matrix.

    Its bits depend on the number of threads, which those of ours must not.
    """
    rng = np.random.default_rng(seed)
    result = torch.empty(BATCH, 3, FRAMES, SIZE, SIZE)
    for place, clip in enumerate(frames[:, 0].permute(0, 1, 4, 2, 3)):
        top, left, side = _square(rng)
        cut = clip[..., top : top + side, left : left + side]
        images = functional.interpolate(cut, (SIZE, SIZE), mode="bilinear", antialias=True)
        images = images.flip(-1) if rng.random() < 0.5 else images
        values = images.float()
        matrix, offset = _matrix(values, rng)
        values = functional.conv2d(values, (matrix / 255)[..., None, None], offset).clamp_(0, 1)
        if rng.random() < 0.5:
            band = _band(rng.uniform(0.1, 2.0))
            values = band @ values @ band.T
        result[place] = values.transpose(0, 1)
    return result


def _square(rng: np.random.Generator) -> tuple[int, int, int]:
    side = int(SIDE * rng.uniform(0.3, 1.0) ** 0.5)
    return int(rng.integers(0, SIDE - side + 1)), int(rng.integers(0, SIDE - side + 1)), side


def _luma(images: Tensor) -> Tensor:
    return (images * LUMA[:, None, None]).sum(1, keepdim=True)


def _jitter(images: Tensor, operation: int, factor: float) -> Tensor:
    if operation == 3:
        turned = _hue(0.1 * factor)
        return torch.einsum("ij,tjhw->tihw", turned, images).clamp_(0, 1)
    other = (torch.zeros(()), _luma(images).mean(), _luma(images))[operation]
    return torch.lerp(other.expand_as(images), images, 1 + 0.4 * factor).clamp_(0, 1)


def _hue(turns: float) -> Tensor:
    angle = torch.tensor(2 * torch.pi * turns)
    turn = torch.eye(3)
    turn[1, 1] = turn[2, 2] = angle.cos()
    turn[1, 2], turn[2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(YIQ) @ turn @ YIQ


def _matrix(values: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    mean = values.mean((0, 2, 3)) / 255
    matrix, offset = torch.eye(3), torch.zeros(3)
    for operation in rng.permutation(4) if rng.random() < 0.8 else ():
        factor = float(rng.uniform(-1, 1))
        step = 1 + 0.4 * factor
        gray = (1 - step) * LUMA.expand(3, 3)
        shift = torch.zeros(3)
        if operation == 1:
            shift = ((1 - step) * (LUMA @ (matrix @ mean + offset))).expand(3)
        one = (step * torch.eye(3), step * torch.eye(3), step * torch.eye(3) + gray,
               _hue(0.1 * factor))[operation]  # fmt: skip
        matrix, offset = one @ matrix, one @ offset + shift
    if rng.random() < 0.2:
        matrix, offset = (LUMA @ matrix).expand(3, 3), (LUMA @ offset).expand(3)
    return matrix, offset


def _kernel(sigma: float) -> Tensor:
    kernel = torch.exp(-0.5 * (torch.arange(-5, 6) / sigma) ** 2)
    return kernel / kernel.sum()


def _convolve(images: Tensor, sigma: float) -> Tensor:
    kernel = _kernel(sigma)
    padded = functional.pad(images, (5, 5, 5, 5), mode="reflect")
    down = functional.conv2d(padded, kernel.view(1, 1, 11, 1).expand(3, 1, 11, 1), groups=3)
    return functional.conv2d(down, kernel.view(1, 1, 1, 11).expand(3, 1, 1, 11), groups=3)


def _band(sigma: float) -> Tensor:
    places = (torch.arange(SIZE)[:, None] + torch.arange(-5, 6)).abs()
    places = torch.where(places >= SIZE, 2 * (SIZE - 1) - places, places)
    return torch.zeros(SIZE, SIZE).scatter_add_(1, places, _kernel(sigma).expand(SIZE, 11))


def with_kornia() -> Contestant:
    """The same augmentation of kornia."""
    import kornia.augmentation as K

    kinds: list[Any] = [
        K.RandomResizedCrop((SIZE, SIZE), scale=(0.3, 1.0)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((11, 11), (0.1, 2.0), p=0.5),
    ]
    sequence = K.VideoSequential(*kinds, data_format="BTCHW", same_on_frame=True)
    return lambda frames, _: sequence(frames[:, 0].permute(0, 1, 4, 2, 3).float().div_(255))


def measure(_: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """One table for each number of threads."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, 1, FRAMES, SIDE, SIDE, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    contestants: dict[str, Contestant] = {
        "ours": ours,
        "by hand": by_hand,
        "fused": fused,
    }
    if importable("kornia"):
        contestants["kornia"] = with_kornia()
    tables = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        calls = {name: _next_seed(call, frames) for name, call in contestants.items()}
        with torch.inference_mode():
            seconds = in_turns(calls, 3 if small else 11)
        tables.append((f"{threads} thread(s), a batch of {BATCH} clips", _lines(seconds)))
    return tables


def _next_seed(call: Contestant, frames: Tensor) -> Callable[[], Tensor]:
    seeds = count()
    return lambda: call(frames, next(seeds))


def _lines(seconds: dict[str, list[float]]) -> list[Line]:
    detail = {name: f"{milliseconds(seconds, name, 1):.1f} ms" for name in seconds}
    best = max(("by hand", "fused"), key=lambda name: ratio(seconds, "ours", name))
    lines = [
        at_least(
            f"P6: ours against the faster form by hand ({best})",
            ratio(seconds, best, "ours"),
            0.8,
            f"{detail[best]} / {detail['ours']}",
        )
    ]
    if "kornia" not in seconds:
        absent = "kornia cannot be imported here: pip install kornia"
        return [*lines, Line(what="P6: ours against kornia", figure=float("nan"), detail=absent)]
    return [
        *lines,
        at_least(
            "P6: ours against kornia",
            ratio(seconds, "kornia", "ours"),
            5.0,
            f"{detail['kornia']} / {detail['ours']}",
        ),
    ]


if __name__ == "__main__":
    benchmark(__doc__, measure, "data_augment")
