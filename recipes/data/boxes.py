"""Which part of the picture each frame of a sample shows: random boxes, angles and flips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.clip_config import AugmentConfig, Scope

Floats = NDArray[np.float64]
Shape = tuple[int, int]

_TRIES = 10  # as torchvision's RandomResizedCrop


class Box(NamedTuple):
    """A part of the picture in pixels of the file, not rounded."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Crops:
    """What N clips of T frames show; n is 1 or N and t is 1 or T, 1 standing for all.

    Attributes:
        boxes: (n, t, 4) top, left, height and width in pixels of the upright picture.
        angles: (n, t) degrees by which what is shown turns, counter-clockwise about the middle of
            the box.
    """

    boxes: Floats
    angles: Floats

    @property
    def single(self) -> Box | None:
        """The box, where all frames show the same one and none is turned."""
        if self.boxes.shape[:2] != (1, 1) or self.angles.any():
            return None
        return Box(*self.boxes[0, 0].tolist())

    def outer(self, height: int, width: int) -> Box:
        """The smallest part of a picture of this size that holds all boxes, also those turned."""
        half_height, half_width = self.boxes[..., 2] / 2, self.boxes[..., 3] / 2
        middle_y, middle_x = self.boxes[..., 0] + half_height, self.boxes[..., 1] + half_width
        cos, sin = _cos_sin(self.angles)
        reach_y = np.abs(cos) * half_height + np.abs(sin) * half_width
        reach_x = np.abs(cos) * half_width + np.abs(sin) * half_height
        top, left = max(0.0, (middle_y - reach_y).min()), max(0.0, (middle_x - reach_x).min())
        bottom = min(float(height), (middle_y + reach_y).max())
        right = min(float(width), (middle_x + reach_x).max())
        return Box(float(top), float(left), float(bottom - top), float(right - left))

    def reading_size(self, outer: Box, size: int) -> Shape:
        """Height and width in pixels at which to read `outer`, to scale each box to `size` then.

        Boxes of one size come out at `size` and are only cut. Of several sizes the smallest does,
        unless that would enlarge the file's pixels: these are then enlarged after cutting.
        """
        height, width = (
            max(1, round(side * _scale(self.boxes[..., axis], size)))
            for side, axis in ((outer.height, 2), (outer.width, 3))
        )
        return height, width


def draw_flips(config: AugmentConfig, shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which frames are mirrored: (n, t) for N clips of T frames, n and t as in `Crops`."""
    flips: NDArray[np.bool_] = rng.random(drawn(shape, config.flip_scope)) < config.flip
    return flips


def draw_crops(
    height: int,
    width: int,
    config: AugmentConfig,
    shape: Shape,
    size: int,
    rng: np.random.Generator,
) -> Crops:
    """Draw what the frames of a sample show.

    Args:
        height: of the upright picture in pixels.
        width: likewise.
        config: kind of crop, its scope, shift and rotation; where it asks for the centre and
            nothing else, nothing is drawn.
        shape: N clips of T frames.
        size: side of the result in pixels, the unit of `config.crop_shift`.
        rng: boxes are drawn first, frame after frame, then shifts, then angles.
    """
    clips, frames = drawn(shape, config.crop_scope)
    flat = [_draw_box(height, width, config, rng) for _ in range(clips * frames)]
    boxes = np.array(flat, dtype=np.float64).reshape(clips, frames, 4)
    if config.crop_shift:
        boxes = _shift(boxes, config.crop_shift, shape, size, (height, width), rng)
    angles = np.zeros((1, 1))
    if config.rotate:
        turned = rng.random((clips, frames)) < config.rotate_p
        angles = rng.uniform(-config.rotate, config.rotate, (clips, frames)) * turned
        boxes = np.broadcast_to(boxes, np.broadcast_shapes(boxes.shape, (clips, frames, 1)))
    return Crops(boxes=boxes, angles=angles)


def drawn(shape: Shape, scope: Scope) -> Shape:
    """How many draws there are along clips and frames for a scope: 1 stands for all."""
    clips, frames = shape
    return {"per_clip": (1, 1), "per_block": (clips, 1), "per_frame": (clips, frames)}[scope]


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


def random_square(
    height: int, width: int, side: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A square at a uniform place, its side a uniform share in `side` of the short side."""
    pixels = min(height, width) * rng.uniform(*side)
    return _place(height, width, pixels, pixels, rng)


def random_window(
    height: int, width: int, window: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A part with fixed shares of height and width at a uniform place.

    This is "resize to H x W, crop h x w" with the shares h/H and w/W.
    """
    return _place(height, width, height * window[0], width * window[1], rng)


def _place(
    height: int, width: int, box_height: float, box_width: float, rng: np.random.Generator
) -> Box:
    top, left = rng.random(2)
    return Box((height - box_height) * top, (width - box_width) * left, box_height, box_width)


def _draw_box(height: int, width: int, config: AugmentConfig, rng: np.random.Generator) -> Box:
    if config.crop_within < 1.0:
        side = min(height, width) * config.crop_within
        inner = _draw_in(1, 1, config, rng)
        return Box(
            (height - side) / 2 + inner.top * side,
            (width - side) / 2 + inner.left * side,
            inner.height * side,
            inner.width * side,
        )
    return _draw_in(height, width, config, rng)


def _draw_in(height: int, width: int, config: AugmentConfig, rng: np.random.Generator) -> Box:
    if config.crop_area is not None:
        return random_box(height, width, config.crop_area, config.crop_aspect, rng)
    if config.crop_side is not None:
        return random_square(height, width, config.crop_side, rng)
    if config.crop_window is not None:
        return random_window(height, width, config.crop_window, rng)
    return centre_box(height, width)


def _shift(
    boxes: Floats, pixels: int, shape: Shape, size: int, picture: Shape, rng: np.random.Generator
) -> Floats:
    """Move each frame's box by U{-pixels..pixels} pixels of the result, inside the picture."""
    boxes = np.broadcast_to(boxes, (*shape, 4)).copy()
    steps = rng.integers(-pixels, pixels + 1, (*shape, 2))
    moved = boxes[..., :2] + steps * boxes[..., 2:] / size
    boxes[..., :2] = np.clip(moved, 0.0, np.array(picture) - boxes[..., 2:])
    return boxes


def _scale(sides: Floats, size: int) -> float:
    return min(size / float(sides.min()), max(1.0, size / float(sides.max())))


def _cos_sin(angles: Floats) -> tuple[Floats, Floats]:
    radians = np.deg2rad(angles)
    return np.cos(radians), np.sin(radians)
