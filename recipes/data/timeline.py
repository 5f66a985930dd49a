"""Which packet of a file holds which frame, from the packets' time stamps alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.data.decode import Numbers

_DEEPEST_REORDERING = 16  # places a frame may move: the picture buffer of H.264 and HEVC
_HELD_BYTES = 64 << 20  # packets kept in memory after the look at a file; a larger file is reread
_SHORTEST_VOP = 20  # bytes; a smaller MPEG-4 picture may say "not coded" and give no frame
_VOP = b"\x00\x00\x01\xb6"  # start of an MPEG-4 picture

_Row = tuple[int | None, int | None, bool, bool]  # presentation and decoding time, key frame, shown


class DoubtError(Exception):
    """Time stamps do not tell which frame is which: only counting from the first one does."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Which packet holds which frame.

    Attributes:
        times: (T,) time stamp of each frame, ascending: frame i is shown at times[i].
        packets: (T,) number of the packet of each frame, in stored order.
        keys: (K,) numbers of the packets with a key frame, ascending; the first is 0.
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
            raise DoubtError("a frame is shown before the first key frame")
        return int(np.flatnonzero(usable)[-1])


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream in stored order, without the empty one at the end."""
    return (packet for packet in container.demux(stream) if packet.size)


def look(container: Any, stream: Any) -> tuple[Timeline, list[Any]]:
    """Read all packets of a file once, which costs 5 us a packet.

    Returns:
        The timeline, and the packets; none of them if they are too large to be kept.

    Raises:
        DoubtError: time stamps are missing, not unique, or do not belong to one frame each.
        av.FFmpegError: the file cannot be read.
    """
    inspect = _INSPECTIONS.get(stream.codec_context.name, _shown)
    rows: list[_Row] = []
    held, held_bytes = [], 0
    for packet in packets_of(container, stream):
        is_key = packet.is_keyframe
        if is_key and rows and packet.has_sidedata("new_extradata"):
            raise DoubtError("the parameters of the codec change on the way")
        rows.append((packet.pts, packet.dts, is_key, inspect(packet)))
        held_bytes += packet.size
        held.append(packet)
        if held_bytes > _HELD_BYTES:
            held.clear()
    if stream.codec_context.has_b_frames and all(row[0] == row[1] for row in rows):
        raise DoubtError("frames are reordered, and their time stamps are not")
    return _timeline(rows), held if held_bytes <= _HELD_BYTES else []


def _timeline(rows: list[_Row]) -> Timeline:
    """Sort packets by time."""
    presented = [row[0] for row in rows if row[0] is not None]
    decoded = [row[1] for row in rows if row[1] is not None]
    if len(presented) < len(rows):
        raise DoubtError("a packet has no time stamp")
    if np.any(np.diff(decoded) <= 0):
        raise DoubtError("decoding times do not ascend")
    times = np.asarray(presented, dtype=np.int64)
    order = np.argsort(times)
    if np.any(np.diff(times[order]) == 0):
        raise DoubtError("two packets have one time stamp")
    if np.any(np.abs(order - np.arange(len(order))) > _DEEPEST_REORDERING):
        raise DoubtError("time stamps jump back")
    keys = np.flatnonzero([row[2] for row in rows])
    if not len(keys) or keys[0] > 0:
        raise DoubtError("the first packet is no key frame")
    packets = order[np.asarray([row[3] for row in rows], dtype=bool)[order]]
    return Timeline(times=times[packets], packets=packets, keys=keys, key_times=times[keys])


def _shown(packet: Any) -> bool:
    """Whether the decoder gives out the frame: an edit list may mark it as discarded."""
    return not packet.is_discard


def _shown_vp8(packet: Any) -> bool:
    """VP8 has packets that only update a reference: show_frame, bit 4 in RFC 6386 section 9.1."""
    return bool(memoryview(packet)[0] >> 4 & 1) and not packet.is_discard


def _shown_mpeg4(packet: Any) -> bool:
    """MPEG-4 made for AVI packs two pictures into one packet and an empty one into the next."""
    if packet.size < _SHORTEST_VOP or bytes(packet).count(_VOP) != 1:
        raise DoubtError("a packet does not hold exactly one picture")
    return not packet.is_discard


_INSPECTIONS: dict[str, Callable[[Any], bool]] = {
    "vp8": _shown_vp8,
    "libvpx": _shown_vp8,
    "mpeg4": _shown_mpeg4,
}


def from_index(container: Any, stream: Any) -> Timeline | None:
    """The timeline of an MP4 or MOV file without reordering, from the table in its header.

    The table has decoding times only, hence without B-frames alone; no packet is read, which makes
    a difference for the small files of the preparation stage. None for any other file.

    Raises:
        DoubtError: its time stamps are not unique, or it does not begin with a key frame.
    """
    codec = stream.codec_context
    is_mp4 = "mov" in container.format.name.split(",")
    if not is_mp4 or codec.name != "h264" or codec.has_b_frames:
        return None
    rows = [
        (entry.timestamp, entry.is_keyframe, entry.is_discard) for entry in stream.index_entries
    ]
    if len(rows) != stream.frames or any(row[2] for row in rows):
        return None  # an edit list leaves frames out, or the file comes in fragments
    return _timeline([(time, time, is_key, True) for time, is_key, _ in rows])
