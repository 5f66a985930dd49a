"""Reads frames with decord."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from recipes.contract import InputError
from recipes.data.decode import (
    Frames,
    Numbers,
    Request,
    last_line,
    open_container,
    turned,
    video_stream,
)

_CONSECUTIVE_GOPS = 8  # measured: below this many strides a GOP, reading all frames is faster
_LARGEST_GAP = 16


def read(request: Request) -> Frames:
    """Upright frames, (F, H, W, 3).

    Raises:
        InputError: the file cannot be opened or read, or has no such frame.
    """
    import av
    import decord

    try:
        to_turn, height, width = _layout(request)
        widening = _widening(width)
        frames = _read(request, height, width * widening)
    except (decord.DECORDError, av.FFmpegError, RuntimeError, OSError, StopIteration) as error:
        reason = last_line(error)
        raise InputError(f"{request.path}: cannot be decoded by decord ({reason})") from error
    if widening > 1:
        parts = frames.reshape(*frames.shape[:2], width, widening, 3)
        frames = parts.mean(axis=3).round().astype(np.uint8)
    return turned(frames, to_turn)


def _layout(request: Request) -> tuple[int, int, int]:
    """Degrees decord leaves to turn, height and width to ask it for.

    decord turns pictures by itself where its FFmpeg 4.1 finds a display matrix: in MP4 and MOV.
    """
    target = request.target
    if request.rotation == 0 and target.height is not None and target.width is not None:
        return 0, target.height, target.width
    with open_container(request.path) as container:
        stream = video_stream(container)
        stored = stream.codec_context.height, stream.codec_context.width
        turns_itself = "mov" in container.format.name.split(",")
    if not turns_itself:
        return request.rotation, *target.stored(request.rotation).size(*stored)
    return 0, *target.size(*(stored if request.rotation % 180 == 0 else stored[::-1]))


def _read(request: Request, height: int, width: int) -> Frames:
    import decord

    # more threads cost 1.05 to 1.27 times the CPU time, and each worker has one core
    reader = decord.VideoReader(str(request.path), num_threads=1, height=height, width=width)
    count, last = len(reader), int(request.numbers[-1])
    if last >= count:
        raise InputError(f"{request.path}: has {count} frames, frame {last} was asked for")
    return _read_in_order(reader, request) if request.sequential else _read_at(reader, request)


def _widening(width: int) -> int:
    """Factor by which decord must be asked for more columns, averaged afterwards; nearly always 1.

    decord takes the bytes of a row, padded to a multiple of 32 pixels, divided by the width for the
    number of channels where that is an integer, and fails on widths such as 16, 48 and 72.
    """
    factor = 1
    while True:
        columns = width * factor
        row_bytes = 3 * 32 * math.ceil(columns / 32)
        if row_bytes % columns or row_bytes == 3 * columns:
            return factor
        factor *= 2


def _read_at(reader: Any, request: Request) -> Frames:
    asked = fill_gaps(request.numbers, request.gop)
    frames: Frames = reader.get_batch(asked.tolist()).asnumpy()
    return frames if len(asked) == len(request.numbers) else frames[np.isin(asked, request.numbers)]


def fill_gaps(unique: Numbers, gop: int) -> Numbers:
    """The frames to ask for `unique` ones (sorted): decord seeks at every key frame it crosses.

    Where key frames are dense, reading the frames between two wanted ones as well costs less than
    the seek (9 against 80 ms a clip on intra-coded files).
    """
    if gop < 1:
        return unique
    request: list[int] = []
    for first, second in pairwise(unique.tolist()):
        gap = second - first
        fill = gap <= _LARGEST_GAP and gop <= gap * _CONSECUTIVE_GOPS
        request.extend(range(first, second) if fill else [first])
    return np.asarray([*request, int(unique[-1])], dtype=np.int64)


def _read_in_order(reader: Any, request: Request) -> Frames:
    wanted = set(request.numbers.tolist())
    kept = []
    for number in range(int(request.numbers[-1]) + 1):
        frame = reader.next()
        if number in wanted:
            kept.append(frame.asnumpy())
    return np.stack(kept)
