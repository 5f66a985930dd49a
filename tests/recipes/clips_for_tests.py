"""Small clips as a loader gives them, for the tests of augmentation."""

from __future__ import annotations

import torch
from torch import Tensor


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
