"""What the packets of a video say: how many frames, in which order, from where they can be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.bitstream import pictures_in, shows_nothing
from recipes.data.decode import CONTAINERS, regular_file

# Containers with an index whose time stamps are those of presentation; others guess when they seek.
_INDEXED = frozenset({"mov", "matroska"})
LATE_KEY = "it does not begin with a key frame"
_DEEPEST_REORDERING = 16  # places a frame may move: the picture buffer of H.264 and HEVC


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which packet holds which frame, as far as time stamps tell.

    Attributes:
        doubt: why they do not tell, or "".
        frames: packets that give a frame.
        keys: (K,) numbers of the key frames in presentation order, ascending.
        early: most frames shown before a key frame but stored behind it (an open group of
            pictures, which decoders enter in different ways).
        gop: largest number of frames from a key frame to the next.
        b_frames: frames are stored in another order than they are shown.
    """

    doubt: str
    frames: int
    keys: NDArray[np.int64]
    early: int
    gop: int
    b_frames: bool


@dataclass(kw_only=True)
class Packets:
    """What is noted of each packet while a file is read once.

    Attributes:
        codec: FFmpeg's name.
        is_key: test of a packet that the container calls a key frame; None believes it.
        times: of presentation, in stored order, of the packets that hold a frame.
        keys: numbers of those from which decoding can start.
        discarded: numbers of those an edit list leaves out.
        hidden: count of packets that hold no frame.
        corrupt: number of the first that is not whole, or None.
        last_decoding_time: of the packets so far.
        falling: decoding times do not ascend.
        fault: something in the packets that time stamps do not show, or "".
        early: a frame is shown before a key frame but stored behind it.
        end: time stamp at which the last frame ends.
    """

    codec: str
    is_key: Callable[[Any], bool] | None = None
    times: list[int | None] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    hidden: int = 0
    discarded: list[int] = field(default_factory=list)
    corrupt: int | None = None
    last_decoding_time: int | None = None
    falling: bool = False
    fault: str = ""
    early: bool = False
    end: int = 0
    _key_time: int = 0

    def note(self, packet: Any) -> None:
        """Add the next packet."""
        pictures = self._pictures(packet)
        if not pictures:
            self.hidden += 1
            return
        number, time, decoding_time = len(self.times), packet.pts, packet.dts
        self.times.extend([time] * pictures)
        if packet.is_discard:
            self.discarded.append(number)
        if packet.is_corrupt and self.corrupt is None:
            self.corrupt = number
        if decoding_time is not None:
            last = self.last_decoding_time
            self.falling = self.falling or (last is not None and decoding_time <= last)
            self.last_decoding_time = decoding_time
        if packet.is_keyframe:
            self._note_key(packet, number)
        if time is not None:
            self.early = self.early or (bool(self.keys) and time < self._key_time)
            self.end = max(self.end, time + (packet.duration or 0))

    def _pictures(self, packet: Any) -> int:
        if self.codec == "vp8":
            return int(not shows_nothing(packet))
        if self.is_key is None or self.codec != "mpeg4":
            return 1
        pictures = pictures_in(packet)
        if pictures != 1:
            self.fault = self.fault or "a packet does not hold exactly one picture"
        return pictures

    def _note_key(self, packet: Any, number: int) -> None:
        if self.is_key is not None and not self.is_key(packet):
            self.fault = self.fault or "what it marks as a key frame is none"
        if number and packet.has_sidedata("new_extradata"):
            self.fault = self.fault or "the parameters of its codec change on the way"
        self.keys.append(number)
        self._key_time = packet.pts or 0

    @property
    def start(self) -> int:
        """Time stamp of the first frame shown."""
        left_out = set(self.discarded)
        shown = (t for n, t in enumerate(self.times) if n not in left_out and t is not None)
        return min(shown, default=0)

    def order(self) -> Order:
        """Sort the packets by their time of presentation."""
        times = np.asarray([0 if time is None else time for time in self.times], dtype=np.int64)
        places = np.argsort(times, kind="stable")
        rank = np.empty_like(places)
        rank[places] = np.arange(len(places))
        stored = np.asarray(self.keys, dtype=np.int64)
        keys = np.sort(rank[stored])
        ends = np.diff(np.append(keys, len(times)))
        return Order(
            doubt=self._doubt(times, places),
            frames=len(times) - len(self.discarded),
            keys=keys,
            early=int((rank[stored] - stored).max(initial=0)),
            gop=int(ends.max(initial=keys[0] if len(keys) else len(times))),
            b_frames=bool(np.any(places[1:] < places[:-1])),
        )

    def _doubt(self, times: NDArray[np.int64], places: NDArray[np.int64]) -> str:
        if not self.keys or self.keys[0] != 0:
            return LATE_KEY
        if None in self.times:
            return "a packet has no time stamp"
        if self.falling:
            return "decoding times do not ascend"
        if np.any(np.diff(times[places]) == 0):
            return "two frames have one time stamp"
        if np.any(np.abs(places - np.arange(len(places))) > _DEEPEST_REORDERING):
            return "time stamps jump back"
        if self.fault:
            return self.fault
        if self.discarded:
            return "an edit list leaves out frames"
        return ""


def open_for_packets(path: Path) -> Any:
    """Open a file with PyAV for its packets only: the decoder stays shut while FFmpeg looks at it.

    That saves a third of the time. The pixel format stays unknown.

    Raises:
        av.FFmpegError: it cannot be opened; `av.ArgumentError` for another kind of container.
    """
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "skip_frame": "all"}
    return av.open(f"file:{regular_file(path)}", options=options, metadata_errors="replace")


def is_indexed(container: str) -> bool:
    """Whether FFmpeg's format of this name finds a frame by an index of presentation times."""
    return not _INDEXED.isdisjoint(container.split(","))
