"""Reads a video once from end to end, decoding it or not, and notes what there is to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recipes.data.bitstream import key_test
from recipes.data.container import Layout, layout
from recipes.data.decode import open_container, rotation_of, video_stream
from recipes.data.demux import Order, Packets, is_indexed, open_for_packets
from recipes.data.witness import Witnesses

# What a codec may be; the list keeps rarely tested decoders out of reach of hostile files.
CODECS = frozenset(
    {"h264", "hevc", "mpeg4", "vp8", "vp9", "av1", "mjpeg", "mpeg1video", "mpeg2video", "theora"}
    | {"msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "h263p", "wmv1", "wmv2", "wmv3", "vc1"}
    | {"flv1"}
)
_B = 3  # av.video.frame.PictureType, whose look-up costs more than the comparison
_INTRA = frozenset({1, 5, 7})  # I, SI, BI

_COVER = 0x400 | 0x800  # AV_DISPOSITION_ATTACHED_PIC and _TIMED_THUMBNAILS

_AGAIN = "; download or copy it again"
_REENCODE = "; re-encode it, for instance `ffmpeg -i IN -c:v libx264 OUT.mp4`"
_PROMISE, _SLACK_SECONDS = (
    0.95,
    0.5,
)  # less of the duration the container states: the end is missing
_RATE_TOLERANCE = 0.02


class UnusableError(Exception):
    """The file cannot be used, for the reason the message gives."""


@dataclass(kw_only=True)
class Scan:
    """What is known of a file, filled while it is read.

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
        b_frames: a picture of type B was decoded.
        times: time stamps of the decoded frames.
        keys: numbers of the decoded frames that need no other.
        reorders: the codec announces frames in another order than they are stored.
        has_index: the container says where key frames lie, and how long it is.
        films: moving pictures it holds, of which this is one.
        promised_seconds: of the film, 0 if it does not say.
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
    b_frames: bool = False
    reorders: bool = False
    has_index: bool = True
    films: int = 1
    promised_seconds: float = 0.0
    times: list[int | None] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    def see(self, frame: Any) -> None:
        """Note the next decoded frame.

        Raises:
            UnusableError: it is damaged, or of another size than the ones before.
        """
        number = len(self.times)
        if frame.is_corrupt:
            raise UnusableError(f"is damaged: frame {number}{_AGAIN}")
        if not number:
            self.look_at_first(frame)
        elif frame.width != self.width or frame.height != self.height:
            raise UnusableError(f"changes its picture size at frame {number}{_REENCODE}")
        kind = frame.pict_type
        self.b_frames = self.b_frames or kind == _B
        key = kind in _INTRA and bool(frame.key_frame)
        if key:
            self.keys.append(number)
        self.times.append(frame.pts)
        self.witnesses.offer(frame, key)

    def look_at_first(self, frame: Any) -> None:
        """Note what holds for all pictures."""
        self.width, self.height, self.pix_fmt = frame.width, frame.height, frame.format.name
        try:
            self.rotation = rotation_of(frame)
        except ValueError as error:
            raise UnusableError(f"{error}{_REENCODE}") from error

    def order(self) -> Order:
        """The order of the frames, with a doubt where decoding showed another."""
        order = self.packets.order()
        if not self.times:
            lacks = self.reorders and not order.b_frames
            lack = "its time stamps do not tell the order of its B-frames" if lacks else ""
            return replace(order, doubt=order.doubt or lack)
        doubt = order.doubt
        if len(self.times) != order.frames:
            doubt = doubt or f"its {order.frames} packets give {len(self.times)} frames"
        elif self.times != sorted(time for time in self.packets.times if time is not None):
            doubt = doubt or "its frames come in another order than its time stamps"
        if not set(order.keys.tolist()) <= set(self.keys):
            doubt = doubt or "what it marks as key frames needs frames before"
        return replace(order, doubt=doubt, frames=len(self.times))

    def duration_and_rate(self) -> tuple[float, float]:
        """Seconds, and frames a second: what the container says where it fits the time stamps."""
        frames = len(self.times) or len(self.packets.times) - len(self.packets.discarded)
        start = self.times[0] if self.times and self.times[0] is not None else self.packets.start
        seconds = (self.packets.end - start) * self.tick
        if seconds <= 0:
            return (frames / self.rate if self.rate else 0.0), self.rate
        if abs(self.rate * seconds - frames) <= max(1.0, _RATE_TOLERANCE * frames):
            return seconds, self.rate
        return seconds, frames / seconds

    def check_whole(self) -> None:
        """Compare what was read with what the container promises.

        Raises:
            UnusableError: something is missing or damaged.
        """
        packets = self.packets
        if packets.corrupt is not None:
            raise UnusableError(f"is damaged: packet {packets.corrupt} is not whole{_AGAIN}")
        if not packets.times:
            raise UnusableError(f"has no frames{_AGAIN}")
        needed = _PROMISE * self.promised_seconds - _SLACK_SECONDS
        ends = max(packets.end, packets.end - packets.start) * self.tick
        if 0 < ends < needed:
            raise UnusableError(
                f"is cut off: ends after {ends:.1f} of {self.promised_seconds:.1f} s{_AGAIN}"
            )


def decoded(path: Path) -> Scan:
    """Decode a file from end to end; damage that any part of FFmpeg notices is an error.

    Raises:
        UnusableError: the file is damaged, cut off, or of a kind that is not supported.
        av.FFmpegError: it cannot be opened or decoded.
    """
    with _complaints() as complaints, open_container(path) as container:
        stream = video_stream(container)
        scan = _begin(path, container, stream, checksums=True)
        stream.codec_context.options = {"err_detect": "explode"}
        for packet in container.demux(stream):
            if packet.size:
                scan.packets.note(packet)
                scan.witnesses.every_key = scan.witnesses.every_key or scan.packets.early
            for frame in packet.decode():
                scan.see(frame)
    scan.witnesses.finish()
    _raise_complaint(scan, complaints)
    scan.check_whole()
    if not scan.times:
        raise UnusableError(f"has no frames{_AGAIN}")
    return scan


def demuxed(path: Path) -> Scan:
    """Read the packets of a file; only where its pictures may be turned, decode the first.

    Raises:
        UnusableError: the file is cut off, or of a kind that is not supported.
        av.FFmpegError: it cannot be opened or read.
    """
    with _complaints() as complaints, open_for_packets(path) as container:
        stream = video_stream(container)
        scan = _begin(path, container, stream, checksums=False)
        scan.packets.is_key = key_test(scan.codec, stream.codec_context.extradata)
        for packet in container.demux(stream):
            if packet.size:
                scan.packets.note(packet)
    _raise_complaint(scan, complaints)
    scan.check_whole()
    if scan.layout.may_be_turned or not is_indexed(scan.container):
        with open_container(path) as container:
            for frame in container.decode(video_stream(container)):
                scan.look_at_first(frame)
                break
    return scan


def _begin(path: Path, container: Any, stream: Any, checksums: bool) -> Scan:
    from av.stream import Discard

    codec = stream.codec_context
    if codec is None or codec.codec.canonical_name not in CODECS:
        name = "of its video" if codec is None else codec.codec.canonical_name
        raise UnusableError(f"codec {name} is not supported{_REENCODE}")
    boxes = layout(path, container.format.name, checksums)
    if boxes.problem:
        raise UnusableError(f"{boxes.problem}{_AGAIN}")
    seconds = 0.0
    if len(container.streams) == 1 and container.duration is not None:
        seconds = container.duration / 1e6
    elif stream.duration is not None and "matroska" not in container.format.name:
        seconds = float(stream.duration * stream.time_base)
    name = container.format.name
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return Scan(
        container=name,
        codec=codec.codec.canonical_name,
        packets=Packets(codec=codec.codec.canonical_name),
        rate=float(stream.average_rate or 0),
        tick=float(stream.time_base),
        layout=boxes,
        witnesses=Witnesses(every_key=not is_indexed(name)),
        width=codec.width,
        height=codec.height,
        has_index=len(stream.index_entries) > 0 and container.duration is not None,
        reorders=bool(codec.has_b_frames),
        films=sum(not other.disposition & _COVER for other in container.streams.video),
        promised_seconds=seconds,
    )


@contextmanager
def _complaints() -> Iterator[Sequence[tuple[int, str, str]]]:
    """Collect (level, part, message) of what FFmpeg calls an error in this thread."""
    import av.logging

    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as complaints:
            yield complaints
    finally:
        av.logging.set_level(before)


def _raise_complaint(scan: Scan, complaints: Sequence[tuple[int, str, str]]) -> None:
    """A demuxer goes on behind damage and only logs it; what a decoder cannot mend is raised."""
    for _, part, message in complaints:
        if part == scan.container:
            raise UnusableError(f"is damaged ({message.strip()}){_AGAIN}")
