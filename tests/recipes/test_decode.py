"""Reading frames by index: always the frame that was asked for, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recipes.contract import InputError
from recipes.data.crop import centre_box, random_box
from recipes.data.decode import read_frames
from recipes.data.decode_decord import fill_gaps
from recipes.data.probe import probe
from tests.recipes.data_files import numbered, numbers_of, real_data, write_video

WANTED = [41, 3, 3, 58, 17]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("decode") / "video.mp4", numbered(60))


def test_frames_come_in_the_order_asked_for_with_repeats(video: Path) -> None:
    frames = read_frames(video, WANTED)
    assert frames.shape == (5, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert numbers_of(frames) == WANTED


@pytest.mark.parametrize("width", [8, 12, 16, 24, 37, 48, 64, 72, 100, 129])
def test_any_width_is_possible(video: Path, width: int) -> None:
    frames = read_frames(video, WANTED, height=33, width=width)
    assert frames.shape == (5, 33, width, 3)
    assert numbers_of(frames) == WANTED


def test_the_short_side_sets_both_sizes(video: Path) -> None:
    assert read_frames(video, [0], short_side=96).shape == (1, 96, 128, 3)


def test_scaling_by_the_decoder_agrees_with_scaling_afterwards(tmp_path: Path) -> None:
    slope = np.linspace(0, 255, 96 * 128 * 3).reshape(96, 128, 3).astype(np.uint8)
    path = write_video(tmp_path / "slope.mp4", np.stack([slope] * 3), crf="5")
    full = read_frames(path, [1])[0].astype(float)
    half = read_frames(path, [1], height=48, width=64)[0].astype(float)
    quarter = read_frames(path, [1], height=12, width=16)[0].astype(float)
    assert np.abs(full.reshape(48, 2, 64, 2, 3).mean(axis=(1, 3)) - half).mean() < 1.5
    assert np.abs(full.reshape(12, 8, 16, 8, 3).mean(axis=(1, 3)) - quarter).mean() < 3


@pytest.mark.parametrize(("codec", "gop"), [("libx264", 1), ("mjpeg", 1), ("libx264", 4)])
def test_dense_key_frames_are_read_through_and_give_the_same_frames(
    tmp_path: Path, codec: str, gop: int
) -> None:
    path = write_video(tmp_path / "dense.mkv", numbered(60), codec, gop=gop)
    wanted = list(range(5, 50, 3))
    assert numbers_of(read_frames(path, wanted, gop=gop)) == wanted
    assert numbers_of(read_frames(path, wanted, gop=0)) == wanted


def test_gaps_are_filled_only_where_key_frames_are_dense() -> None:
    wanted = np.array([2, 5, 40])
    assert fill_gaps(wanted, 12).tolist() == [2, 3, 4, 5, 40]
    assert fill_gaps(wanted, 250).tolist() == [2, 5, 40]
    assert fill_gaps(wanted, 0).tolist() == [2, 5, 40]


def test_avi_with_b_frames_is_exact_read_in_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "xvid.avi", numbered(60), "mpeg4", b_frames=2)
    assert probe(path).verdict == "sequential"
    assert numbers_of(read_frames(path, WANTED, verdict="sequential")) == WANTED


def test_errors_name_the_file(tmp_path: Path, video: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video at all", encoding="utf-8")
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(video.read_bytes()[:2000])
    for path in (text, torn, tmp_path / "absent.mp4"):
        with pytest.raises(InputError, match=str(path)):
            read_frames(path, [0])
    with pytest.raises(InputError, match=r"has 60 frames, frame 60 was asked for"):
        read_frames(video, [60])
    with pytest.raises(ValueError, match="non-empty"):
        read_frames(video, [])


@pytest.mark.parametrize(
    "name", ["tc_nasa_vfr.mp4", "tc_edit_list_discards_frames.mp4", "tc_mpeg1_program_stream.mpg",
             "tc_vp9.webm", "tc_non_zero_start_pts.mp4", "tc_odd_dims_321x241_h264_444.mp4"],
)  # fmt: skip
def test_awkward_real_files_give_the_frames_of_a_full_decode(name: str) -> None:
    import av

    path = real_data("nasty") / name
    found = probe(path)
    with av.open(str(path)) as container:
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert found.frames == len(truth)
    wanted = [found.frames - 1, 1, found.frames // 3, found.frames // 2]
    read = read_frames(path, wanted, verdict=found.verdict, gop=found.gop)
    for number, frame in zip(wanted, read, strict=True):
        assert np.abs(frame.astype(int) - truth[number]).mean() < 4


def test_random_boxes_keep_to_area_and_aspect_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        box = random_box(172, 306, (0.3, 1.0), (0.75, 4 / 3), rng)
        assert box.top >= 0
        assert box.left >= 0
        assert box.top + box.height <= 172 + 1e-9
        assert box.left + box.width <= 306 + 1e-9
        assert 0.3 - 1e-9 <= box.height * box.width / (172 * 306) <= 1
        assert 0.75 - 1e-9 <= box.width / box.height <= 4 / 3 + 1e-9


def test_an_impossible_box_becomes_the_largest_one_in_the_middle() -> None:
    box = random_box(100, 1000, (0.9, 1.0), (0.75, 4 / 3), np.random.default_rng(0))
    assert (box.height, box.width) == pytest.approx((100, 400 / 3))
    assert box.left == pytest.approx((1000 - 400 / 3) / 2)
    assert centre_box(100, 160) == (0, 30, 100, 100)
