"""What makes a video file unusual: changed packets, patched boxes and indexes, further streams."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from tests.recipes.corpus import HEIGHT, RATE, WIDTH, Edit, Packets, draw, encode

COUNT = 60

# Encoder and stream.

HIDDEN_FRAMES = {
    "auto-alt-ref": "1",
    "lag-in-frames": "16",
    "deadline": "good",
    "arnr-maxframes": "7",
}


def coarse(stream: Any) -> None:
    """Finer steps break the bars with the encoders of Microsoft's codecs."""
    stream.codec_context.qmin = 6


def widen(stream: Any) -> None:
    """Pixels that are wider than high."""
    stream.codec_context.sample_aspect_ratio = Fraction(4, 3)


def mirror(stream: Any) -> None:
    """A player shows the picture mirrored."""
    stream.set_display_rotation(0, hflip=True)


def tilt(stream: Any) -> None:
    """A player turns the picture by an angle that is no quarter."""
    stream.set_display_rotation(45)


# Packets, in decoding order.


def shift(ticks: int) -> Edit:
    """Move all time stamps."""

    def edit(packets: Packets) -> Packets:
        for packet in packets:
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
        return packets

    return edit


def jump(at: int, ticks: int) -> Edit:
    """Move the time stamps of all packets from the `at`-th on."""
    return lambda packets: packets[:at] + shift(ticks)(packets[at:])


def faster(rate: int) -> Edit:
    """Play at another rate; in a container that counts milliseconds stamps may fall together."""

    def edit(packets: Packets) -> Packets:
        for packet in packets:
            packet.time_base = Fraction(1, rate)
        return packets

    return edit


def flag_all_as_key(packets: Packets) -> Packets:
    """A container that says one may start anywhere, which is not true."""
    for packet in packets:
        packet.is_keyframe = True
    return packets


def flag_some_as_key(packets: Packets) -> Packets:
    """One false entry among the true ones."""
    packets[len(packets) // 2 + 3].is_keyframe = True
    return packets


def flag_first_as_key(packets: Packets) -> Packets:
    """A container that knows of one key frame only."""
    for packet in packets[1:]:
        packet.is_keyframe = False
    return packets


def flag_none_as_key(packets: Packets) -> Packets:
    """A container that knows of no key frame at all."""
    for packet in packets:
        packet.is_keyframe = False
    return packets


def drop_first_group(packets: Packets) -> Packets:
    """Cut at the second key frame; in an open group its leading frames miss their reference."""
    second = [place for place, packet in enumerate(packets) if packet.is_keyframe][1]
    return packets[second:]


def shown_as_stored(packets: Packets) -> Packets:
    """Presentation times that are the decoding times, as after a careless copy out of an AVI."""
    for packet in packets:
        packet.pts = packet.dts
    return packets


def repeat_by_nothing(packets: Packets) -> Packets:
    """MPEG-4 pictures that say "not coded" stand for a repeated frame; decoders give none."""
    chunks, keys = [], []
    for place, packet in enumerate(packets):
        chunks.append(bytes(packet))
        keys.append(packet.is_keyframe)
        if place % 7 == 3:
            chunks.append(_NOT_CODED)
            keys.append(False)
    return _packets(chunks, keys)


def drop(first: int) -> Edit:
    """A recording that starts in the middle: the first packets are missing."""
    return lambda packets: packets[first:]


def without(*places: int) -> Edit:
    """Lost packets that nothing refers to, or time stamps would not be the only trace."""
    return lambda packets: [p for place, p in enumerate(packets) if place not in places]


def same_time(at: int) -> Edit:
    """Two frames with the same presentation time."""

    def edit(packets: Packets) -> Packets:
        packets[at].pts = packets[at - 1].pts
        return packets

    return edit


def append(codec: str, height: int, width: int, **options: Any) -> Edit:
    """Go on with another coding of the next frames, of another size maybe."""

    def edit(packets: Packets) -> Packets:
        first = len(packets)
        more = encode(codec, draw(30, height, width, first=first), **options)
        return packets + shift(first - min(0, more[0].dts))(more)

    return edit


# A P VOP without content, ISO/IEC 14496-2: type 01, no second passed, marker, 5 bits of time 0 (a
# clock of 25), marker, "not coded", stuffing.
_NOT_CODED = b"\x00\x00\x01\xb6" + bytes([0b01010000, 0b01001111])


def pack_b_frames(packets: Packets) -> Packets:
    """DivX's packed bit stream: a P and the B behind it in one chunk, then a chunk of nothing.

    The decoder knows it by the `p` of the encoder's name in the user data.
    """
    mark = b"\x00\x00\x01\xb2DivX503b1393p\x00"
    first = bytes(packets[0])
    start = first.index(b"\x00\x00\x01\xb2")
    end = first.index(b"\x00\x00\x01", start + 4)
    chunks = [first[:start] + mark + first[end:]]
    keys = [True]
    for packet in packets[1:]:
        data = bytes(packet)
        is_b = data[data.index(b"\x00\x00\x01\xb6") + 4] >> 6 == 2
        if is_b:
            chunks[-1] += data
            chunks.append(_NOT_CODED)
            keys.append(False)
        else:
            chunks.append(data)
            keys.append(packet.is_keyframe)
    return _packets(chunks, keys)


def _packets(chunks: list[bytes], keys: list[bool]) -> Packets:
    packets: Packets = []
    for number, (chunk, key) in enumerate(zip(chunks, keys, strict=True)):
        packet: Any = av.Packet(chunk)
        packet.pts = packet.dts = number
        packet.time_base, packet.is_keyframe = Fraction(1, RATE), key
        packets.append(packet)
    return packets


# Finished files; the `moov` of an MP4 lies behind the data.


def edit_list(*entries: tuple[int, int, float]) -> Callable[[Path], None]:
    """Give the first track an edit list of (milliseconds, media time or -1, speed)."""
    body = struct.pack(">II", 0, len(entries)) + b"".join(
        struct.pack(">IiI", length, start, round(speed * 65536)) for length, start, speed in entries
    )
    elst = struct.pack(">I4s", 8 + len(body), b"elst") + body
    edts = struct.pack(">I4s", 8 + len(elst), b"edts") + elst

    def change(path: Path) -> None:
        data = path.read_bytes()
        moov = data.rindex(b"moov") - 4
        trak = data.index(b"trak", moov) - 4
        old = data.index(b"edts", trak) - 4
        removed = struct.unpack_from(">I", data, old)[0]
        changed = bytearray(data[:old] + edts + data[old + removed :])
        for box in (moov, trak):
            size = struct.unpack_from(">I", changed, box)[0]
            struct.pack_into(">I", changed, box, size + len(edts) - removed)
        path.write_bytes(changed)

    return change


def turn_in_header(*matrix: int) -> Callable[[Path], None]:
    """Write a, b, c, d of the display matrix into the track header of an MP4 file."""

    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        place = data.rindex(b"tkhd") + 4 + 40
        a, b, c, d = (value << 16 for value in matrix)
        struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)

    return change


def without_index(path: Path) -> None:
    """Cut the index off an AVI file, as in a recording that was interrupted."""
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"idx1")])


def index_says_key(path: Path) -> None:
    """An AVI index that calls every frame a key frame, which some muxers write."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"idx1") + 8
    for place in range(start + 4, len(data) - 12, 16):
        struct.pack_into("<I", data, place, 0x10)
    path.write_bytes(data)


def copy_streams(source: Path, target: Path) -> None:
    """Into another container without coding anew; unknown times become those of decoding."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.pts = packet.dts if packet.pts is None else packet.pts
                packet.stream = stream
                output.mux_one(packet)


# Several streams.


def two_videos(
    path: Path, *, large_second: bool, disposition: str = "", codec: str = "libx264"
) -> None:
    """Two video streams, numbered from 0 and from 100."""
    sizes = [(HEIGHT, WIDTH), (2 * HEIGHT, 2 * WIDTH)]
    if not large_second:
        sizes.reverse()
    with av.open(str(path), "w") as output:
        streams: list[Any] = []
        for height, width in sizes:
            stream: Any = output.add_stream(codec, rate=RATE)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.codec_context.bit_rate = 2_000_000
            streams.append(stream)
        if disposition:
            streams[1].disposition = getattr(av.stream.Disposition, disposition)
        for number in range(COUNT):
            for stream, first in zip(streams, (0, 100), strict=True):
                picture = draw(1, stream.height, stream.width, first=first + number)[0]
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                    format="yuv420p"
                )
                frame.pts = number
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode())


def with_chapters(path: Path) -> None:
    """Chapters and a time code, which MOV stores as tracks of their own."""
    with av.open(str(path), "w") as output:
        output.metadata["timecode"] = "01:00:00:00"
        chapters = [
            {
                "id": n,
                "start": n,
                "end": n + 1,
                "time_base": Fraction(1),
                "metadata": {"title": f"{n}"},
            }
            for n in range(2)
        ]
        output.set_chapters(chapters)
        stream: Any = output.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.max_b_frames = 2
        for number, drawn in enumerate(draw(COUNT)):
            frame = av.VideoFrame.from_ndarray(drawn, format="rgb24").reformat(format="yuv420p")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def with_cover(path: Path, *, cover_first: bool) -> None:
    """A film with a picture of its cover, which containers store as a video stream."""
    cover = draw(1, 2 * HEIGHT, 2 * WIDTH, first=255)[0]
    with av.open(str(path), "w") as output:
        order = ("cover", "film") if cover_first else ("film", "cover")
        streams: dict[str, Any] = {}
        for name in order:
            codec, height, width = ("libx264", HEIGHT, WIDTH)
            if name == "cover":
                codec, (height, width) = "mjpeg", cover.shape[:2]
            stream: Any = output.add_stream(codec, rate=RATE)
            stream.height, stream.width = height, width
            stream.pix_fmt = "yuvj420p" if name == "cover" else "yuv420p"
            streams[name] = stream
        streams["cover"].disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(cover, format="rgb24")
        output.mux(streams["cover"].encode(picture.reformat(format="yuvj420p")))
        output.mux(streams["cover"].encode())
        for number, drawn in enumerate(draw(COUNT)):
            frame = av.VideoFrame.from_ndarray(drawn, format="rgb24").reformat(format="yuv420p")
            frame.pts = number
            output.mux(streams["film"].encode(frame))
        output.mux(streams["film"].encode())
