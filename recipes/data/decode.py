"""Reads chosen frames of one video file: frame i is the i-th one shown, whichever the decoder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipes.contract import InputError

if TYPE_CHECKING:
    from av.container import InputContainer

Decoder = Literal["decord", "pyav", "torchcodec"]
Verdict = Literal["random", "sequential"]
Frames = NDArray[np.uint8]
Numbers = NDArray[np.int64]

# What a container may be. FFmpeg also "plays" lists of URLs and scripts.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,asf,flv,ogg"

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

    def turned(self, rotation: int) -> Target:
        """The same for the picture as stored, which is turned by `rotation` degrees to be seen."""
        if rotation % 180 == 0:
            return self
        return Target(height=self.width, width=self.height, short_side=self.short_side)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a reader is asked for.

    Attributes:
        path: absolute path of an existing file, which no FFmpeg takes for a protocol.
        numbers: (F,) frame numbers, ascending, each once.
        target: size of the picture: as stored for decord and PyAV, upright for torchcodec.
        sequential: never jump: decode from the first frame and count.
        gop: frames between key frames, 0 if unknown.
    """

    path: Path
    numbers: Numbers
    target: Target
    sequential: bool
    gop: int


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
    if decoder not in _READERS or verdict not in ("random", "sequential") or rotation % 90:
        raise ValueError(f"cannot read with {decoder!r}, {verdict!r}, rotation {rotation!r}")
    unique, inverse = np.unique(wanted, return_inverse=True)
    upright = Target(height=height, width=width, short_side=short_side)
    turns_itself = decoder == "torchcodec"
    request = Request(
        path=regular_file(path),
        numbers=unique,
        target=upright if turns_itself else upright.turned(rotation),
        sequential=verdict == "sequential",
        gop=gop,
    )
    frames = _reader(decoder)(request)
    if not turns_itself:
        frames = np.ascontiguousarray(np.rot90(frames, -rotation // 90, axes=(1, 2)))
    in_order = len(unique) == len(wanted) and np.array_equal(unique, wanted)
    return frames if in_order else frames[inverse]


def _reader(decoder: str) -> Callable[[Request], Frames]:
    read: Callable[[Request], Frames] = importlib.import_module(_READERS[decoder]).read
    return read


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


def last_line(error: BaseException) -> str:
    """What a decoder says went wrong, without its stack trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
