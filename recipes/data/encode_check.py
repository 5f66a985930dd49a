"""Proves that a prepared file holds the frames it should and that a decoder finds each of them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.contract import InputError
from recipes.data.decode import last_line, open_container, read_frames, video_stream

Thumbnail = NDArray[np.uint8]

THUMBNAIL = (16, 32)  # height and width of the pictures compared

_MOST_DIFFERENT = 20.0  # mean grey levels; measured: 10 for noise at crf 40, 2 for films at crf 18
_TOLERANCE = 1.0  # mean grey levels by which another frame may match better, up to crf 18
_DEFAULT_RATE = Fraction(25)
_LARGEST_DENOMINATOR = 1001  # 30000/1001 is exact, a measured average is off by less than 1e-6


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A file that was written or read back whole; `fps` is the average rate of the source."""

    frames: int
    fps: float
    width: int
    height: int
    bytes: int
    mtime_ns: int
    sha256: str


class EncodeError(Exception):
    """A video was not prepared; `damaged` if its source cannot be decoded as a whole."""

    def __init__(self, reason: str, *, damaged: bool = False) -> None:
        super().__init__(" ".join(reason.split()))
        self.damaged = damaged


@dataclass
class Pictures:
    """What went into the encoder or came out: a thumbnail of each frame.

    `witnesses` are thumbnails of some frames, made from the source without any step between.
    """

    rate: Fraction = _DEFAULT_RATE
    width: int = 0
    height: int = 0
    thumbnails: list[Thumbnail] = field(default_factory=list)
    witnesses: dict[int, Thumbnail] = field(default_factory=dict)


class Shrinking:
    """Makes thumbnails; keeps the scaler, which is costly to set up."""

    def __init__(self, size: tuple[int, int] = THUMBNAIL) -> None:
        from av.video.reformatter import VideoReformatter

        self._size = size
        self._scaler = VideoReformatter()

    def __call__(self, frame: Any) -> Thumbnail:
        """A frame as (H, W, 3) RGB of the size given."""
        height, width = self._size
        small = self._scaler.reformat(
            frame, width, height, "rgb24", interpolation="AREA", threads=1
        )
        return np.asarray(small.to_ndarray(), dtype=np.uint8)


def rate_of(fps: float | Fraction | None) -> Fraction:
    """Frames a second as a fraction a container can hold; 25 where they are unknown."""
    rate = Fraction(fps or 0).limit_denominator(_LARGEST_DENOMINATOR)
    return rate if rate > 0 else _DEFAULT_RATE


def verify(path: Path, gop: int, decoder: str) -> Encoded:
    """Decode a file written by `encode`, in order and by index.

    Raises:
        EncodeError: it is not such a file, or the decoder does not find the right frames in it.
        ConfigurationError: the decoder is not installed.
    """
    return access(path, decode_prepared(path), gop, decoder)


def decode_prepared(path: Path) -> Pictures:
    """All frames of a prepared file; each must be at the time its number says.

    Raises:
        EncodeError: it does not decode, or a frame is missing.
    """
    import av

    read, shrink = Pictures(), Shrinking()
    try:
        with open_container(path) as container:
            stream = video_stream(container)
            read.rate = rate_of(stream.average_rate)
            read.height, read.width = stream.height, stream.width
            stream.codec_context.options = {"err_detect": "explode"}
            for number, frame in enumerate(container.decode(stream)):
                if round((frame.time or 0.0) * read.rate) != number or frame.is_corrupt:
                    raise EncodeError(f"frame {number} of the prepared file is not in its place")
                read.thumbnails.append(shrink(frame))
    except (av.FFmpegError, InputError) as error:
        raise EncodeError(f"the prepared file does not decode ({last_line(error)})") from error
    return read


def compare(sent: Pictures, read: Pictures, crf: int) -> None:
    """Whether what came out resembles what went in, frame by frame.

    Raises:
        EncodeError: frames are missing, moved by one, or look otherwise.
    """
    if len(read.thumbnails) != len(sent.thumbnails):
        raise EncodeError(f"{len(read.thumbnails)} of {len(sent.thumbnails)} frames came out")
    tolerance = _TOLERANCE * 2 ** max(0, (crf - 18) / 6)  # the quantiser doubles every 6
    for number, picture in enumerate(read.thumbnails):
        own = _distance(picture, sent.thumbnails[number])
        others = (
            sent.thumbnails[max(0, number - 1) : number] + sent.thumbnails[number + 1 : number + 2]
        )
        nearest = min((_distance(picture, other) for other in others), default=own)
        if own > min(_MOST_DIFFERENT, nearest + tolerance):
            raise EncodeError(f"frame {number} of the prepared file is not that of the source")
    for number, witness in sent.witnesses.items():
        if _distance(read.thumbnails[number], witness) > _MOST_DIFFERENT:
            raise EncodeError(f"frame {number} of the prepared file has other colours or sides")


def access(path: Path, read: Pictures, gop: int, decoder: str) -> Encoded:
    """Ask the decoder of the data set for frames by number: they must be those of that number."""
    height, width = THUMBNAIL
    pictures = np.stack(read.thumbnails).astype(np.int16)
    count = len(pictures)
    picks = [count - 1, count // 7, count // 2]
    for part in (picks, picks[-1:]):
        try:
            found = read_frames(path, part, height=height, width=width, gop=gop, decoder=decoder)
        except InputError as error:
            reason = last_line(error).removeprefix(f"{path}: ")
            raise EncodeError(f"{decoder} fails on the prepared file ({reason})") from error
        for number, picture in zip(part, found.astype(np.int16), strict=True):
            distances = np.abs(pictures - picture).mean(axis=(1, 2, 3))
            if distances[number] > distances.min() + _TOLERANCE:
                raise EncodeError(f"{decoder} finds another frame {number} in the prepared file")
    return _described(path, read)


def _described(path: Path, read: Pictures) -> Encoded:
    """Make sure the file is on disk, and say what it is."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        found, sha256 = os.fstat(stream.fileno()), hashlib.file_digest(stream, "sha256").hexdigest()
    return Encoded(
        frames=len(read.thumbnails),
        fps=float(read.rate),
        width=read.width,
        height=read.height,
        bytes=found.st_size,
        mtime_ns=found.st_mtime_ns,
        sha256=sha256,
    )


def _distance(one: Thumbnail, other: Thumbnail) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())
