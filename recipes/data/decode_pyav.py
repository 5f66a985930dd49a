"""Reads frames with PyAV, found by their time stamps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recipes.contract import InputError
from recipes.data.decode import (
    Frames,
    Numbers,
    Request,
    last_line,
    open_container,
    turned,
    video_stream,
)

_DEEPEST_REORDERING = 16  # places a frame may move: the picture buffer of H.264 and HEVC
_HELD_BYTES = 64 << 20  # packets kept between the two looks at a file; a larger one is read twice
_SHORTEST_VOP = 20  # bytes; a smaller MPEG-4 picture may say "not coded" and give no frame
_VOP = b"\x00\x00\x01\xb6"  # start of an MPEG-4 picture; two in a packet are a packed B-frame


class DoubtError(Exception):
    """Time stamps do not tell which frame is which: only counting from the first one does."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Which packet holds which frame.

    Attributes:
        times: (T,) time stamp of each frame, ascending: frame i is shown at times[i].
        packets: (T,) number of the packet of each frame, in stored order.
        keys: (K,) numbers of the packets with a key frame, ascending.
        key_times: (K,) their time stamps.
    """

    times: Numbers
    packets: Numbers
    keys: Numbers
    key_times: Numbers

    def start_of(self, frame: int) -> int:
        """Which of the K key frames to decode from for a frame.

        The last one both stored and shown no later: a frame stored after a key frame but shown
        before it (an open group of pictures) needs the key frame before.

        Raises:
            DoubtError: there is none.
        """
        usable = (self.keys <= self.packets[frame]) & (self.key_times <= self.times[frame])
        if not usable.any():
            raise DoubtError("a frame comes before the first key frame")
        return int(np.flatnonzero(usable)[-1])


@dataclass(kw_only=True)
class _Packets:
    """What is noted of each packet while a file is read once."""

    times: list[int] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    last_decoding_time: int | None = None

    def note(self, packet: Any, codec: str) -> None:
        """Add the next packet of the file, or raise DoubtError."""
        if packet.pts is None:
            raise DoubtError("a packet has no time stamp")
        if packet.dts is not None:
            if self.last_decoding_time is not None and packet.dts <= self.last_decoding_time:
                raise DoubtError("decoding times do not ascend")
            self.last_decoding_time = packet.dts
        if self.times and packet.has_sidedata("new_extradata"):
            raise DoubtError("the codec's parameters change on the way")
        if codec == "mpeg4":
            _check_one_picture(packet)
        self.times.append(packet.pts)
        self.keys.append(packet.is_keyframe)
        self.shown.append(not packet.is_discard and not (codec == "vp8" and _hidden(packet)))

    def timeline(self) -> Timeline:
        """Sort what was noted, or raise DoubtError."""
        times = np.asarray(self.times, dtype=np.int64)
        order = np.argsort(times, kind="stable")
        if np.any(np.diff(times[order]) == 0):
            raise DoubtError("two packets have one time stamp")
        if np.any(np.abs(order - np.arange(len(order))) > _DEEPEST_REORDERING):
            raise DoubtError("time stamps jump back")
        packets = order[np.asarray(self.shown, dtype=bool)[order]]
        keys = np.flatnonzero(self.keys)
        return Timeline(times=times[packets], packets=packets, keys=keys, key_times=times[keys])


def _check_one_picture(packet: Any) -> None:
    """MPEG-4 made for AVI packs two pictures into one packet and an empty one into the next."""
    if packet.size < _SHORTEST_VOP or bytes(packet).count(_VOP) != 1:
        raise DoubtError("a packet does not hold exactly one picture")


def _hidden(packet: Any) -> bool:
    """Whether a VP8 packet only updates a reference: show_frame, bit 4 of RFC 6386 section 9.1."""
    return not memoryview(packet)[0] >> 4 & 1


def read(request: Request) -> Frames:
    """Upright frames, (F, H, W, 3).

    Raises:
        InputError: the file cannot be opened or read, is damaged, or has no such frame.
    """
    import av

    try:
        if not request.sequential:
            try:
                return turned(_read_at(request), request.rotation)
            except (DoubtError, av.FFmpegError):
                pass  # as the index did: decode in order, and let that speak of what is wrong
        return turned(_read_in_order(request), request.rotation)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise InputError(
            f"{request.path}: cannot be decoded by PyAV ({last_line(error)})"
        ) from error


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    return (packet for packet in container.demux(stream) if packet.size)


def _read_at(request: Request) -> Frames:
    """Look at all packets, then decode from the key frame before each clip."""
    with open_container(request.path) as container:
        stream = video_stream(container)
        timeline, held = _look(container, stream)
        _check_count(request, len(timeline.times))
        if held:
            return _decode_spans(stream, held, timeline, request)
    with open_container(request.path) as container:
        stream = video_stream(container)
        return _decode_spans(stream, _packets(container, stream), timeline, request)


def _look(container: Any, stream: Any) -> tuple[Timeline, list[Any]]:
    """The timeline, and the packets if they are not too many to keep."""
    noted, held, held_bytes = _Packets(), [], 0
    codec = stream.codec_context.name
    for packet in _packets(container, stream):
        noted.note(packet, codec)
        held_bytes += packet.size
        if held_bytes <= _HELD_BYTES:
            held.append(packet)
    return noted.timeline(), held if held_bytes <= _HELD_BYTES else []


def _check_count(request: Request, count: int) -> None:
    if request.numbers[-1] >= count:
        last = request.numbers[-1]
        raise InputError(f"{request.path}: has {count} frames, frame {last} was asked for")


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Packets to decode without a break: `first` to `last`, for frames `start` to `stop`."""

    first: int
    last: int
    start: int
    stop: int


def _spans(timeline: Timeline, numbers: Numbers) -> list[_Span]:
    """One run of packets for each clip, several for frames that lie far apart."""
    spans: list[_Span] = []
    for number in numbers.tolist():
        key = timeline.start_of(number)
        first = int(timeline.keys[key])
        start = int(np.searchsorted(timeline.times, timeline.key_times[key]))
        if spans and first <= spans[-1].last:
            first, start = spans[-1].first, spans[-1].start
            spans.pop()
        last = int(timeline.packets[start : number + 1].max())
        spans.append(_Span(first=first, last=last, start=start, stop=number + 1))
    return spans


def _decode_spans(
    stream: Any, packets: Iterable[Any], timeline: Timeline, request: Request
) -> Frames:
    """Decode every span and take the wanted frames, checked by their time stamps.

    Raises:
        DoubtError: frames did not come out as the packets announced.
    """
    numbered, kept = enumerate(packets), _Kept(request)
    for span in _spans(timeline, request.numbers):
        expected = span.start
        for frame in _decode_span(stream.codec_context, numbered, span):
            if frame.pts is not None and frame.pts < timeline.times[span.start]:
                continue  # shown before the key frame
            if frame.is_corrupt or frame.pts != timeline.times[expected]:
                raise DoubtError("a frame is damaged, missing or out of order")
            if expected == span.start and span.first > 0 and not _is_key(frame):
                raise DoubtError("a packet said to be a key frame is none")
            kept.offer(expected, frame)
            expected += 1
            if expected == span.stop:
                break
        if expected != span.stop:
            raise DoubtError("a frame is missing")
    return kept.frames


def _decode_span(codec: Any, numbered: Iterator[tuple[int, Any]], span: _Span) -> Iterator[Any]:
    codec.flush_buffers()
    for number, packet in numbered:
        if number >= span.first:
            yield from codec.decode(packet)
        if number == span.last:
            break
    yield from codec.decode(None)


def _is_key(frame: Any) -> bool:
    """Intra-coded, so that nothing before it was needed: containers mark other frames as well."""
    from av.video.frame import PictureType

    return bool(frame.key_frame) and frame.pict_type == PictureType.I


class _Kept:
    """Takes the wanted frames while they pass, scaled."""

    def __init__(self, request: Request) -> None:
        from av.video.reformatter import VideoReformatter

        self._places = {number: place for place, number in enumerate(request.numbers.tolist())}
        self._target = request.target.stored(request.rotation)
        self._scaler = VideoReformatter()
        self.frames: Frames = np.empty((0, 0, 0, 3), np.uint8)

    def offer(self, number: int, frame: Any) -> None:
        """Keep the frame if its number is wanted."""
        place = self._places.get(number)
        if place is None:
            return
        if not self.frames.size:
            size = self._target.size(frame.height, frame.width)
            self.frames = np.empty((len(self._places), *size, 3), np.uint8)
        height, width = self.frames.shape[1:3]
        scaled = self._scaler.reformat(frame, width, height, "rgb24", interpolation="BILINEAR")
        self.frames[place] = scaled.to_ndarray()


def _read_in_order(request: Request) -> Frames:
    kept, last = _Kept(request), int(request.numbers[-1])
    number = -1
    with open_container(request.path) as container:
        for number, frame in enumerate(container.decode(video_stream(container))):
            if frame.is_corrupt:
                raise InputError(f"{request.path}: frame {number} is damaged")
            kept.offer(number, frame)
            if number == last:
                return kept.frames
    _check_count(request, number + 1)
    return kept.frames
