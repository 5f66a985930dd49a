"""Draws small videos whose classes are directions of motion, and encodes them as real mp4 files.

Everything but the direction is drawn at random for each video or each frame, so that no single
frame, colour or file size tells the class; `controls` measures that on the files themselves.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.contract import InputError
from recipes.data.config import SyntheticData
from recipes.data.listing import Listing, VideoRow, make_listing
from recipes.data.workers import map_expendable

# Unit steps (down, right) in the order of the class ids; the alphabet gives another order of names.
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}

FPS = 25
_SPEED = (1.5 / 32, 2.5 / 32)  # sides a frame
_SPLITS = ("train", "test")
_CHUNK = 25
_CHUNK_SECONDS = 600
_X264 = "bframes=0:rc-lookahead=0:mbtree=0:weightp=0:scenecut=0"
_MTIME_NS = 946_684_800_000_000_000  # fixed, so that drawing again gives the same index

Floats = NDArray[np.float64]


class _Chunk(NamedTuple):
    split: str
    first: int
    last: int


def scan(config: SyntheticData, output_dir: Path, workers: int = 1) -> Listing:
    """Draw and encode all videos below `output_dir`/videos and list them.

    Raises:
        InputError: a drawing process died (out of memory or disk).
    """
    root = output_dir / "videos"
    rows = []
    for split, count in zip(_SPLITS, (config.train, config.test), strict=True):
        for index in range(count):
            label, path = class_of(config, index), video_path(config, split, index)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            rows.append(VideoRow(path=path, label=label, split=split, group=path))
    chunks = [
        _Chunk(split, first, min(first + _CHUNK, count))
        for split, count in zip(_SPLITS, (config.train, config.test), strict=True)
        for first in range(0, count, _CHUNK)
    ]
    map_expendable(
        partial(_write_chunk, config, root),
        chunks,
        workers=workers,
        seconds=_CHUNK_SECONDS,
        crashed=_died,
    )
    return make_listing(root, rows, tuple(DIRECTIONS)[: config.classes])


def class_of(config: SyntheticData, index: int) -> str:
    """Class of video `index` of either split: the classes take turns."""
    return tuple(DIRECTIONS)[index % config.classes]


def video_path(config: SyntheticData, split: str, index: int) -> str:
    """Where a video lies relative to the root."""
    return f"{split}/{class_of(config, index)}/{index:05d}.mp4"


def draw(config: SyntheticData, split: str, index: int) -> NDArray[np.uint8]:
    """Draw one video, a pure function of (config, split, index).

    A star-shaped object with a texture of its own moves in its class's direction at 1.5 to 2.5 px
    a frame (of 32 px) and wraps at the borders. Variant `motion`: gray noise redrawn each frame
    behind it, and contrast and brightness of each frame at random. Variant `static`: one still
    texture behind it, colours of background and object drawn once a video.

    Returns:
        (T, H, W, 3) RGB.
    """
    rng = np.random.default_rng(
        [int(config.variant == "static"), config.seed, _SPLITS.index(split), index]
    )
    size, count = config.size, config.frames
    step = np.array(DIRECTIONS[class_of(config, index)]) * rng.uniform(*_SPEED) * size
    places = rng.uniform(0, size, 2) + step * np.arange(count)[:, None]
    mask = _star(rng, size, places)[..., None]
    texture = _moved(_noise(rng, size, 1, cycles=(4, 9))[0], places)[..., None]
    if config.variant == "static":
        back, front = rng.uniform(0.2, 0.8, (2, 3))
        ground = back + 0.16 * _noise(rng, size, 1, cycles=(2, 6))[..., None]
        video = (1 - mask) * ground + mask * (front + 0.10 * texture)
    else:
        ground = 0.45 + 0.16 * _noise(rng, size, count, cycles=(2, 6))[..., None]
        video = (1 - mask) * ground + mask * (0.75 + 0.10 * texture)
        contrast = rng.uniform(0.6, 1.4, (count, 1, 1, 1))
        video = video * contrast + rng.uniform(-0.2, 0.2, (count, 1, 1, 3))
    pixels: NDArray[np.uint8] = (video.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def encode(frames: NDArray[np.uint8], path: Path) -> None:
    """Write (T, H, W, 3) RGB as H.264 in mp4, the same bytes each time.

    CRF 8 with 4:2:0 chroma keeps motion and noise (the tests measure both). B-frames and look-ahead
    are off because with them x264 gives other bytes now and then on pictures this small.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "8", "preset": "veryfast", "x264-params": _X264}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.utime(path, ns=(_MTIME_NS, _MTIME_NS))


def _write_chunk(config: SyntheticData, root: Path, chunk: _Chunk) -> int:
    for index in range(chunk.first, chunk.last):
        frames = draw(config, chunk.split, index)
        encode(frames, root / video_path(config, chunk.split, index))
    return chunk.last - chunk.first


def _died(chunk: _Chunk) -> int:
    raise InputError(
        f"drawing {chunk.split} videos {chunk.first} to {chunk.last} ended its process; is there "
        "enough memory and disk?"
    )


def _noise(rng: np.random.Generator, size: int, count: int, cycles: tuple[int, int]) -> Floats:
    """Periodic noise with only `cycles` waves a side: (count, size, size), mean 0, deviation 1."""
    spectrum = np.fft.rfft2(rng.standard_normal((count, size, size)))
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    spectrum *= (radius >= cycles[0]) & (radius <= cycles[1])
    noise: Floats = np.fft.irfft2(spectrum, s=(size, size))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    return noise


def _moved(picture: Floats, places: Floats) -> Floats:
    """A periodic picture shifted by each of (T, 2) places, exact below a pixel: (T, size, size)."""
    size = picture.shape[-1]
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    phase = places[:, 0, None, None] * rows + places[:, 1, None, None] * columns
    moved: Floats = np.fft.irfft2(np.fft.rfft2(picture) * np.exp(-2j * np.pi * phase), (size, size))
    return moved


def _star(rng: np.random.Generator, size: int, places: Floats) -> Floats:
    """Mask in [0, 1] of one random star at each of (T, 2) centres, wrapping: (T, size, size)."""
    radius, lobes = rng.uniform(0.20, 0.28) * size, int(rng.integers(3, 6))
    turn, depth = rng.uniform(0, 2 * np.pi), 0.25
    grid = np.arange(size)
    down = (grid - places[:, :1] + size / 2) % size - size / 2
    right = (grid - places[:, 1:] + size / 2) % size - size / 2
    down, right = down[:, :, None], right[:, None, :]
    outline = radius * (1 + depth * np.cos(lobes * np.arctan2(down, right) + turn))
    mask: Floats = (outline - np.hypot(down, right) + 0.5).clip(0, 1)
    return mask
