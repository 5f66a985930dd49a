"""What is known of a video that was read once from end to end, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from recipes.data.container import Layout
from recipes.data.decode import rotation_of
from recipes.data.demux import Order, Packets
from recipes.data.witness import Witnesses

_B = 3  # av.video.frame.PictureType, whose look-up costs more than the comparison
Row = tuple[int | None, bool, int, bool, int, int]

_WITH_KEYS = frozenset({"mov", "matroska", "avi"})  # containers whose index marks key frames

AGAIN = "; download or copy it again"
REENCODE = "; re-encode it, for instance `ffmpeg -i IN -c:v libx264 OUT.mp4`"
_PROMISE, _SLACK_SECONDS = 0.95, 0.5  # ending earlier than the container states: cut off
_RATE_TOLERANCE = 0.02


class UnusableError(Exception):
    """The file cannot be used, for the reason the message gives."""


@dataclass(kw_only=True)
class Scan:
    """What is known of a file, filled while it is read; properties hold once it is.

    Attributes:
        container: FFmpeg's name of the format.
        codec: FFmpeg's name.
        rate: frames a second as the container says, 0 if it does not.
        tick: seconds of a unit of time stamps.
        layout: what the boxes of the file say.
        witnesses: frames kept for comparison.
        packets: what was noted of the packets.
        width: of the stored picture.
        height: of the stored picture.
        rotation: degrees clockwise from the stored to the upright picture.
        pix_fmt: FFmpeg's name, "" if not decoded.
        reorders: the codec holds frames back to show them in another order.
        has_index: the container says where key frames lie.
        has_duration: the container says how long it is.
        films: moving pictures it holds, of which this is one.
        promised_seconds: of the film, 0 if it does not say.
        frames: of each decoded frame in presentation order: time stamp, whether it needs no other,
            type of picture, whether it is damaged, height and width.
    """

    container: str
    codec: str
    rate: float
    tick: float
    layout: Layout
    witnesses: Witnesses
    packets: Packets
    width: int = 0
    height: int = 0
    rotation: int = 0
    pix_fmt: str = ""
    reorders: bool = False
    has_index: bool = False
    has_duration: bool = True
    films: int = 1
    promised_seconds: float = 0.0
    frames: list[Row] = field(default_factory=list)

    @property
    def b_frames(self) -> bool:
        """Whether a picture of type B was decoded."""
        return any(row[2] == _B for row in self.frames)

    def look_at_first(self, frame: Any) -> None:
        """Note what holds for all pictures."""
        self.width, self.height, self.pix_fmt = frame.width, frame.height, frame.format.name
        try:
            self.rotation = rotation_of(frame)
        except ValueError as error:
            raise UnusableError(f"{error}{REENCODE}") from error

    def check_turn(self, number: int, frame: Any) -> None:
        """Compare a picture with the first.

        Raises:
            UnusableError: it is turned in another way.
        """
        if number and rotation_of(frame) != self.rotation:
            raise UnusableError(f"turns its pictures in another way at frame {number}{REENCODE}")

    def note_index(self, entries: Any) -> None:
        """Look at the index of the container, once all packets are read."""
        self.has_index = len(entries) > 0
        if not _WITH_KEYS.isdisjoint(self.container.split(",")):
            self.packets.check_index(entries)

    @cached_property
    def order(self) -> Order:
        """The order of the frames, with a doubt where decoding showed another."""
        order = self.packets.order()
        doubt = order.doubt or ("an edit list leaves out frames" if order.left_out else "")
        if not self.frames:
            return replace(order, doubt=doubt)
        times = [row[0] for row in self.frames]
        if len(times) != order.frames:
            doubt = doubt or f"its {order.frames} packets give {len(times)} frames"
        elif times != order.times.tolist():
            doubt = doubt or "its frames come in another order than its time stamps"
        if not all(self.frames[key][1] for key in order.keys if key < len(times)):
            doubt = doubt or "what it marks as key frames needs frames before"
        return replace(order, doubt=doubt, frames=len(times))

    def duration_and_rate(self) -> tuple[float, float]:
        """Seconds, and frames a second: what the container says where it fits the time stamps."""
        order, start = self.order, self.order.start
        if self.frames and self.frames[0][0] is not None:
            start = self.frames[0][0]
        seconds = (order.end - start) * self.tick
        if seconds <= 0:
            return (order.frames / self.rate if self.rate else 0.0), self.rate
        if abs(self.rate * seconds - order.frames) <= max(1.0, _RATE_TOLERANCE * order.frames):
            return seconds, self.rate
        return seconds, order.frames / seconds

    def check_whole(self) -> None:
        """Compare what was read with what the container promises.

        Raises:
            UnusableError: something is missing or damaged.
        """
        order = self.order
        if order.broken is not None:
            raise UnusableError(f"is damaged: packet {order.broken} is not whole{AGAIN}")
        if not order.frames:
            raise UnusableError(f"has no frames{AGAIN}")
        seconds = max(order.end, order.end - order.start) * self.tick
        if 0 < seconds < _PROMISE * self.promised_seconds - _SLACK_SECONDS:
            promised = f"{self.promised_seconds:.1f} s"
            raise UnusableError(f"is cut off: ends after {seconds:.1f} of {promised}{AGAIN}")

    def check_frames(self) -> None:
        """Look for damage in what was decoded.

        Raises:
            UnusableError: there is some, or nothing was decoded.
        """
        if not self.frames:
            raise UnusableError(f"has no frames{AGAIN}")
        for number, (*_, damaged, height, width) in enumerate(self.frames):
            if damaged:
                raise UnusableError(f"is damaged: frame {number}{AGAIN}")
            if (height, width) != (self.height, self.width):
                raise UnusableError(f"changes its picture size at frame {number}{REENCODE}")
