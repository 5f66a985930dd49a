"""What a container says of its own wholeness and layout, where FFmpeg reads over it in silence."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_EBML_SEGMENT, _EBML_CLUSTER, _EBML_TRACKS = 0x18538067, 0x1F43B675, 0x1654AE6B
_EBML_PROJECTION = b"\x76\x70"  # of a Matroska track: how its pictures lie on a sphere, or turned
_UPRIGHT = bytes.fromhex("00010000 00000000 00000000 00000000 00010000")  # of a tkhd matrix
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_TS_PACKETS = ((188, 0), (192, 4), (204, 0))  # bytes, and where in them the sync byte stands
_SYNC = 0x47
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the boxes of a file say.

    Attributes:
        problem: why the file is not whole, or "".
        edit_list: the film track plays its frames in parts, with pauses, or at another speed.
        may_be_turned: a picture of it may carry a rotation.
        all_keys: it names no key frames, so every frame counts as one (MP4).
    """

    problem: str = ""
    edit_list: bool = False
    may_be_turned: bool = False
    all_keys: bool = False


def layout(path: Path, container: str, checksums: bool) -> Layout:
    """Walk over the outermost elements of a file; reads little unless `checksums`.

    FFmpeg plays a file up to where it ends, or goes on after a gap, and says so to nobody: the
    sizes and checksums that the container itself carries tell.

    Args:
        path: an existing file.
        container: FFmpeg's name of the format, such as `mov,mp4,m4a,3gp,3g2,mj2`.
        checksums: also check what has one (the clusters of a Matroska file).

    Raises:
        OSError: it cannot be read.
    """
    kinds = container.split(",")
    with path.open("rb", buffering=0) as opened:
        file = opened.fileno()
        size = os.fstat(file).st_size
        if "mov" in kinds:
            return _mov(file, size)
        if "matroska" in kinds:
            return _matroska(file, size, checksums)
        for kind, check in _CHECKS.items():
            if kind in kinds:
                return Layout(problem=check(file, size))
    return Layout()


def _cut(size: int, needed: int) -> str:
    return f"is cut off: it has {size} of at least {needed} bytes"


def _read(file: int, place: int, count: int) -> bytes:
    return os.pread(file, count, place)


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


# MP4, MOV (ISO 14496-12): boxes of a size, a name and content, in each other.


def _boxes(file: int, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start of the content and end (beyond `end` where cut off) of each box in a range."""
    place = start
    while place + 8 <= end:
        head = _read(file, place, 16)
        size, name, content = _big(head[:4]), head[4:8], place + 8
        if size == 1:
            size, content = _big(head[8:16]), place + 16
        if size == 0:
            size = end - place
        if size < content - place:
            return
        yield name, content, place + size
        place += size


def _mov(file: int, size: int) -> Layout:
    problem, edit_list, turned, all_keys, last = "", False, False, False, b""
    for name, content, end in _boxes(file, 0, size):
        if end > size:
            problem = _cut(size, end)
        elif name == b"moov":
            for track, start, stop in _boxes(file, content, end):
                if track == b"trak" and _is_film(file, start, stop):
                    edit_list = edit_list or _is_edited(file, start, stop)
                    turned = turned or _is_turned(file, start, stop)
                    keys = _find(file, start, stop, b"mdia", b"minf", b"stbl", b"stss")
                    all_keys = all_keys or keys is None
        all_keys = all_keys and name != b"moof"  # fragments have lists of their own
        last = name
    if last == b"moof":
        problem = "is cut off behind the header of its last fragment"
    return Layout(problem=problem, edit_list=edit_list, may_be_turned=turned, all_keys=all_keys)


def _find(file: int, start: int, end: int, *names: bytes) -> tuple[int, int] | None:
    """Where the content of a box lies, by its path of names; None if there is none."""
    for name in names:
        inside = [(content, stop) for box, content, stop in _boxes(file, start, end) if box == name]
        if not inside:
            return None
        start, end = inside[0]
    return start, end


def _is_film(file: int, start: int, end: int) -> bool:
    found = _find(file, start, end, b"mdia", b"hdlr")
    return found is not None and _read(file, found[0] + 8, 4) == b"vide"


def _is_edited(file: int, start: int, end: int) -> bool:
    """Whether an edit list does more than to say where the first frame lies."""
    found = _find(file, start, end, b"edts", b"elst")
    if found is None:
        return False
    data = _read(file, found[0], found[1] - found[0])
    number = 8 if data[:1] == b"\x01" else 4
    entries = [
        data[place : place + 2 * number + 4]
        for place in range(8, 8 + _big(data[4:8]) * (2 * number + 4), 2 * number + 4)
        if place < len(data)
    ]
    plain = [entry for entry in entries if entry[number : 2 * number] != b"\xff" * number]
    return len(plain) != 1 or entries[-1] != plain[0] or plain[0][-4:] != b"\x00\x01\x00\x00"


def _is_turned(file: int, start: int, end: int) -> bool:
    found = _find(file, start, end, b"tkhd")
    if found is None:
        return False
    place = found[0] + (52 if _read(file, found[0], 1) == b"\x01" else 40)
    return _read(file, place, len(_UPRIGHT)) != _UPRIGHT


# Matroska, WebM (RFC 8794, RFC 9559): elements of a name, a size and content.


def _vint(data: bytes, marked: bool) -> tuple[int, int]:
    """A number of variable length and its bytes; (0, 0) for none. A name keeps its marker bit."""
    if not data or not data[0]:
        return 0, 0
    length = 9 - data[0].bit_length()
    value = _big(data[:length])
    return (value if marked else value & ((1 << 7 * length) - 1)), length


def _elements(file: int, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Name, start of the content and end of each element; no end where the size is not known."""
    place = start
    while place < end:
        head = _read(file, place, 12)
        name, name_bytes = _vint(head, marked=True)
        size, size_bytes = _vint(head[name_bytes:], marked=False)
        if not name_bytes or not size_bytes:
            return
        content = place + name_bytes + size_bytes
        known = size != (1 << 7 * size_bytes) - 1
        yield name, content, content + size if known else None
        if not known:
            return
        place = content + size


def _matroska(file: int, size: int, checksums: bool) -> Layout:
    turned = False
    for name, content, end in _elements(file, 0, size):
        if end is not None and end > size:
            return Layout(problem=_cut(size, end))
        if name != _EBML_SEGMENT:
            continue
        for child, start, stop in _elements(file, content, size):
            if stop is not None and stop > size:
                return Layout(problem=_cut(size, stop), may_be_turned=turned)
            if child == _EBML_TRACKS and stop is not None:
                turned = _EBML_PROJECTION in _read(file, start, stop - start)
            if child == _EBML_CLUSTER and stop is not None and checksums:
                problem = _wrong_checksum(file, start, stop)
                if problem:
                    return Layout(problem=problem, may_be_turned=turned)
    return Layout(may_be_turned=turned)


def _wrong_checksum(file: int, start: int, end: int) -> str:
    head = _read(file, start, 6)
    if head[:2] != b"\xbf\x84":  # a CRC-32 element, always the first where there is one
        return ""
    place, found = start + 6, 0
    while place < end and (data := _read(file, place, min(end - place, _CHUNK))):
        found, place = zlib.crc32(data, found), place + len(data)
    return "" if found == _little(head[2:]) else f"is damaged behind byte {start} (checksum)"


# The others: one check each.


def _avi(file: int, size: int) -> str:
    """Chunks of a name, a size and content in one or more `RIFF`; a missing index is no damage."""
    place = 0
    while (head := _read(file, place, 8))[:4] == b"RIFF":
        end, inside = place + 8 + _little(head[4:]), place + 12
        while inside + 8 <= min(end, size):
            length = _little(_read(file, inside + 4, 4))
            if inside + 8 + length > size:
                return _cut(size, inside + 8 + length)
            inside += 8 + length + length % 2
        place = end + end % 2
    return ""


def _mpegts(file: int, size: int) -> str:
    head = _read(file, 0, 3 * 204)
    for length, sync in _TS_PACKETS:
        if all(
            head[place : place + 1] == bytes([_SYNC]) for place in range(sync, 3 * length, length)
        ):
            left = size % length
            return "is cut off: its last packet is not whole" if left else ""
    return ""


def _flv(file: int, size: int) -> str:
    """Behind each tag stands its size, so behind the last one too."""
    length = _big(_read(file, size - 4, 4)) if size > 13 else 0
    whole = 11 <= length <= size - 13 and _read(file, size - 4 - length, 1) in b"\x08\x09\x12"
    return "" if whole else "is cut off: it does not end with a whole tag"


def _asf(file: int, size: int) -> str:
    head = _read(file, 0, 1 << 16)
    place = head.find(_ASF_FILE)
    if not head.startswith(_ASF_HEADER) or place < 0:
        return ""
    needed, live = _little(head[place + 40 : place + 48]), head[place + 88] & 1
    return _cut(size, needed) if needed > size and not live else ""


def _ogg(file: int, size: int) -> str:
    """Pages are numbered for each stream, and the last one of a stream says so."""
    place, numbers, open_streams = 0, dict[bytes, int](), set[bytes]()
    while place < size:
        head = _read(file, place, 27 + 255)
        if head[:4] != b"OggS" or len(head) < 27 + head[26]:
            return f"is damaged or cut off at byte {place}"
        stream, number = head[14:18], _little(head[18:22])
        if number != numbers.get(stream, number - 1) + 1:
            return f"has lost data before byte {place}"
        numbers[stream] = number
        (open_streams.discard if head[5] & 4 else open_streams.add)(stream)
        place += 27 + head[26] + sum(head[27 : 27 + head[26]])
    if place > size:
        return _cut(size, place)
    return "is cut off: it does not say that it ends" if open_streams else ""


_CHECKS = {"avi": _avi, "mpegts": _mpegts, "flv": _flv, "asf": _asf, "ogg": _ogg}
