"""What the look at one file finds: facts, damage that FFmpeg reads over, wrong frames."""

from __future__ import annotations

import hashlib
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from recipes.data.bitstream import hole_test
from recipes.data.container import layout
from recipes.data.decode import open_container, read_frames, video_stream
from recipes.data.probe import probe
from recipes.data.probe_access import Film
from recipes.data.reel import decoded
from recipes.data.witness import Witnesses, agrees
from recipes.data.workers import each_expendable
from tests.recipes import corpus_edits as edits
from tests.recipes.corpus import draw, write
from tests.recipes.data_files import warm_workers

COUNT = 40
FAST = {"deadline": "realtime", "cpu-used": "8"}


def packets_of(path: Path) -> list[tuple[int, int]]:
    """Place and size of each packet in a file."""
    with open_container(path) as container:
        stream = video_stream(container)
        found = [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]
    return [(place, size) for place, size in found if place is not None]


def test_what_a_row_says_comes_from_the_pictures(tmp_path: Path) -> None:
    frames = np.ascontiguousarray(np.rot90(draw(COUNT, 48, 80), 1, axes=(1, 2)))
    path = write(tmp_path / "a.mp4", frames, b_frames=2, gop=10, rotation=270)
    found = probe(path)
    assert (found.verdict, found.checked, found.frames, found.fps) == ("random", "full", COUNT, 25)
    assert found.duration == pytest.approx(COUNT / 25)
    assert (found.width, found.height, found.rotation) == (80, 48, 90)
    assert (found.codec, found.pix_fmt, found.gop, found.b_frames) == ("h264", "yuv420p", 10, True)
    assert "mp4" in found.container
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.bytes, found.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


def test_the_rate_is_that_of_the_time_stamps_where_the_container_says_another(
    tmp_path: Path,
) -> None:
    times = [0, *range(1000, 1000 + 40 * COUNT, 40)]
    found = probe(write(tmp_path / "a.mkv", draw(COUNT + 1), times=times))
    assert found.duration == pytest.approx(1 + COUNT / 25, abs=0.05)
    assert found.fps == pytest.approx((COUNT + 1) / found.duration)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {"b_frames": 2}),
        ("b.mp4", {"rotation": 90}),
        ("c.mkv", {"b_frames": 3, "gop": 20}),
        ("d.webm", {"codec": "libvpx", "options": edits.HIDDEN_FRAMES}),
        ("e.avi", {"codec": "mpeg4"}),
        ("f.mp4", {"edit": edits.shift(-17)}),
    ],
)
def test_packets_alone_tell_the_same_of_a_sound_file(
    tmp_path: Path, name: str, settings: dict[str, object]
) -> None:
    path = write(tmp_path / name, draw(COUNT), **settings)  # type: ignore[arg-type]
    full, demux = probe(path), probe(path, mode="demux")
    assert demux.checked == "demux"
    assert demux.verdict == full.verdict or (full.verdict, demux.verdict) == (
        "random",
        "sequential",
    )
    same = ("verdict", "reason", "mendable", "checked", "sha256", "pix_fmt")
    assert replace(demux, **{key: getattr(full, key) for key in same}) == full


CUT = {
    "front.mp4": ({"container": {"movflags": "faststart"}}, "libx264"),
    "fragments.mp4": ({"container": {"movflags": "frag_keyframe+empty_moov"}}, "libx264"),
    "a.mkv": ({}, "libx264"),
    "a.webm": ({"options": FAST}, "libvpx"),
    "a.avi": ({}, "mpeg4"),
    "a.wmv": ({}, "wmv2"),
    "a.ogv": ({"options": FAST}, "libvpx"),
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("mode", ["full", "demux"])
def test_an_end_that_is_cut_off_between_two_frames_is_missed(
    tmp_path: Path, name: str, mode: str
) -> None:
    settings, codec = CUT[name]
    path = write(tmp_path / name, draw(COUNT), codec, **settings)  # type: ignore[arg-type]
    assert layout(path, _container(path), checksums=True).problem == ""
    place, _ = packets_of(path)[-3]
    path.write_bytes(path.read_bytes()[:place])
    found = probe(path, "pyav", mode)
    assert found.verdict == "reject"
    assert "is cut off" in found.reason
    assert "download or copy it again" in found.reason


def _container(path: Path) -> str:
    with open_container(path) as container:
        return str(container.format.name)


def test_a_stream_that_ends_inside_of_a_packet_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ts", draw(COUNT))
    path.write_bytes(path.read_bytes()[:-100])
    assert probe(path, "pyav").reason.startswith("is cut off: its last packet is not whole")


def test_a_checksum_tells_of_pictures_that_decode_to_anything(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", draw(COUNT), "libvpx", options=FAST)
    data = bytearray(path.read_bytes())
    place, size = packets_of(path)[20]
    data[place + size - 5] ^= 0x55
    path.write_bytes(data)
    assert "checksum" in probe(path).reason


SECTOR = 512


@pytest.mark.parametrize(
    ("name", "codec", "zeros"),
    [("a.mp4", "libx264", 48), ("a.flv", "libx264", 48), ("a.webm", "libvpx-vp9", SECTOR)],
)
def test_a_hole_in_a_picture_that_still_decodes_is_seen(
    tmp_path: Path, name: str, codec: str, zeros: int
) -> None:
    options = FAST if "vpx" in codec else {"crf": "4"}
    path = write(tmp_path / name, draw(8, 144, 176), codec, options=options)
    data = bytearray(path.read_bytes())
    place, size = max(packets_of(path), key=lambda one: one[1])
    data[place + size // 2 : place + size // 2 + zeros] = bytes(zeros)
    path.write_bytes(data)
    assert "has a hole" in probe(path, "pyav").reason


@pytest.mark.parametrize(
    ("packet", "damaged"),
    [
        (b"\x65\x88" + bytes(31) + b"\x80", False),
        (b"\x65\x88" + bytes(32) + b"\x80", True),
        (b"\x65\x88" + bytes(32), False),  # padding
        (b"\x65\x88" + bytes(32) + b"\1\x41\x9a", False),  # up to the next start code
        (bytes(40), True),
    ],
)
def test_zeros_are_a_hole_unless_they_may_be_padding(packet: bytes, damaged: bool) -> None:
    has_hole = hole_test("h264")
    assert has_hole is not None
    assert has_hole(packet) == damaged
    assert hole_test("mpeg4") is None


@pytest.mark.parametrize(("name", "codec"), [("a.asf", "msmpeg4"), ("a.flv", "libx264")])
@pytest.mark.parametrize("mode", ["full", "demux"])
def test_what_decord_cannot_open_is_refused_for_it_in_either_mode(
    tmp_path: Path, name: str, codec: str, mode: str
) -> None:
    path = write(tmp_path / name, draw(1), codec)
    refused = probe(path, "decord", mode)
    assert refused.verdict == "reject"
    assert "data.decoder: pyav" in refused.reason
    assert probe(path, "pyav", mode).verdict != "reject"


def test_a_lost_page_is_missed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogv", draw(COUNT), "libvpx", options={**FAST, "crf": "4"})
    data = path.read_bytes()
    pages = [n for n in range(len(data)) if data.startswith(b"OggS", n)]
    assert len(pages) > 4
    path.write_bytes(data[: pages[-3]] + data[pages[-2] :])
    assert "lost data" in probe(path).reason


def test_the_same_complaint_about_the_next_file_is_heard_as_well(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webm", draw(COUNT), "libvpx", gop=8, options=FAST)
    data = bytearray(path.read_bytes())
    place, size = packets_of(path)[20]
    data[place : place + size] = bytes(size)
    data[place - 12 : place] = bytes(12)
    path.write_bytes(data)
    first, again = probe(path), probe(path)
    assert first == again
    assert first.verdict == "reject"


def test_what_is_said_of_a_file_does_not_depend_on_when_and_where(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "a.ogv" for folder in ("one", "other_folder")]
    for path in paths:
        write(path, draw(COUNT), "libvpx", options=FAST)
    found = [probe(path) for path in paths]
    assert found[0].verdict == "reject"
    assert found[0].mendable
    assert "data.decoder: pyav" in found[0].reason
    assert found[0].reason == found[1].reason
    assert "/" not in found[0].reason.replace("duration/frame-count", "")


def test_a_file_that_is_still_written_is_not_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", draw(COUNT))
    found = probe(path)
    path.touch()
    assert probe(path).mtime_ns != found.mtime_ns  # a new state, so that nobody takes the old row


def still_with_a_moving_spot() -> np.ndarray:
    """A noisy still scene in which a spot of 9 x 9 pixels moves by three a frame."""
    scene = np.random.default_rng(0).integers(60, 190, (1, 144, 192, 1), np.uint8)
    frames = np.repeat(np.repeat(scene, 60, axis=0), 3, axis=3).copy()
    for number in range(60):
        left = 5 + 3 * number
        frames[number, 70:79, left : left + 9] = 250
    return frames


def test_a_neighbouring_frame_is_told_from_the_right_one_in_a_still_scene(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", still_with_a_moving_spot(), gop=20)
    with decoded(path) as reel:
        kept = reel.scan.witnesses.kept
    assert agrees(read_frames(path, [0, 1, 2]), [0, 1, 2], reel.scan.witnesses)
    for step in (1, -1):
        moved = Witnesses()
        moved.kept = {n: kept[n + step] for n in kept if n + step in kept}
        both = [n for n in (0, 1, 2) if n in moved.kept]
        assert not agrees(read_frames(path, both), both, moved)


def test_samples_of_luma_are_those_of_the_picture_for_every_pixel_format(tmp_path: Path) -> None:
    for pix_fmt in ("yuv420p", "yuv444p", "yuv420p10le", "yuvj420p", "gray"):
        path = write(tmp_path / f"{pix_fmt}.mp4", draw(3), pix_fmt=pix_fmt)
        with decoded(path) as reel:
            kept = reel.scan.witnesses.kept[0].astype(float)
        with av.open(str(path)) as container:
            expected = next(container.decode(video=0)).reformat(format="gray").to_ndarray()
        errors = [np.abs(guess - expected).mean() for guess in (kept, (kept - 16) * 255 / 219)]
        assert min(errors) < 3, pix_fmt


def test_a_frame_that_looks_wrong_is_compared_with_one_smoothed_in_full(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", draw(COUNT, 144, 176), b_frames=2)
    with decoded(path) as reel:
        kept = reel.scan.witnesses.kept
        kept[1] = 255 - kept[1]
        assert Film(reel=reel, decoder="decord").agrees([1], "random")
        reel.smoothed.kept[1] = kept[1]
        assert not Film(reel=reel, decoder="decord").agrees([1], "random")


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_pictures_of_low_quality_do_not_look_like_wrong_ones(tmp_path: Path, decoder: str) -> None:
    options = {"x265-params": "log-level=none:open-gop=0", "crf": "36"}
    path = write(tmp_path / "a.mp4", draw(COUNT, 144, 176), "libx265", b_frames=3, options=options)
    assert probe(path, decoder).verdict == "random"


def _slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_work_given_up_ends_at_once_and_results_come_as_they_are_ready() -> None:
    warm_workers()
    results = each_expendable(_slow, [60.0, 0.0, 60.0], workers=2, seconds=90, crashed=abs)
    with closing(results):
        assert next(results) == (1, 0.0)


def test_a_request_to_stop_is_heard_while_a_file_takes_long() -> None:
    warm_workers()

    def stop() -> None:
        raise KeyboardInterrupt

    results = each_expendable(_slow, [60.0], workers=1, seconds=90, crashed=abs, on_wait=stop)
    with pytest.raises(KeyboardInterrupt):
        next(results)
