"""Reads frames with PyAV, found and checked by their time stamps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from recipes.contract import InputError
from recipes.data.decode import (
    Frames,
    Request,
    last_line,
    open_container,
    turned,
    video_stream,
)
from recipes.data.timeline import DoubtError, Timeline, from_index, look, packets_of


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Packets `first` to `last` to decode without a break, for the frames `start` to `stop` - 1."""

    first: int
    last: int
    start: int
    stop: int


_Source = Callable[[_Span], Iterable[Any]]  # gives the packets of a span; spans ascend


def read(request: Request) -> Frames:
    """Upright frames, (F, H, W, 3).

    Containers lie about frame counts, rates and key frames. Hence the time stamps of all packets
    tell which frame is which; decoding starts at the key frame before each clip; and every frame
    that comes out must carry the next time stamp of the list. On any doubt the file is decoded in
    order from its first frame.

    Raises:
        InputError: the file cannot be opened or read, is damaged, or has no such frame.
    """
    import av

    # PyAV raises IndexError where damage makes up another stream
    failures = (av.FFmpegError, OSError, ValueError, IndexError)
    try:
        if not request.sequential:
            try:
                return turned(_read_at(request), request.rotation)
            except (DoubtError, *failures):
                pass  # what is really wrong shows below
        return turned(_read_in_order(request), request.rotation)
    except failures as error:
        reason = last_line(error)
        raise InputError(f"{request.path}: cannot be decoded by PyAV ({reason})") from error


def read_again(container: Any, stream: Any, request: Request) -> Frames | None:
    """Frames as stored from a file that is open and was read before, or None on any doubt.

    Args:
        container: from `open_container`, at any place.
        stream: the film in it; its decoder may be at its end.
        request: what to read, of the same file.
    """
    import av

    try:
        container.seek(0)
        return _read_by_packets(container, stream, request)
    except (DoubtError, InputError, av.FFmpegError, OSError, ValueError, IndexError):
        return None


def _read_at(request: Request) -> Frames:
    with open_container(request.path) as container:
        stream = video_stream(container)
        table = from_index(container, stream)
        if table is None:
            return _read_by_packets(container, stream, request)
        try:
            source = partial(_seek, container, stream, table)
            return _decode(stream.codec_context, source, table, request)
        except DoubtError:
            pass  # the packets themselves may tell
    with open_container(request.path) as container:
        return _read_by_packets(container, video_stream(container), request)


def _seek(container: Any, stream: Any, table: Timeline, span: _Span) -> Iterator[Any]:
    """Jump to a span by the table in the header of a file without B-frames."""
    container.seek(int(table.times[span.first]), stream=stream)
    numbers = range(span.first, span.last + 1)
    for number, packet in zip(numbers, packets_of(container, stream), strict=False):
        if not packet.pts == packet.dts == table.times[number]:
            raise DoubtError("the file does not follow its table of packets")
        yield packet


def _read_by_packets(container: Any, stream: Any, request: Request) -> Frames:
    """Look at all packets, then decode those of each clip."""
    timeline, held = look(container, stream)
    if held:
        source: _Source = lambda span: held[span.first : span.last + 1]  # noqa: E731
        return _decode(stream.codec_context, source, timeline, request)
    with open_container(request.path) as again:
        stream = video_stream(again)
        source = partial(_skip, enumerate(packets_of(again, stream)))
        return _decode(stream.codec_context, source, timeline, request)


def _skip(numbered: Iterator[tuple[int, Any]], span: _Span) -> Iterator[Any]:
    for number, packet in numbered:
        if number >= span.first:
            yield packet
        if number == span.last:
            return


def _spans(timeline: Timeline, request: Request) -> list[_Span]:
    """One run of packets for each clip; frames far apart need not be decoded all the way."""
    _check_count(request, len(timeline.times))
    spans: list[_Span] = []
    for number in request.numbers.tolist():
        key = timeline.start_of(number)
        first = int(timeline.keys[key])
        start = int(np.searchsorted(timeline.times, timeline.key_times[key]))
        if spans and first <= spans[-1].last:
            joined = spans.pop()
            first, start = joined.first, joined.start
        last = int(timeline.packets[start : number + 1].max())
        spans.append(_Span(first=first, last=last, start=start, stop=number + 1))
    return spans


def _check_count(request: Request, count: int) -> None:
    last = request.numbers[-1]
    if last >= count:
        raise InputError(f"{request.path}: has {count} frames, frame {last} was asked for")


def _decode(codec: Any, source: _Source, timeline: Timeline, request: Request) -> Frames:
    """Decode every span and take the wanted frames.

    Raises:
        DoubtError: other frames came out than the time stamps of the packets announce.
    """
    kept = _Kept(request)
    for span in _spans(timeline, request):
        frames = (
            frame
            for frame in _decode_span(codec, source(span))
            # those shown before the key frame lack the frames they were made from
            if frame.pts is None or frame.pts >= timeline.times[span.start]
        )
        number = span.start
        for frame in islice(frames, span.stop - span.start):
            if frame.is_corrupt or frame.pts != timeline.times[number]:
                raise DoubtError("a frame is damaged, missing or out of order")
            if number == span.start and span.first > 0 and not _is_key(frame):
                raise DoubtError("a packet said to be a key frame is none")
            kept.offer(number, frame)
            number += 1
        if number != span.stop:
            raise DoubtError("a frame is missing")
    return kept.frames


def _decode_span(codec: Any, packets: Iterable[Any]) -> Iterator[Any]:
    codec.flush_buffers()
    for packet in packets:
        yield from codec.decode(packet)
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
        scaled = self._scaler.reformat(
            frame, width, height, "rgb24", interpolation="BILINEAR", threads=1
        )
        self.frames[place] = scaled.to_ndarray()


def _read_in_order(request: Request) -> Frames:
    """Decode and count from the first frame."""
    kept, number = _Kept(request), -1
    with open_container(request.path) as container:
        frames = container.decode(video_stream(container))
        for number, frame in enumerate(islice(frames, int(request.numbers[-1]) + 1)):
            if frame.is_corrupt:
                raise InputError(f"{request.path}: frame {number} is damaged")
            kept.offer(number, frame)
    _check_count(request, number + 1)
    return kept.frames
