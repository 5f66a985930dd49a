"""Looks into packets, where what the container says of them cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_SHORTEST_VOP = 20  # bytes; a smaller MPEG-4 picture may say "not coded" and give no frame
_VOP = b"\x00\x00\x01\xb6"  # start of an MPEG-4 picture (ISO 14496-2)

# Zeros in a row that no sound packet has inside. H.264 and HEVC put another byte behind two of them
# (7.4.1). The arithmetic coders of the others may give some for pictures without detail (41 were
# seen in a VP8 file); what disks and downloads leave out are sectors of 512.
_HOLES = {"h264": 32, "hevc": 32, "vp8": 256, "vp9": 256, "av1": 256}


def shows_nothing(packet: Any) -> bool:
    """Whether a VP8 packet only updates a reference: show_frame, bit 4 of RFC 6386 section 9.1."""
    return not memoryview(packet)[0] >> 4 & 1


def pictures_in(packet: Any) -> int:
    """Pictures an MPEG-4 packet gives: those made for AVI may hold two, the next one then none."""
    return bytes(packet).count(_VOP) if packet.size >= _SHORTEST_VOP else 0


def hole_test(codec: str) -> Callable[[Any], bool] | None:
    """A test of whether a part of a packet was never written; None where decoders see that.

    Zeros at the end of a packet, or up to the next start code, may be padding.
    """
    if codec not in _HOLES:
        return None
    zeros = bytes(_HOLES[codec])

    def has_hole(packet: Any) -> bool:
        data = bytes(packet)
        place = data.find(zeros)
        if place < 0:
            return False
        behind = data[place:].lstrip(b"\0")
        return not place or (len(behind) > 0 and not behind.startswith(b"\1"))

    return has_hole


def key_test(codec: str, extradata: bytes | None) -> Callable[[Any], bool]:
    """A test of whether decoding starts afresh at a packet the container calls a key frame.

    Containers also mark frames at which a picture only begins to refresh, or which later frames
    reach beyond (open groups of pictures). Codecs that are not known here are believed.
    """
    if codec == "mpeg4":
        return _starts_with_i_vop
    if codec in ("h264", "hevc") and extradata and extradata[0] == 1:
        size = (extradata[4 if codec == "h264" else 21] & 3) + 1
        return lambda packet: _starts_at_idr(memoryview(packet), size, codec == "hevc")
    if codec in ("h264", "hevc"):
        return lambda packet: False
    return lambda packet: True


def _starts_with_i_vop(packet: Any) -> bool:
    data = bytes(packet)
    start = data.find(_VOP) + len(_VOP)
    return start >= len(_VOP) and start < len(data) and data[start] >> 6 == 0


def _starts_at_idr(data: memoryview, size: int, is_hevc: bool) -> bool:
    """Whether the first slice is of an IDR picture (HEVC: or of one where a link is broken).

    NAL units lie behind each other, each behind its length of `size` bytes (ISO 14496-15); types
    are in table 7-1 of H.264 and H.265.
    """
    place = 0
    while place + size < len(data):
        length, kind = int.from_bytes(data[place : place + size], "big"), data[place + size]
        if is_hevc and kind >> 1 & 63 < 32:
            return 16 <= (kind >> 1 & 63) <= 20
        if not is_hevc and 1 <= kind & 31 <= 5:
            return kind & 31 == 5
        place += size + length
    return False
