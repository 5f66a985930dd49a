"""Makes damaged and mutated copies of small videos, and looks at one of them in a child process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from recipes.contract import InputError
from recipes.data.decode import read_frames, video_stream
from recipes.data.probe import probe
from tests.recipes.corpus import draw, write

_EXTREMES = (0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What became of one mutated file.

    `changed`: a plain decode gives other frames than the original. `wrong` says how reading by
    index differs from that decode, for a file that was not refused.
    """

    verdict: str
    reason: str = ""
    changed: bool = True
    wrong: str = ""


def originals(folder: Path) -> dict[str, Path]:
    """Sound files of the usual kinds, 20 frames each."""
    small, larger = draw(20), draw(20, 144, 176)
    return {
        "mp4": write(folder / "sound.mp4", larger, b_frames=2),
        "front": write(folder / "front.mp4", larger, container={"movflags": "faststart"}),
        "fragments": write(
            folder / "fragments.mp4",
            larger,
            gop=5,
            container={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
        ),
        "mkv": write(folder / "sound.mkv", larger, b_frames=2),
        "avi": write(folder / "sound.avi", small, "mpeg4"),
        "webm": write(folder / "sound.webm", small, "libvpx-vp9"),
        "ts": write(folder / "sound.ts", larger, b_frames=2),
        "flv": write(folder / "sound.flv", small),
        "mpg": write(folder / "sound.mpg", small, "mpeg2video", b_frames=2),
    }


def frames_of(path: Path) -> list[str]:
    """A digest of each frame of a plain decode in order; shorter where it fails."""
    digests: list[str] = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video_stream(container)):
                digests.append(hashlib.md5(frame.to_ndarray().tobytes()).hexdigest())  # noqa: S324
    except (av.FFmpegError, InputError, IndexError, ValueError):
        digests.append("failed")
    return digests


def look(job: tuple[Path, list[str]]) -> Looked:
    """Probe a mutated file as the index does; where it passes, read it and compare."""
    path, frames_before = job
    found = probe(path)
    changed = frames_of(path) != frames_before
    if found.verdict == "reject":
        return Looked(verdict="reject", reason=found.reason, changed=changed)
    wanted = [found.frames - 1, 0, found.frames // 2]
    try:
        size: dict[str, Any] = {"height": 24, "width": 32, "rotation": found.rotation}
        kinds = {"verdict": found.verdict, "gop": found.gop}
        read = read_frames(path, wanted, **kinds, **size).astype(np.int16)
        truth = read_frames(path, wanted, verdict="sequential", decoder="pyav", **size)
    except InputError as error:
        return Looked(verdict=found.verdict, changed=changed, wrong=str(error))
    distance = np.abs(read - truth).mean(axis=(1, 2, 3))
    wrong = "" if (distance < 12).all() else f"frames {wanted} differ by {distance.round(1)}"
    return Looked(verdict=found.verdict, reason=found.reason, changed=changed, wrong=wrong)


def crashed(_: tuple[Path, list[str]]) -> Looked:
    """What is known of a file that killed the process."""
    return Looked(verdict="reject", reason="crashed")


def mutated(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A copy with one to eight changes: bytes or 32-bit values of the index, bytes of pictures."""
    start, end = _pictures(data)
    result = bytearray(data)
    outside = [*range(8, start), *range(end, len(data) - 4)]
    for _ in range(int(rng.integers(1, 9))):
        if kind == "payload":
            result[int(rng.integers(start, end))] = int(rng.integers(0, 256))
        elif kind == "bytes":
            result[outside[int(rng.integers(0, len(outside)))]] = int(rng.integers(0, 256))
        else:
            place = outside[int(rng.integers(0, len(outside)))] // 4 * 4
            value = int(rng.integers(0, 1 << 32)) if rng.random() < 0.5 else _EXTREMES[
                int(rng.integers(0, len(_EXTREMES)))
            ]  # fmt: skip
            result[place : place + 4] = value.to_bytes(4, "big")
    return bytes(result)


def damaged(folder: Path, sound: dict[str, Path]) -> list[Path]:
    """Files that no training may meet, as downloads, disks and people break them."""
    mp4, front, parts = (sound[name].read_bytes() for name in ("mp4", "front", "fragments"))
    start, end = _pictures(mp4)
    first, last = _pictures(front)
    contents = {
        "empty.mp4": b"",
        "one_byte.mp4": b"\0",
        "head_only.mp4": mp4[:32],
        "index_missing.mp4": mp4[: mp4.rindex(b"moov") - 4],
        "index_cut.mp4": mp4[: (mp4.rindex(b"moov") + len(mp4)) // 2],
        "front_index_cut.mp4": front[: front.index(b"moov") + 300],
        "cut_in_half.mp4": front[: (first + last) // 2],
        "cut_at_nine_tenths.mp4": front[: first + (last - first) * 9 // 10],
        "last_bytes_missing.mp4": front[:-40],
        "index_overwritten.mp4": mp4[: end + 40] + bytes(len(mp4) - end - 40),
        "nal_lengths_broken.mp4": _spoil_packets(sound["mp4"], every=3, place=0, length=4),
        "packets_damaged.mp4": _spoil_packets(sound["mp4"], every=4, place=20, length=60),
        "hole.mp4": front[: (first + last) // 2]
        + bytes(3000)
        + front[(first + last) // 2 + 3000 :],
        "pictures_zeroed.mp4": mp4[:start] + bytes(end - start) + mp4[end:],
        "fragment_cut.mp4": parts[: parts.rindex(b"moof") + 50],
        "fragments_lost.mp4": parts[: parts.index(b"moof") - 4]
        + parts[parts.rindex(b"mfra") - 4 :],
        "text.mp4": b"<html><title>404 Not Found</title></html>",
        "play_list.mp4": b"#EXTM3U\n#EXTINF:1,\nsound.ts\n",
        "cut.mkv": _cut(sound["mkv"], 0.6),
        "cut.webm": _cut(sound["webm"], 0.7),
        "cut.avi": _cut(sound["avi"], 0.5),
        "cut.flv": _cut(sound["flv"], 0.55),
        "hole.mkv": _hole(sound["mkv"], 0.5, 1500),
        "hole.avi": _hole(sound["avi"], 0.5, 1500),
        "packets_lost.ts": _without_packets(sound["ts"]),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    _sound_only(folder / "sound_only.mp4")
    return [folder / name for name in (*contents, "sound_only.mp4")]


def _cut(path: Path, share: float) -> bytes:
    data = path.read_bytes()
    return data[: int(len(data) * share)]


def _hole(path: Path, share: float, length: int) -> bytes:
    data = path.read_bytes()
    place = int(len(data) * share)
    return data[:place] + bytes(length) + data[place + length :]


def _without_packets(path: Path) -> bytes:
    """Ten transport packets of 188 bytes are missing in the middle."""
    data = path.read_bytes()
    middle = len(data) // 376 * 188
    return data[:middle] + data[middle + 1880 :]


def _spoil_packets(path: Path, every: int, place: int, length: int) -> bytes:
    """Random bytes in each of so many packets."""
    rng, data = np.random.default_rng(0), bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    for start in starts[1::every]:
        data[start + place : start + place + length] = rng.bytes(length)
    return bytes(data)


def _sound_only(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux_one(packet)


def _pictures(data: bytes) -> tuple[int, int]:
    """Where the coded pictures lie: in a box or list of their own, else most of the file."""
    for name in (b"mdat", b"movi"):
        place = data.find(name)
        if place >= 0:
            size = int.from_bytes(data[place - 4 : place], "big" if name == b"mdat" else "little")
            return place + 4, min(place - 4 + size, len(data) - 8)
    return len(data) // 8, len(data) - len(data) // 16
