"""Prepared videos: every frame of the source, upright, in its place, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from recipes.contract import ConfigurationError
from recipes.data import decode
from recipes.data.config import PrepareOptions
from recipes.data.decode import read_frames
from recipes.data.encode import encode, prepared_size
from recipes.data.encode_check import EncodeError, Pictures, Shrinking, compare, verify
from tests.recipes.corpus import draw, read_numbers, write
from tests.recipes.corpus_cases import CASES
from tests.recipes.data_files import real_data

OPTIONS = PrepareOptions(short_side=128)
UNUSUAL = [
    *("mpeg4_b2.avi", "h264_b.avi", "packed.avi", "skipped_slots_b.avi", "no_index_b.avi"),
    *("mjpeg.avi", "bare.avi", "cut_in_gop_b.mp4", "edit_end.mp4", "variable_rate_b.mp4"),
    *("same_times_b.mkv", "rotated_90.mp4", "rotated_180.mp4", "rotated_270.mp4", "10_bit.mp4"),
    *("422.mp4", "rgb.mp4", "odd_444.mp4", "vp8_odd.webm", "vp9_alpha.webm", "one_frame.avi"),
    *("two_frames_b.mp4", "cover_first.mp4", "h264_b.ts", "mpeg1_b.mpg", "cut_open_gop.mp4"),
]


def details(path: Path) -> tuple[Any, list[Any]]:
    """The video stream of a file, closed, and all its packets."""
    with av.open(str(path)) as container:
        assert len(container.streams) == 1
        stream = container.streams.video[0]
        return stream, [packet for packet in container.demux(stream) if packet.size]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encode") / "source.avi"
    return write(path, draw(40), "mpeg4", b_frames=2)


@pytest.fixture(scope="module")
def prepared(source: Path) -> Path:
    target = source.with_name("prepared.mp4")
    encode(source, target, replace_gop(8), "decord")
    return target


def replace_gop(gop: int) -> PrepareOptions:
    return OPTIONS.model_copy(update={"gop": gop})


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_frame_of_an_unusual_file_is_found_by_its_number(tmp_path: Path, name: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    case.make(tmp_path / name)
    target = tmp_path / "prepared.mp4"
    file = encode(tmp_path / name, target, OPTIONS, "decord")
    numbers = read_numbers(read_frames(target, range(file.frames), decoder="pyav"))
    assert case.shown in (None, tuple(numbers))
    wanted = [file.frames - 1, file.frames // 3, 0, file.frames // 3]
    for decoder in ("decord", "pyav"):
        found = read_numbers(read_frames(target, wanted, gop=12, decoder=decoder))
        assert found == [numbers[place] for place in wanted]


def test_key_frames_are_where_they_should_be_and_nothing_else_is_in_the_file(
    source: Path, prepared: Path
) -> None:
    stream, packets = details(prepared)
    assert [at for at, packet in enumerate(packets) if packet.is_keyframe] == [0, 8, 16, 24, 32]
    assert all(packet.pts == packet.dts for packet in packets)
    times = [packet.pts * packet.time_base for packet in packets]
    assert times == [Fraction(number, 25) for number in range(40)]
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    content = prepared.read_bytes()
    assert b"elst" not in content
    assert content.index(b"moov") < content.index(b"mdat")
    assert prepared.stat().st_mode & 0o777 == 0o600


def test_the_same_source_gives_the_same_bytes(source: Path, prepared: Path, tmp_path: Path) -> None:
    again = encode(source, tmp_path / "again.mp4", replace_gop(8), "pyav")
    assert (tmp_path / "again.mp4").read_bytes() == prepared.read_bytes()
    assert replace(verify(prepared, 8, "decord"), mtime_ns=0) == replace(again, mtime_ns=0)


def test_frames_without_a_steady_rate_get_one_and_keep_their_numbers(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(0).integers(10, 400, 40)).tolist()
    path = write(tmp_path / "irregular.mkv", draw(40), times=times)
    target = tmp_path / "steady.mp4"
    assert encode(path, target, OPTIONS, "decord", fps=30000 / 1001).fps == 30000 / 1001
    stream, packets = details(target)
    assert stream.average_rate == Fraction(30000, 1001)
    assert {int(packet.duration) for packet in packets} == {packets[0].duration}
    assert read_numbers(read_frames(target, [39, 20], gop=12)) == [39, 20]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        ((256, 340), 128, (128, 170)),
        ((341, 256), 128, (170, 128)),
        ((240, 320), 256, (240, 320)),
        ((81, 121), 128, (80, 120)),
        ((241, 321), 128, (128, 170)),
        ((1080, 1920), 256, (256, 456)),
        ((1, 1), 128, (2, 2)),
    ],
)
def test_sizes_are_even_and_never_larger_than_the_source(
    height: tuple[int, int], width: int, size: tuple[int, int]
) -> None:
    assert prepared_size(*height, short_side=width) == size


def test_a_large_picture_is_scaled_and_looks_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "large.mkv", draw(13, 241, 321), pix_fmt="yuv444p")
    target = tmp_path / "prepared.mp4"
    file = encode(path, target, OPTIONS, "decord")
    assert (file.height, file.width) == (128, 170)
    size = {"height": 64, "width": 84}
    before, after = (read_frames(each, [0, 12], **size).astype(float) for each in (path, target))
    assert np.abs(before - after).mean() < 4


@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("matrix", [1, 2, 5], ids=["bt709", "unknown", "bt601"])
def test_colours_stay_what_each_decoder_makes_of_the_source(
    tmp_path: Path, pix_fmt: str, matrix: int
) -> None:
    def tag(stream: Any) -> None:
        stream.codec_context.colorspace = matrix

    frames = np.empty((4, 64, 96, 3), np.uint8)
    frames[:, :, :32], frames[:, :, 32:64], frames[:, :, 64:] = (220, 30, 40), (20, 180, 60), 128
    path = write(tmp_path / "colours.mp4", frames, pix_fmt=pix_fmt, setup=tag)
    target = tmp_path / "prepared.mp4"
    encode(path, target, OPTIONS, "decord")
    for decoder in ("decord", "pyav"):
        before, after = (
            read_frames(each, [2], decoder=decoder).astype(float) for each in (path, target)
        )
        assert np.abs(before - after).mean() < 3, decoder


def damaged(path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    content = bytearray(write(path, frames).read_bytes())
    start = content.index(b"mdat") + 20_000
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    content = write(path.with_suffix(".ts"), draw(30), gop=30).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def text(path: Path) -> Path:
    path.write_text("no video at all")
    return path


@pytest.mark.parametrize("make", [damaged, cut, text])
def test_a_damaged_source_is_refused_and_leaves_nothing(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path / "bad.mp4")
    target = tmp_path / "out" / "prepared.mp4"
    target.parent.mkdir()
    with pytest.raises(EncodeError) as error:
        encode(path, target, OPTIONS, "decord")
    assert error.value.damaged
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["larger.mkv", "tilted.mov", "mirrored.mov"])
def test_pictures_that_change_or_cannot_be_set_upright_are_refused(
    tmp_path: Path, name: str
) -> None:
    (case,) = [case for case in CASES if case.name == name]
    case.make(tmp_path / name)
    with pytest.raises(EncodeError, match=r"changes its shape|mirrored or turned"):
        encode(tmp_path / name, tmp_path / "prepared.mp4", OPTIONS, "decord")


def pictures(frames: np.ndarray[Any, Any]) -> Pictures:
    shrink = Shrinking()
    small = [shrink(av.VideoFrame.from_ndarray(frame, format="rgb24")) for frame in frames]
    return Pictures(thumbnails=small)


def test_lost_moved_and_discoloured_frames_would_be_seen() -> None:
    frames = draw(30)
    sent = pictures(frames)
    sent.witnesses[4] = sent.thumbnails[4]
    compare(sent, sent, crf=18)
    with pytest.raises(EncodeError, match="29 of 30 frames"):
        compare(sent, pictures(frames[1:]), crf=18)
    for crf in (18, 30):
        for moved in ([*range(1, 30), 29], [0, 0, *range(1, 29)], [*range(14), 15, *range(15, 30)]):
            with pytest.raises(EncodeError, match="is not that of the source"):
                compare(sent, pictures(frames[moved]), crf=crf)
    sent.witnesses[4] = sent.thumbnails[4][::-1]
    with pytest.raises(EncodeError, match="other colours or sides"):
        compare(sent, pictures(frames), crf=18)


def test_a_file_that_is_not_prepared_is_not_taken_for_one(prepared: Path, tmp_path: Path) -> None:
    irregular = write(tmp_path / "irregular.mp4", draw(20), times=[7 * n * n for n in range(20)])
    with pytest.raises(EncodeError, match="is not in its place"):
        verify(irregular, 12, "decord")
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(prepared.read_bytes()[:-400])
    with pytest.raises(EncodeError, match=r"does not decode|is not in its place"):
        verify(torn, 8, "decord")


def test_a_decoder_that_finds_other_frames_is_found_out(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes.data import decode_pyav

    honest = decode_pyav.read
    monkeypatch.setattr(
        decode_pyav,
        "read",
        lambda request: honest(replace(request, numbers=np.maximum(request.numbers - 1, 0))),
    )
    with pytest.raises(EncodeError, match="pyav finds another frame"):
        verify(prepared, 8, "pyav")


def test_a_decoder_that_is_not_installed_is_an_error_of_the_configuration(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(decode._READERS, "torchcodec", "recipes.data.no_such_module")
    with pytest.raises((ConfigurationError, ImportError)):
        encode(source, tmp_path / "prepared.mp4", OPTIONS, "torchcodec")
    assert not (tmp_path / "prepared.mp4").exists()


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [
        ("tc_av1.mkv", 125, (128, 228)),
        ("tc_edit_list_discards_frames.mp4", 25, (64, 64)),
        ("decord_rot90_3frames.mov", 3, (228, 128)),
        ("tc_nasa_vfr.mp4", 50, (128, 228)),
        ("tc_odd_dims_121x81_mpeg2.mp4", 10, (80, 120)),
        ("tc_one_frame_mpeg4.mp4", 1, (64, 64)),
    ],
)
def test_real_files_that_break_decoders_can_be_prepared(
    tmp_path: Path, name: str, frames: int, size: tuple[int, int]
) -> None:
    target = tmp_path / "prepared.mp4"
    file = encode(real_data("nasty") / name, target, OPTIONS, "decord")
    assert (file.frames, (file.height, file.width)) == (frames, size)
