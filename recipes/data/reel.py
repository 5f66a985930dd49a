"""Reads a video once from end to end, decoding it or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from recipes.data.bitstream import hole_test, key_test
from recipes.data.container import layout
from recipes.data.decode import open_container, video_stream
from recipes.data.demux import Packets, is_indexed, open_for_packets
from recipes.data.scan import AGAIN, REENCODE, Scan, UnusableError
from recipes.data.witness import Witnesses

# What a codec may be; the list keeps rarely tested decoders out of reach of hostile files.
CODECS = frozenset(
    {"h264", "hevc", "mpeg4", "vp8", "vp9", "av1", "mjpeg", "mpeg1video", "mpeg2video", "theora"}
    | {"msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "h263p", "wmv1", "wmv2", "wmv3", "vc1"}
    | {"flv1"}
)
_INTRA = frozenset({1, 5, 7})  # I, SI, BI of av.video.frame.PictureType
_COVER = 0x400 | 0x800  # AV_DISPOSITION_ATTACHED_PIC and _TIMED_THUMBNAILS
_BATCH = 64  # packets


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
    read, frame, count, has_hole = container.demux(stream), None, 0, hole_test(scan.codec)
    while batch := list(islice(read, _BATCH)):
        packets.note(batch)
        if has_hole is not None:
            for number, packet in enumerate(batch, count):
                if has_hole(packet):
                    raise UnusableError(f"is damaged: packet {number} has a hole{AGAIN}")
        count += len(batch)
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
                    scan.check_turn(len(frames) - 1, frame)
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
        raise UnusableError(f"codec {name} is not supported{REENCODE}")
    boxes = layout(path, container.format.name, checksums=decodes)
    if boxes.problem:
        raise UnusableError(f"{boxes.problem}{AGAIN}")
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
            raise UnusableError(f"is damaged ({message.strip()}){AGAIN}")
