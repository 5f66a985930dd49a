"""Re-encodes one video so that any frame of it is found exactly and fast, and proves that it is."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cluster import fsio
from recipes.contract import InputError
from recipes.data.config import PrepareOptions
from recipes.data.decode import last_line, open_container, rotation_of, video_stream
from recipes.data.encode_check import (
    THUMBNAIL,
    Encoded,
    EncodeError,
    Pictures,
    Shrinking,
    Thumbnail,
    access,
    compare,
    decode_prepared,
    rate_of,
)

REVISION = 1  # to be raised when the same options would give other pictures

_WITNESS_EVERY = 31  # frames; no multiple of a usual distance of key frames
_RGB_OR_UNKNOWN = frozenset({0, 2, 3, 8})  # AVCOL_SPC_* that is no matrix a YUV picture can have
_VIDEO_RANGE = 1  # AVCOL_RANGE_MPEG
_TURNS = {
    90: (("transpose", "clock"),),
    180: (("hflip", ""), ("vflip", "")),
    270: (("transpose", "cclock"),),
}


def prepared_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after scaling to `short_side`: even, as yuv420p needs, and never larger."""
    scale = min(1.0, short_side / min(height, width))
    return _even(height, scale), _even(width, scale)


def _even(pixels: int, scale: float) -> int:
    return max(2, min(2 * round(pixels * scale / 2), pixels // 2 * 2))


def encode(
    source: Path, target: Path, options: PrepareOptions, decoder: str, fps: float = 0.0
) -> Encoded:
    """Write `source` as H.264 in MP4 to `target`, then read it back in order and by index.

    Frame i of the result is frame i of the source in presentation order, upright, and there are as
    many; they are evenly spaced at its average rate, whatever its time stamps were.
    Everything is done by one thread, so that the same source and libraries give the same bytes.

    Args:
        source: a video, found undamaged by `recipes.data.reel.decoded`.
        target: a new name; it is there afterwards only if all was well, and then also on disk.
        options: short side, distance of key frames, quality.
        decoder: the one that will read the file, for the test of access by index.
        fps: average rate of the source as the index found it; 0 takes what the container says,
            which Matroska says wrongly of a variable rate.

    Raises:
        EncodeError: the source is damaged, or the result is not what went in.
        ConfigurationError: the decoder is not installed.
        OSError: `target` cannot be written; errno ENOSPC or EDQUOT if there is no space.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, fsio.PRIVATE_FILE))
    try:
        sent = _write(source, target, options, fps)
        read = decode_prepared(target)
        compare(sent, read, options.crf)
        return access(target, read, options.gop, decoder)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _write(source: Path, target: Path, options: PrepareOptions, fps: float) -> Pictures:
    """Encode all frames.

    Thumbnails are taken from the pictures given to the encoder, which costs little; every 31st is
    made from the source as well, so that a fault of scaling, turning or colour would be seen.
    """
    import av

    sent = Pictures()
    frames = _frames(source, sent, fps)
    first = next(frames)
    fit, shrink = _fitting(first, options.short_side, sent), Shrinking()
    container_options = {"movflags": "+faststart", "use_editlist": "0", "fflags": "+bitexact"}
    try:
        with av.open(str(target), "w", format="mp4", options=container_options) as output:
            stream = _add_stream(output, first, sent, options)
            for number, frame in enumerate(_prepend(first, frames)):
                picture = fit(frame)
                sent.thumbnails.append(shrink(picture))
                if number % _WITNESS_EVERY == 0:
                    sent.witnesses[number] = _witness(frame)
                picture.pts, picture.time_base = number, 1 / sent.rate
                picture.pict_type = 0
                output.mux(stream.encode(picture))
            output.mux(stream.encode(None))
    except av.FFmpegError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, os.strerror(error.errno), str(target)) from error
        raise EncodeError(f"cannot be encoded ({last_line(error)})") from error
    return sent


def _prepend(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _frames(source: Path, sent: Pictures, fps: float) -> Iterator[Any]:
    """All frames in presentation order; damage that the decoder notices is an error."""
    import av

    try:
        with open_container(source) as container:
            stream = video_stream(container)
            sent.rate = rate_of(fps or stream.average_rate)
            stream.codec_context.options = {"err_detect": "explode"}
            shape = None
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise EncodeError(f"frame {number} is damaged", damaged=True)
                if shape not in (None, _shape(frame)):
                    raise EncodeError(f"the picture changes its shape at frame {number}")
                shape = _shape(frame)
                yield frame
            if shape is None:
                raise EncodeError("has no frames", damaged=True)
    except (av.FFmpegError, InputError, OSError, ValueError) as error:
        raise EncodeError(f"cannot be decoded ({last_line(error)})", damaged=True) from error


def _shape(frame: Any) -> tuple[int, int, int, str]:
    return frame.width, frame.height, rotation_of(frame), frame.format.name


def _fitting(first: Any, short_side: int, sent: Pictures) -> Callable[[Any], Any]:
    """The function that scales a frame, makes it 8-bit 4:2:0 in video range and turns it upright.

    Scaling is bicubic as in the ffmpeg program. The matrix and primaries stay those of the source.
    """
    from av.video.reformatter import VideoReformatter

    turn = rotation_of(first)
    height, width = prepared_size(first.height, first.width, short_side)
    sent.height, sent.width = (width, height) if turn % 180 else (height, width)
    scaler = VideoReformatter()

    def scale(frame: Any) -> Any:
        return scaler.reformat(
            frame,
            width,
            height,
            "yuv420p",
            interpolation="BICUBIC",
            src_color_range=frame.color_range,
            dst_color_range=_VIDEO_RANGE,
            threads=1,
        )

    if turn == 0:
        return scale
    turned = _turning(scale(first), turn)
    return lambda frame: turned(scale(frame))


def _turning(first: Any, turn: int) -> Callable[[Any], Any]:
    """The function that turns a frame like `first` by 90, 180 or 270 degrees clockwise."""
    from av.filter import Graph

    graph = Graph()
    last = graph.add_buffer(
        width=first.width, height=first.height, format=first.format, time_base=Fraction(1, 25)
    )
    for name, argument in (*_TURNS[turn], ("buffersink", "")):
        node = graph.add(name, argument or None)
        last.link_to(node)
        last = node
    graph.configure()

    def turned(frame: Any) -> Any:
        graph.push(frame)
        return graph.pull()

    return turned


def _add_stream(output: Any, first: Any, sent: Pictures, options: PrepareOptions) -> Any:
    """An x264 stream: key frames at every `gop`-th frame and nowhere else, no B-frames, one thread.

    `fastdecode` leaves out the loop filter and arithmetic coding: files a fifth larger that decode
    in two thirds of the time.
    """
    gop = options.gop
    stream = output.add_stream("libx264", rate=sent.rate)
    stream.width, stream.height, stream.pix_fmt = sent.width, sent.height, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / sent.rate
    context.thread_count = 1
    context.gop_size = gop
    context.max_b_frames = 0
    context.color_range = _VIDEO_RANGE
    context.color_primaries = first.color_primaries
    context.color_trc = first.color_trc
    if first.colorspace not in _RGB_OR_UNKNOWN:
        context.colorspace = first.colorspace
    stream.options = {
        "preset": "veryfast",
        "tune": "fastdecode",
        "crf": str(options.crf),
        "a53cc": "0",  # no subtitles from the source's frames
        "x264-params": f"scenecut=0:open-gop=0:keyint={gop}:min-keyint={gop}{_instructions()}",
    }
    return stream


@functools.cache
def _instructions() -> str:
    """Keep x264 from AVX-512, whose rate control reads memory that was never written.

    Measured with x264 165 and MALLOC_PERTURB_: the same pictures gave other bytes now and then.
    Without it they never did, AVX2 gives what older processors give, and is as fast.
    """
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return ":asm=AVX2" if "avx512" in known else ""


def _witness(frame: Any) -> Thumbnail:
    turn = rotation_of(frame)
    small = Shrinking(THUMBNAIL[::-1] if turn % 180 else THUMBNAIL)(frame)
    return np.rot90(small, -turn // 90)
