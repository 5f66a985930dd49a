"""Draws frames that carry their number through lossy coding, and writes them in any container."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Packets = list[Any]
Edit = Callable[[Packets], Packets]

UNREADABLE = -1
HEIGHT, WIDTH = 48, 64
RATE = 25

_BITS = 8
_TICK = Fraction(1, 1000)


def draw(count: int, height: int = HEIGHT, width: int = WIDTH, first: int = 0) -> Frames:
    """(T, H, W, 3) frames numbered from `first`.

    The upper quarter has the number as 8 bars, black or white; below it the same bars inverted, so
    that a mixture of frames, a turned or a damaged picture cannot be read as a number. The lower
    half moves: a textured square over a slope.
    """
    frames = np.empty((count, height, width, 3), np.uint8)
    slope = np.linspace(40, 200, width * height).reshape(height, width, 1)
    texture = np.random.default_rng(7).integers(0, 255, (height, width, 3))
    quarter, side = height // 4, max(2, height // 4)
    for place in range(count):
        number = first + place
        bars = _bars(number, width)
        frames[place] = slope
        frames[place, :quarter] = bars[:, None]
        frames[place, quarter : 2 * quarter] = 255 - bars[:, None]
        left = 3 * number % max(1, width - side)
        top = height - side - (number % max(1, height - 2 * quarter - side + 1))
        frames[place, top : top + side, left : left + side] = texture[:side, :side]
    return frames


def _bars(number: int, width: int) -> Frames:
    bits = np.where([number >> bit & 1 for bit in range(_BITS)], 190, 65).astype(np.uint8)
    bars: Frames = bits[np.arange(width) * _BITS // width]
    return bars


def read_numbers(frames: Frames) -> list[int]:
    """The number of each of (F, H, W, 3) frames of any size, or `UNREADABLE`."""
    height, width = frames.shape[1:3]
    edges = [(place * width // _BITS, (place + 1) * width // _BITS) for place in range(_BITS)]
    columns = [
        slice(a + (b - a) // 4, max(a + (b - a) // 4 + 1, b - (b - a) // 4)) for a, b in edges
    ]
    quarter = height // 4
    upper = slice(quarter // 4, max(quarter // 4 + 1, quarter - quarter // 4))
    lower = slice(
        quarter + quarter // 4, max(quarter + quarter // 4 + 1, 2 * quarter - quarter // 4)
    )
    return [_number(frame[upper], frame[lower], columns) for frame in frames]


def _number(upper: Frames, lower: Frames, columns: Sequence[slice]) -> int:
    number = 0
    for bit, column in enumerate(columns):
        difference = float(upper[:, column].mean()) - float(lower[:, column].mean())
        if abs(difference) < 60:
            return UNREADABLE
        number |= (difference > 0) << bit
    return number


def write(
    path: Path,
    frames: Frames,
    codec: str = "libx264",
    *,
    gop: int = 12,
    b_frames: int = 0,
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    options: Mapping[str, str] = {},
    container: Mapping[str, str] = {},
    filters: str = "",
    edit: Edit = list,
    rotation: int = 0,
    form: str | None = None,
    sound: float = 0.0,
    setup: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Encode frames and write them; the container follows from the file's ending or `form`.

    Args:
        path: of the file.
        frames: (T, H, W, 3) as stored, before any rotation.
        codec: an encoder of FFmpeg.
        gop: frames between key frames.
        b_frames: between two others.
        pix_fmt: of the file.
        times: of the frames in milliseconds; default 25 a second.
        options: of the encoder.
        container: options of the container.
        filters: a bit stream filter the packets pass through.
        edit: changes the list of packets, in decoding order, before it is written.
        rotation: degrees counter-clockwise a player turns the picture.
        form: name of the container, where the ending does not say it.
        sound: seconds of a tone in a second stream.
        setup: changes the stream before it is opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = av.open(str(path), "w", format=form, options=dict(container))
    with _scheduled_as_before(), opened as output:
        stream: Any = output.add_stream(codec, rate=RATE, options=dict(options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.bit_rate = 2_000_000
        if times is not None:
            stream.codec_context.time_base = _TICK
        if rotation:
            stream.set_display_rotation(rotation)
        setup(stream)
        tone = output.add_stream(_tone_codec(output), rate=48000) if sound else None
        packets = edit(_filtered(_encode(stream, frames, times), filters, stream))
        for packet in packets:
            packet.stream = stream
            output.mux_one(packet)
        if tone is not None:
            _write_tone(output, tone, sound)
    return path


@contextmanager
def _scheduled_as_before() -> Iterator[None]:
    """SVT-AV1, run by root, gives the calling thread the highest real-time priority and leaves it.

    All that the test process starts from then on would have it too, and starve the machine.
    """
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


def encode(codec: str, frames: Frames, gop: int = 12, b_frames: int = 0, **options: str) -> Packets:
    """Packets of an encoder without a container, for files put together by hand."""
    context: Any = av.CodecContext.create(codec, "w")
    context.height, context.width = frames.shape[1:3]
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, RATE), RATE
    context.gop_size, context.max_b_frames, context.bit_rate = gop, b_frames, 2_000_000
    context.options = options
    packets: Packets = []
    for number, picture in enumerate(frames):
        frame = _frame(picture, "yuv420p")
        frame.pts = number
        packets.extend(context.encode(frame))
    packets.extend(context.encode(None))
    return packets


def _encode(stream: Any, frames: Frames, times: Sequence[int] | None) -> Packets:
    packets: Packets = []
    for number, picture in enumerate(frames):
        frame = _frame(picture, stream.pix_fmt)
        frame.time_base = Fraction(1, RATE) if times is None else _TICK
        frame.pts = number if times is None else times[number]
        packets.extend(stream.encode(frame))
    packets.extend(stream.encode(None))
    return packets


def _frame(picture: Frames, pix_fmt: str) -> Any:
    from av.video.reformatter import ColorRange

    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    if pix_fmt == "yuvj420p":
        return frame.reformat(format=pix_fmt, dst_color_range=ColorRange.JPEG)
    return frame.reformat(format=pix_fmt)


def _filtered(packets: Packets, filters: str, stream: Any) -> Packets:
    if not filters:
        return packets
    chain = BitStreamFilterContext(filters, stream.codec_context.codec.canonical_name)
    return [done for packet in [*packets, None] for done in chain.filter(packet)]


def _tone_codec(output: Any) -> str:
    return {"webm": "libopus", "avi": "mp3", "flv": "aac", "mpeg": "mp2"}.get(
        output.format.name, "aac"
    )


def _write_tone(output: Any, stream: Any, seconds: float) -> None:
    size = stream.codec_context.frame_size or 1024
    wave = np.sin(np.arange(int(seconds * 48000)) * 0.05).astype(np.float32)
    for start in range(0, len(wave) - size, size):
        layout = stream.codec_context.layout.name
        planes = np.tile(wave[start : start + size], (stream.codec_context.channels, 1))
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = 48000, start
        frame.time_base = Fraction(1, 48000)
        for packet in stream.encode(frame):
            output.mux_one(packet)
    for packet in stream.encode(None):
        output.mux_one(packet)
