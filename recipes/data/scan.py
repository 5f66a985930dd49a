"""Reads a video once from end to end, decoding it or not, and notes what there is to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
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
Row = tuple[int | None, bool, int, bool, int, int]

_INTRA = frozenset({1, 5, 7})  # I, SI, BI

_WITH_KEYS = frozenset({"mov", "matroska", "avi"})  # containers whose index marks key frames
_COVER = 0x400 | 0x800  # AV_DISPOSITION_ATTACHED_PIC and _TIMED_THUMBNAILS

_AGAIN = "; download or copy it again"
_REENCODE = "; re-encode it, for instance `ffmpeg -i IN -c:v libx264 OUT.mp4`"
_PROMISE, _SLACK_SECONDS = 0.95, 0.5  # ending earlier than the container states: cut off
_RATE_TOLERANCE = 0.02
_BATCH = 64  # packets


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
            raise UnusableError(f"{error}{_REENCODE}") from error

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
            raise UnusableError(f"is damaged: packet {order.broken} is not whole{_AGAIN}")
        if not order.frames:
            raise UnusableError(f"has no frames{_AGAIN}")
        seconds = max(order.end, order.end - order.start) * self.tick
        if 0 < seconds < _PROMISE * self.promised_seconds - _SLACK_SECONDS:
            promised = f"{self.promised_seconds:.1f} s"
            raise UnusableError(f"is cut off: ends after {seconds:.1f} of {promised}{_AGAIN}")

    def check_frames(self) -> None:
        """Look for damage in what was decoded.

        Raises:
            UnusableError: there is some, or nothing was decoded.
        """
        if not self.frames:
            raise UnusableError(f"has no frames{_AGAIN}")
        for number, (*_, damaged, height, width) in enumerate(self.frames):
            if damaged:
                raise UnusableError(f"is damaged: frame {number}{_AGAIN}")
            if (height, width) != (self.height, self.width):
                raise UnusableError(f"changes its picture size at frame {number}{_REENCODE}")


@dataclass(frozen=True, kw_only=True)
class Reel:
    """A file that was decoded in order and is still open.

    Attributes:
        path: the file.
        scan: what was found.
        container: from PyAV, read to its end.
        stream: the film in it.
        smooth: all frames were smoothed; else those no other frame is made from were not.
    """

    path: Path
    scan: Scan
    container: Any
    stream: Any
    smooth: bool

    @cached_property
    def smoothed(self) -> Witnesses:
        """Frames kept for comparison as a player shows them."""
        if self.smooth:
            return self.scan.witnesses
        with _decoded(self.path, open_container, smooth=True) as again:
            return again.scan.witnesses


@contextmanager
def decoded(path: Path) -> Iterator[Reel]:
    """Decode a file from end to end; damage that any part of FFmpeg notices is an error.

    The first try saves FFmpeg's own look at the pictures (1 % of the time for long videos, 10 % for
    short ones), from which it learns how far they are reordered where the stream does not say it.
    Where frames come out in the order of their time stamps, that made no difference; else the file
    is decoded again with it. Nor are the edges of blocks smoothed in frames no other is made from,
    which changes a few of their pixels a little and is 5 % of the time.

    Raises:
        UnusableError: the file is damaged, cut off, or of a kind that is not supported.
        av.FFmpegError: it cannot be opened or decoded.
    """
    with ExitStack() as stack:
        reel = stack.enter_context(_decoded(path, open_for_packets, smooth=False))
        if reel.scan.order.doubt:
            stack.close()
            reel = stack.enter_context(_decoded(path, open_container, smooth=True))
        yield reel


@contextmanager
def _decoded(path: Path, open_file: Callable[[Path], Any], smooth: bool) -> Iterator[Reel]:
    with ExitStack() as stack:
        with _complaints() as complaints:
            container = stack.enter_context(open_file(path))
            stream = video_stream(container)
            scan = _begin(path, container, stream, decodes=True)
            smooth = smooth or not is_indexed(scan.container)
            if smooth:
                scan.witnesses.look_closely()
            options = {} if smooth else {"skip_loop_filter": "noref"}
            stream.codec_context.options = {"err_detect": "explode", **options}
            _decode(container, stream, scan)
            scan.reorders = stream.codec_context.has_b_frames
            scan.note_index(stream.index_entries)
        _raise_complaint(scan, complaints)
        scan.check_whole()
        scan.check_frames()
        yield Reel(path=path, scan=scan, container=container, stream=stream, smooth=smooth)


def _decode(container: Any, stream: Any, scan: Scan) -> None:
    """The loop all the time is spent in: a microsecond here is 1 % of decoding small pictures.

    Packets are read some at a time, because going to and fro between Python and the decoder for
    each costs both of them the processor's cache.
    """
    packets, frames, witnesses = scan.packets, scan.frames, scan.witnesses
    read, frame = container.demux(stream), None
    while batch := list(islice(read, _BATCH)):
        packets.note(batch)
        if packets.early or packets.hidden:
            witnesses.look_closely()
        for packet in batch:
            for frame in packet.decode():
                if not frames:
                    scan.look_at_first(frame)
                kind = frame.pict_type
                is_key = frame.key_frame and kind in _INTRA
                row = frame.pts, is_key, kind, frame.is_corrupt, frame.height, frame.width
                frames.append(row)
                if is_key or witnesses.closely or len(frames) <= witnesses.until:
                    witnesses.offer(len(frames) - 1, frame, is_key)
    if frame is not None:
        witnesses.finish(len(frames) - 1, frame)


def demuxed(path: Path) -> Scan:
    """Read the packets of a file; decode the first picture only where it may be turned.

    Where time stamps show no B-frames, FFmpeg's own look at the pictures tells whether there are.

    Raises:
        UnusableError: the file is cut off, or of a kind that is not supported.
        av.FFmpegError: it cannot be opened or read.
    """
    with _complaints() as complaints, open_for_packets(path, parse=False) as container:
        stream = video_stream(container)
        scan = _begin(path, container, stream, decodes=False)
        read = container.demux(stream)
        while batch := list(islice(read, _BATCH)):
            scan.packets.note(batch)
        scan.note_index(stream.index_entries)
    _raise_complaint(scan, complaints)
    scan.check_whole()
    if scan.layout.may_be_turned or not is_indexed(scan.container) or not scan.order.b_frames:
        with open_container(path) as container:
            stream = video_stream(container)
            scan.reorders = stream.codec_context.has_b_frames
            if scan.layout.may_be_turned or not is_indexed(scan.container):
                scan.look_at_first(next(container.decode(stream)))
    return scan


def _begin(path: Path, container: Any, stream: Any, decodes: bool) -> Scan:
    from av.stream import Discard

    codec = stream.codec_context
    if codec is None or codec.codec.canonical_name not in CODECS:
        name = "of its video" if codec is None else codec.codec.canonical_name
        raise UnusableError(f"codec {name} is not supported{_REENCODE}")
    boxes = layout(path, container.format.name, checksums=decodes)
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
        packets=Packets(
            codec=codec.codec.canonical_name,
            stores_decoding="matroska" not in name,
            starts_afresh=key_test(codec.codec.canonical_name, codec.extradata),
            inside=not decodes,
        ),
        rate=float(stream.average_rate or 0),
        tick=float(stream.time_base),
        layout=boxes,
        witnesses=Witnesses(),
        width=codec.width,
        height=codec.height,
        has_duration=container.duration is not None,
        films=sum(not other.disposition & _COVER for other in container.streams.video),
        promised_seconds=seconds,
    )


@contextmanager
def _complaints() -> Iterator[Sequence[tuple[int, str, str]]]:
    """Collect (level, part, message) of what FFmpeg calls an error in this thread."""
    import av.logging

    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # the file before may have ended with the same words
    try:
        with av.logging.Capture() as complaints:
            yield complaints
    finally:
        av.logging.set_skip_repeated(skips)
        av.logging.set_level(level)


def _raise_complaint(scan: Scan, complaints: Sequence[tuple[int, str, str]]) -> None:
    """A demuxer goes on behind damage and only logs it; what a decoder cannot mend is raised."""
    for _, part, message in complaints:
        if part == scan.container:
            raise UnusableError(f"is damaged ({message.strip()}){_AGAIN}")
