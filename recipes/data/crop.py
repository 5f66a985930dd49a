"""Which part of the picture a clip shows, and reading just that part at its final size."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from recipes.contract import InputError
from recipes.data.decode import Frames, read_frames
from recipes.data.samplers import Indices
from recipes.data.table import VideoTable

_TRIES = 10  # as torchvision's RandomResizedCrop
_CLOCK_SLACK_NS = 2_000_000_000  # file systems keep time stamps with different precision


class Box(NamedTuple):
    """A part of the picture in pixels of the file, not rounded."""

    top: float
    left: float
    height: float
    width: float


def centre_box(height: int, width: int) -> Box:
    """The largest square in the middle."""
    side = min(height, width)
    return Box((height - side) / 2, (width - side) / 2, side, side)


def random_box(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """A random part with a share of the area in `area` and a ratio of width to height in `aspect`.

    Share uniform, ratio log-uniform, ten tries, then the largest allowed part in the middle
    (Szegedy et al. 2015, as implemented by torchvision's RandomResizedCrop).
    """
    for _ in range(_TRIES):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width, box_height = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
        top, left = rng.random(2)
        if box_width <= width and box_height <= height:
            return Box(
                (height - box_height) * top, (width - box_width) * left, box_height, box_width
            )
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_width, box_height = min(width, height * ratio), min(height, width / ratio)
    return Box((height - box_height) / 2, (width - box_width) / 2, box_height, box_width)


def read_box(table: VideoTable, row: int, indices: Indices, box: Box, size: int) -> Frames:
    """Frames of one video, cut to `box` and scaled to `size` x `size` pixels.

    The decoder scales the whole picture so that the box comes out at the final size; cutting is
    then a view and pixels are interpolated once.

    Returns:
        (F, size, size, 3) RGB.

    Raises:
        InputError: the file is gone, changed since it was indexed, or cannot be decoded.
    """
    path = table.root / table.paths[row]
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    late = abs(found.st_mtime_ns - int(table.mtimes_ns[row])) > _CLOCK_SLACK_NS
    if found.st_size != int(table.bytes[row]) or late:
        raise InputError(f"{path}: changed since it was indexed")
    height, width = int(table.heights[row]), int(table.widths[row])
    full_height = max(size, round(height * size / box.height))
    full_width = max(size, round(width * size / box.width))
    frames = read_frames(
        path,
        indices,
        height=full_height,
        width=full_width,
        verdict=table.verdicts[row],
        gop=int(table.gops[row]),
    )
    top = min(round(box.top * full_height / height), full_height - size)
    left = min(round(box.left * full_width / width), full_width - size)
    return frames[:, top : top + size, left : left + size]
