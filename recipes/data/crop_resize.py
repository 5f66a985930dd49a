"""Cutting, turning and scaling of decoded frames where one sample needs more than one box."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recipes.data.boxes import Box, Crops


def crop_resize(
    frames: Tensor,
    outer: Box,
    crops: Crops,
    size: int,
    flips: NDArray[np.bool_] | None = None,
) -> Tensor:
    """What each frame of a sample shows, at its final size; pixels stay uint8.

    Boxes are rounded to pixels of `frames` and scaled with an antialiased bilinear filter; those
    that have the final size already are only cut. A turned box is cut with what surrounds it,
    scaled, turned with a bilinear filter and cut again; what lies outside `outer` is black.

    Args:
        frames: (N, T, h, w, C=3) uint8, the part `outer` of the picture at any scale, on any
            device; `crops.reading_size` says which is best.
        outer: that part, in pixels of the file.
        crops: boxes in pixels of the file, and angles.
        size: side of the result.
        flips: (n, t) frames that are mirrored at last.

    Returns:
        (N, C, T, size, size) uint8.
    """
    clips, times, height, width, channels = frames.shape
    shape = (clips, channels, times, size, size)
    result = torch.empty(shape, dtype=frames.dtype, device=frames.device)
    scale = (height / outer.height, width / outer.width)
    for rows, columns, box, angle in _parts(crops, clips, times):
        part = frames[rows, columns]
        images = part.flatten(0, 1).permute(0, 3, 1, 2)
        box = Box(
            (box.top - outer.top) * scale[0],
            (box.left - outer.left) * scale[1],
            box.height * scale[0],
            box.width * scale[1],
        )
        shown = _turned(images, box, angle, size) if angle else _scaled(images, box, size)
        shown = shown.reshape(*part.shape[:2], *shown.shape[1:])
        result[rows, :, columns] = shown.transpose(1, 2)
    return result if flips is None else flip(result, flips)


def flip(clips: Tensor, flips: NDArray[np.bool_]) -> Tensor:
    """Mirror the chosen frames of (N, C, T, H, W) left to right; `flips` is (n, t)."""
    if not flips.any():
        return clips
    if flips.all():
        return clips.flip(-1)
    every = torch.from_numpy(np.broadcast_to(flips, (clips.shape[0], clips.shape[2])).copy())
    return torch.where(every[:, None, :, None, None].to(clips.device), clips.flip(-1), clips)


def _parts(crops: Crops, clips: int, times: int) -> Iterator[tuple[slice, slice, Box, float]]:
    """Frames that show the same box at the same angle."""
    shape = np.broadcast_shapes(crops.boxes.shape[:2], crops.angles.shape)
    boxes = np.broadcast_to(crops.boxes, (*shape, 4))
    angles = np.broadcast_to(crops.angles, shape)
    for n, t in np.ndindex(*shape):
        rows = slice(0, clips) if shape[0] == 1 else slice(n, n + 1)
        columns = slice(0, times) if shape[1] == 1 else slice(t, t + 1)
        yield rows, columns, Box(*boxes[n, t].tolist()), float(angles[n, t])


def _scaled(images: Tensor, box: Box, size: int) -> Tensor:
    """(F, C, h, w) uint8 to (F, C, size, size): one box, cut and scaled."""
    top, bottom = _whole(box.top, box.height, images.shape[2])
    left, right = _whole(box.left, box.width, images.shape[3])
    return _resize(images[:, :, top:bottom, left:right], size, size)


def _turned(images: Tensor, box: Box, angle: float, size: int) -> Tensor:
    """One box that shows the picture turned by `angle` degrees counter-clockwise."""
    y, x = _source_points(box, angle, size, images.device)
    whole = Crops(boxes=np.array([[box]]), angles=np.array([[angle]])).outer(*images.shape[2:])
    top, bottom = _whole(whole.top, whole.height, images.shape[2])
    left, right = _whole(whole.left, whole.width, images.shape[3])
    height = max(1, round((bottom - top) * size / box.height))
    width = max(1, round((right - left) * size / box.width))
    around = _resize(images[:, :, top:bottom, left:right], height, width).float()
    places = torch.stack(
        [2 * (x - left) / (right - left) - 1, 2 * (y - top) / (bottom - top) - 1], dim=-1
    ).expand(len(images), -1, -1, -1)
    turned = functional.grid_sample(around, places, padding_mode="border", align_corners=False)
    # Rounding to whole pixels may leave a box up to one outside what was read; more is outside the
    # picture.
    inside = (y > -1) & (y < images.shape[2] + 1) & (x > -1) & (x < images.shape[3] + 1)
    return turned.mul_(inside).round_().clamp_(0, 255).to(images.dtype)


def _source_points(
    box: Box, angle: float, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where the pixels of the result come from: y and x (size, size) in the units of `box`."""
    radians = math.radians(angle)
    cos, sin = math.cos(radians), math.sin(radians)
    steps = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size - 0.5
    down, across = (steps * box.height)[:, None], (steps * box.width)[None, :]
    return (
        box.top + box.height / 2 + across * sin + down * cos,
        box.left + box.width / 2 + across * cos - down * sin,
    )


def _whole(start: float, length: float, limit: int) -> tuple[int, int]:
    """First and last plus one of at least one whole pixel below `limit`."""
    first = round(start)
    last = min(limit, first + round(length))
    first = min(max(0, first), limit - 1)
    return first, max(first + 1, last)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[2:] == (height, width):
        return images
    on_cpu = images.device.type == "cpu"
    source = images if on_cpu else images.float()  # CUDA has no such filter for bytes
    scaled = functional.interpolate(source, (height, width), mode="bilinear", antialias=True)
    return scaled if on_cpu else scaled.round_().clamp_(0, 255).to(images.dtype)
