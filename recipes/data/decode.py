"""Reads chosen frames of one video file: frame i is the i-th one shown, whichever the decoder."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipes.contract import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Frames = NDArray[np.uint8]
Numbers = NDArray[np.int64]

# What a container may be. FFmpeg also "plays" lists of URLs and scripts.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,asf,flv,ogg"

_ROTATIONS = {(1, 0, 0, 1): 0, (0, 1, -1, 0): 90, (-1, 0, 0, -1): 180, (0, -1, 1, 0): 270}

_READERS = {
    "decord": "recipes.data.decode_decord",
    "pyav": "recipes.data.decode_pyav",
    "torchcodec": "recipes.data.decode_torchcodec",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Pixels wanted of a picture; None keeps the file's, or follows from `short_side`."""

    height: int | None = None
    width: int | None = None
    short_side: int | None = None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for a picture of this height and width."""
        scale = 1.0 if self.short_side is None else self.short_side / min(height, width)
        return self.height or round(height * scale), self.width or round(width * scale)

    def stored(self, rotation: int) -> Target:
        """The same for the picture before it is turned by `rotation` degrees."""
        if rotation % 180 == 0:
            return self
        return Target(height=self.width, width=self.height, short_side=self.short_side)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a reader is asked for.

    Attributes:
        path: absolute path of an existing file, which no FFmpeg takes for a protocol.
        numbers: (F,) frame numbers, ascending, each once.
        target: size of the upright picture.
        sequential: never jump: decode from the first frame and count.
        gop: frames between key frames, 0 if unknown.
        rotation: 0, 90, 180 or 270: degrees clockwise from the stored to the upright picture.
    """

    path: Path
    numbers: Numbers
    target: Target
    sequential: bool
    gop: int
    rotation: int


def read_frames(
    path: Path | str,
    indices: ArrayLike,
    *,
    height: int | None = None,
    width: int | None = None,
    short_side: int | None = None,
    verdict: str = "random",
    gop: int = 0,
    decoder: str = "decord",
    rotation: int = 0,
) -> Frames:
    """Decode frames by index, scaled by the decoder, upright.

    A reader is opened, used and dropped: one left open decodes ahead into memory and must never
    cross a fork. Ask for several clips of a video in one call: it is opened once.

    Args:
        path: a file the index stage has verified for this decoder.
        indices: (F,) frame numbers in any order, repeats allowed.
        height: pixels of the upright result; None keeps the file's.
        width: pixels of the upright result; None keeps the file's.
        short_side: where they are None, scale so that the shorter side has this many pixels.
        verdict: `random` or `sequential`, from the index. The latter is for files whose random
            access is wrong (AVI with B-frames): they are read from their first frame.
        gop: frames between key frames, 0 if unknown; only the speed depends on it.
        decoder: `decord`, `pyav` or `torchcodec`.
        rotation: degrees clockwise, from the index, by which the stored picture must be turned.

    Returns:
        (F, H, W, 3) RGB.

    Raises:
        InputError: the file cannot be opened or read, or has no such frame; the message names it.
        ConfigurationError: the decoder is not installed.
    """
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.ndim != 1 or wanted.size == 0 or wanted.min() < 0:
        raise ValueError(f"indices must be a non-empty list of frame numbers, not {wanted!r}")
    if decoder not in _READERS or verdict not in ("random", "sequential"):
        raise ValueError(f"no decoder {decoder!r} or verdict {verdict!r}")
    if rotation not in (0, 90, 180, 270):
        raise ValueError(f"a picture cannot be turned by {rotation} degrees")
    unique, inverse = np.unique(wanted, return_inverse=True)
    request = Request(
        path=regular_file(path),
        numbers=unique,
        target=Target(height=height, width=width, short_side=short_side),
        sequential=verdict == "sequential",
        gop=gop,
        rotation=rotation,
    )
    frames = _reader(decoder)(request)
    in_order = len(unique) == len(wanted) and np.array_equal(unique, wanted)
    return frames if in_order else frames[inverse]


def _reader(decoder: str) -> Callable[[Request], Frames]:
    read: Callable[[Request], Frames] = importlib.import_module(_READERS[decoder]).read
    return read


def turned(frames: Frames, rotation: int) -> Frames:
    """Frames (F, H, W, 3) turned clockwise by a multiple of 90 degrees."""
    if rotation == 0:
        return frames
    return np.ascontiguousarray(np.rot90(frames, -rotation // 90, axes=(1, 2)))


def regular_file(path: Path | str) -> Path:
    """The absolute path of an existing file: FFmpeg finds no protocol in what begins with a slash.

    decord cannot be told which protocols to refuse; for it `http:`, `concat:` and the like would
    otherwise be opened.

    Raises:
        InputError: there is no such file.
    """
    absolute = Path(path).absolute()
    if not absolute.is_file():
        raise InputError(f"{path}: is not a file")
    return absolute


def open_container(path: Path | str, **arguments: Any) -> InputContainer:
    """Open a file with PyAV: only a local file, only a known video container.

    Raises:
        InputError: there is no such file.
        av.FFmpegError: it cannot be opened; `av.ArgumentError` for another kind of container.
    """
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    container: InputContainer = av.open(
        f"file:{regular_file(path)}", options=options, metadata_errors="replace", **arguments
    )
    return container


def video_stream(container: InputContainer) -> VideoStream:
    """The stream FFmpeg takes for the film (cover pictures are video streams as well), one thread.

    Raises:
        InputError: there is none, or FFmpeg knows no decoder for it.
    """
    stream: Any = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        name = container.name.removeprefix("file:")
        raise InputError(f"{name}: has no video stream that can be decoded")
    stream.codec_context.thread_count = 1  # each worker has one core
    video: VideoStream = stream
    return video


def rotation_of(frame: VideoFrame) -> int:
    """Degrees clockwise by which a player turns a decoded picture: 0, 90, 180 or 270.

    The display matrix maps a point (x, y), y downwards, to (a x + c y, b x + d y); it is stored as
    a, b, u, c, d, v, ... (libavutil/display.h). PyAV's `frame.rotation` counts counter-clockwise
    and does not tell a mirrored picture.

    Raises:
        ValueError: it is mirrored or turned by another angle.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32, count=5).tolist()
    length = math.hypot(a, b) or 1.0
    quarters = tuple(round(value / length, 2) for value in (a, b, c, d))
    if quarters not in _ROTATIONS:
        raise ValueError("its pictures are stored mirrored or turned by an odd angle")
    return _ROTATIONS[quarters]


def last_line(error: BaseException) -> str:
    """What a decoder says went wrong, without its stack trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
