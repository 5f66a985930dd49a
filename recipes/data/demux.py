"""What the packets of a video say: how many frames, in which order, from where they can be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.bitstream import pictures_in, shows_nothing
from recipes.data.decode import CONTAINERS, regular_file

Row = tuple[int | None, int | None, bool, bool, bool, int | None]

# Containers with an index whose time stamps are those of presentation; others guess when they seek.
_INDEXED = frozenset({"mov", "matroska"})
_FAR = 1 << 62
_EBML = b"\x1aE\xdf\xa3"  # Matroska's first element
_UNEVEN = frozenset({"vp8", "mpeg4"})
LATE_KEY = "it does not begin with a key frame"
_DEEPEST_REORDERING = 16  # places a frame may move: the picture buffer of H.264 and HEVC


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which packet holds which frame, as far as time stamps tell.

    Attributes:
        doubt: why they do not tell, or "".
        frames: packets that give a frame.
        left_out: frames that an edit list leaves out.
        times: time stamps of all frames, ascending, also of those left out.
        start: time stamp of the first frame shown.
        end: time stamp at which the last frame ends.
        keys: numbers of the key frames in presentation order, ascending.
        early: most frames shown before a key frame but stored behind it (an open group of
            pictures, which decoders enter in different ways).
        gop: largest number of frames from a key frame to the next.
        b_frames: frames are stored in another order than they are shown.
        broken: number of the first packet that is not whole, or None.
    """

    doubt: str
    frames: int
    left_out: int
    times: NDArray[np.int64]
    start: int
    end: int
    keys: list[int]
    early: int
    gop: int
    b_frames: bool
    broken: int | None


@dataclass(kw_only=True)
class Packets:
    """What is noted of each packet while a file is read once.

    Attributes:
        codec: FFmpeg's name.
        stores_decoding: the container has times of decoding; else FFmpeg guesses them.
        starts_afresh: test of a packet that the container calls a key frame.
        inside: count the pictures in packets of which some may hold two or none.
        rows: of each frame in stored order: time of presentation and of decoding, whether it is a
            key frame, left out by an edit list, not whole, and its duration.
        hidden: count of packets that hold no frame.
        fault: something in the packets that time stamps do not show, or "".
        early: a frame is shown before a key frame but stored behind it.
        dependent: a key frame does not forget all that came before.
    """

    codec: str
    stores_decoding: bool
    starts_afresh: Callable[[Any], bool]
    inside: bool
    rows: list[Row] = field(default_factory=list)
    hidden: int = 0
    fault: str = ""
    early: bool = False
    dependent: bool = False
    _key_time: float = -math.inf

    def note(self, packets: Iterable[Any]) -> None:
        """Add the next packets; empty ones, which end a file, are left out."""
        rows, uneven = self.rows, self.codec in _UNEVEN
        for packet in packets:
            if not packet.size:
                continue
            time, is_key = packet.pts, packet.is_keyframe
            if is_key:
                self._check_key(packet)
                self._key_time = -math.inf if time is None else time
            elif time is not None and time < self._key_time:
                self.early = True
            lost, broken = packet.is_discard, packet.is_corrupt
            row = time, packet.dts, is_key, lost, broken, packet.duration
            if uneven:
                self._note_pictures(packet, row)
            else:
                rows.append(row)

    def _check_key(self, packet: Any) -> None:
        self.dependent = self.dependent or not self.starts_afresh(packet)
        if self.rows and packet.has_sidedata("new_extradata"):
            self.fault = self.fault or "the parameters of its codec change on the way"

    def _note_pictures(self, packet: Any, row: Row) -> None:
        """For codecs whose packets may hold two pictures or none."""
        pictures = 1
        if self.codec == "vp8":
            pictures = int(not shows_nothing(packet))
        elif self.inside:
            pictures = pictures_in(packet)
            if pictures != 1:
                self.fault = self.fault or "a packet does not hold exactly one picture"
        self.rows.extend([row] * pictures)
        self.hidden += not pictures

    def check_index(self, entries: Any) -> None:
        """Compare with the index of the container, which other readers than FFmpeg 8 believe."""
        noted = [row[2] for row in self.rows]
        claimed = [entry.is_keyframe for entry in entries]
        if len(claimed) == len(noted):
            false = any(claim and not true for claim, true in zip(claimed, noted, strict=True))
        else:
            times = {row[0] for row in self.rows if row[2]} | {
                row[1] for row in self.rows if row[2]
            }
            false = any(entry.is_keyframe and entry.timestamp not in times for entry in entries)
        if false:
            self.fault = self.fault or "its index calls key frames what is none"

    def order(self) -> Order:
        """Sort the packets by their time of presentation."""
        times, decoding, is_key, left_out, broken, durations = self._columns()
        count = len(times)
        moments = np.asarray([time or 0 for time in times], dtype=np.int64)
        places = moments.argsort(kind="stable")
        rank = np.empty_like(places)
        rank[places] = np.arange(count)
        stored = [number for number, key in enumerate(is_key) if key]
        reached = rank[stored].tolist() if stored else []
        keys = sorted(reached)
        gaps = [end - start for start, end in pairwise([0, *keys, count])]
        ends = [(time or 0) + (length or 0) for time, length in zip(times, durations, strict=True)]
        shown = [time or 0 for time, out in zip(times, left_out, strict=True) if not out]
        return Order(
            doubt=self._doubt(times, decoding, moments[places], places),
            frames=len(shown),
            left_out=count - len(shown),
            times=moments[places],
            start=min(shown, default=_FAR),
            end=max(ends, default=0),
            keys=keys,
            early=max(0, 0, *(new - old for new, old in zip(reached, stored, strict=True))),
            gop=max(gaps),
            b_frames=bool((places[1:] < places[:-1]).any()),
            broken=broken.index(True) if True in broken else None,
        )

    def _columns(self) -> tuple[tuple[Any, ...], ...]:
        return tuple(zip(*self.rows, strict=True)) or ((),) * 6

    def _doubt(
        self,
        times: Sequence[int | None],
        decoding: Sequence[int | None],
        ascending: NDArray[np.int64],
        places: NDArray[np.int64],
    ) -> str:
        if not self.rows or not self.rows[0][2]:
            return LATE_KEY
        if None in times:
            return "a packet has no time stamp"
        stored = [time for time in decoding if time is not None and self.stores_decoding]
        if any(after <= before for before, after in pairwise(stored)):
            return "decoding times do not ascend"
        if (ascending[1:] == ascending[:-1]).any():
            return "two frames have one time stamp"
        if (np.abs(places - np.arange(len(places))) > _DEEPEST_REORDERING).any():
            return "time stamps jump back"
        return self.fault


def open_for_packets(path: Path, parse: bool = True) -> Any:
    """Open a file with PyAV for its packets only: the decoder stays shut while FFmpeg looks at it.

    That saves a third of the time. The pixel format stays unknown.

    Args:
        path: the file.
        parse: let FFmpeg correct what an MP4 file says of its packets by looking into them.

    Raises:
        av.FFmpegError: it cannot be opened; `av.ArgumentError` for another kind of container.
    """
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "skip_frame": "all"}
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:] == b"ftyp" or head.startswith(_EBML):  # MP4 or Matroska: the header says it all
        options["probesize"] = "32"
    if head[4:] == b"ftyp" and not parse:
        options["fflags"] = "noparse"
    return av.open(f"file:{regular_file(path)}", options=options, metadata_errors="replace")


def is_indexed(container: str) -> bool:
    """Whether FFmpeg's format of this name finds a frame by an index of presentation times."""
    return not _INDEXED.isdisjoint(container.split(","))
