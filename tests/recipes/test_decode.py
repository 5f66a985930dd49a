"""Reading frames by index: always the frame that was asked for, or an error that names the file."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from recipes.contract import ConfigurationError, InputError
from recipes.data.boxes import centre_box, random_box
from recipes.data.decode import open_container, read_frames, rotation_of, video_stream
from recipes.data.decode_decord import fill_gaps
from recipes.data.decoder_versions import decoder_versions, known_old
from tests.recipes import corpus
from tests.recipes.data_files import numbered, numbers_of, real_data, write_video

WANTED = [41, 3, 3, 58, 17]
DECODERS = ("decord", "pyav")
both = pytest.mark.parametrize("decoder", DECODERS)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("decode") / "video.mp4", numbered(60))


@both
@pytest.mark.parametrize("verdict", ["random", "sequential"])
def test_frames_come_in_the_order_asked_for_with_repeats(
    video: Path, decoder: str, verdict: str
) -> None:
    frames = read_frames(video, WANTED, decoder=decoder, verdict=verdict)
    assert frames.shape == (5, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert numbers_of(frames) == WANTED


@both
@pytest.mark.parametrize("width", [8, 12, 16, 24, 37, 48, 64, 72, 100, 129])
def test_any_width_is_possible(video: Path, decoder: str, width: int) -> None:
    frames = read_frames(video, WANTED, height=33, width=width, decoder=decoder)
    assert frames.shape == (5, 33, width, 3)
    assert numbers_of(frames) == WANTED


@both
def test_the_short_side_sets_both_sizes(video: Path, decoder: str) -> None:
    assert read_frames(video, [0], short_side=96, decoder=decoder).shape == (1, 96, 128, 3)


@both
def test_scaling_by_the_decoder_agrees_with_scaling_afterwards(
    tmp_path: Path, decoder: str
) -> None:
    slope = np.linspace(0, 255, 96 * 128 * 3).reshape(96, 128, 3).astype(np.uint8)
    path = write_video(tmp_path / "slope.mp4", np.stack([slope] * 3), crf="5")
    full = read_frames(path, [1], decoder=decoder)[0].astype(float)
    half = read_frames(path, [1], height=48, width=64, decoder=decoder)[0].astype(float)
    quarter = read_frames(path, [1], height=12, width=16, decoder=decoder)[0].astype(float)
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


def test_gaps_are_filled_only_inside_a_clip_and_where_key_frames_are_dense() -> None:
    two_clips = np.array([2, 5, 40, 43])
    assert fill_gaps(two_clips, 12).tolist() == [2, 3, 4, 5, 40, 41, 42, 43]
    assert fill_gaps(two_clips, 250).tolist() == [2, 5, 40, 43]
    assert fill_gaps(two_clips, 0).tolist() == [2, 5, 40, 43]


@both
def test_avi_with_b_frames_is_exact_read_in_order(tmp_path: Path, decoder: str) -> None:
    path = write_video(tmp_path / "xvid.avi", numbered(60), "mpeg4", b_frames=2)
    frames = read_frames(path, WANTED, verdict="sequential", decoder=decoder)
    assert numbers_of(frames) == WANTED


@both
def test_errors_name_the_file(tmp_path: Path, video: Path, decoder: str) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video at all", encoding="utf-8")
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(video.read_bytes()[:2000])
    for path in (text, torn, tmp_path / "absent.mp4", tmp_path):
        for verdict in ("random", "sequential"):
            with pytest.raises(InputError, match=str(path)):
                read_frames(path, [0], decoder=decoder, verdict=verdict)
    with pytest.raises(InputError, match=r"has 60 frames, frame 60 was asked for"):
        read_frames(video, [60], decoder=decoder)
    with pytest.raises(ValueError, match="non-empty"):
        read_frames(video, [], decoder=decoder)


@pytest.mark.parametrize(
    "wrong", [{"decoder": "opencv"}, {"verdict": "reject"}, {"rotation": 45}, {"rotation": -90}]
)
def test_what_cannot_be_asked_for_is_refused(video: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        read_frames(video, [0], **wrong)  # type: ignore[arg-type]


@both
@pytest.mark.parametrize(
    "text",
    ["http://127.0.0.1:9/x.mp4", "concat:{0}|{0}", "subfile,,start,0,end,900,,:{0}", "file:{0}",
     "data:video/mp4;base64,AAAA", "pipe:0", "/dev/zero"],
)  # fmt: skip
def test_only_files_are_opened(video: Path, decoder: str, text: str) -> None:
    with pytest.raises(InputError, match="is not a file"):
        read_frames(text.format(video), [0], decoder=decoder)


@both
@pytest.mark.parametrize("name", ["a:b.mp4", "-%03d #1.mp4", "http:x,|.mp4"])
def test_names_that_look_like_something_else_are_files_all_the_same(
    video: Path, tmp_path: Path, decoder: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(video.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert numbers_of(read_frames(name, WANTED, decoder=decoder)) == WANTED


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:1,\n{0}\n", "ffconcat version 1.0\nfile {0}\n"])
def test_a_list_of_files_is_no_video(video: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.mp4"
    path.write_text(text.format(video), encoding="utf-8")
    with pytest.raises(av.FFmpegError), open_container(path):
        pass


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@both
def test_nothing_of_a_reader_lives_on(video: Path, decoder: str) -> None:
    tasks, files = Path("/proc/self/task"), Path("/proc/self/fd")
    read_frames(video, WANTED, decoder=decoder)
    threads, opened = set(tasks.iterdir()), len(list(files.iterdir()))
    read_frames(video, WANTED, decoder=decoder)
    assert set(tasks.iterdir()) <= threads
    assert len(list(files.iterdir())) == opened


@both
def test_a_fork_after_reading_can_read(video: Path, decoder: str) -> None:
    read_frames(video, WANTED, decoder=decoder)
    child = os.fork()
    if child == 0:
        right = False
        try:
            right = numbers_of(read_frames(video, WANTED, decoder=decoder)) == WANTED
        finally:
            os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_pictures_are_upright_for_every_decoder(tmp_path: Path, quarters: int, ending: str) -> None:
    """Of the decoders only PyAV shows what is stored: decord turns MP4 and MOV, but not MKV."""
    upright = corpus.draw(8, 50, 70)
    stored = np.ascontiguousarray(np.rot90(upright, quarters, axes=(1, 2)))
    path = tmp_path / f"turned.{ending}"
    corpus.write(path, stored, rotation=-90 * quarters)
    with open_container(path) as container:
        rotation = rotation_of(next(container.decode(video_stream(container))))
    assert rotation == 90 * quarters
    sizes: list[dict[str, Any]] = [{}, {"height": 40, "width": 90}, {"short_side": 30}]
    for decoder in DECODERS:
        for size in sizes:
            frames = read_frames(path, [6, 2], decoder=decoder, rotation=rotation, **size)
            assert frames.shape[1:3] == {0: (50, 70), 2: (40, 90), 1: (30, 42)}[len(size)]
            assert corpus.read_numbers(frames) == [6, 2]
        full = read_frames(path, range(8), decoder=decoder, rotation=rotation)
        assert np.abs(full.astype(int) - upright).mean() < 12


def test_a_mirrored_or_tilted_picture_has_no_rotation(tmp_path: Path) -> None:
    for name, turn in (("mirrored", (0, True)), ("tilted", (45, False))):
        path = tmp_path / f"{name}.mp4"

        def setup(stream: av.VideoStream, turn: tuple[int, bool] = turn) -> None:
            stream.set_display_rotation(turn[0], hflip=turn[1])

        corpus.write(path, corpus.draw(2), setup=setup)
        with open_container(path) as container, pytest.raises(ValueError, match="mirrored"):
            rotation_of(next(container.decode(video_stream(container))))


def test_decoders_are_listed_with_the_ffmpeg_they_carry() -> None:
    found = decoder_versions()
    assert {"decord", "pyav"} <= set(found)
    assert found["pyav"].version == av.__version__
    assert found["pyav"].ffmpeg == av.ffmpeg_version_info
    if found["decord"].version == "0.6.0":
        assert found["decord"].ffmpeg == "4.1.6"
        assert found["decord"].known_old


def test_an_ffmpeg_is_known_to_be_old_before_the_repaired_release_of_its_branch() -> None:
    for old in ("4.1.6", "4.4.9", "n5.1", "5.1.9", "6.1.5", "7.0.9", "7.1.4", "8.0.2", "8.1.1"):
        assert known_old(old), old
    for good in ("5.1.10", "6.1.6", "7.1.5", "8.1.2", "8.2", "9.0", "5.1.9-0+deb12u1", "unknown"):
        assert not known_old(good), good


def test_a_missing_torchcodec_is_said_with_the_remedy(video: Path) -> None:
    if importlib.util.find_spec("torchcodec") is not None:
        pytest.skip("torchcodec is installed")
    with pytest.raises(ConfigurationError, match="set decoder to pyav"):
        read_frames(video, [0], decoder="torchcodec")


def test_torchcodec_gives_the_same_frames(video: Path, tmp_path: Path) -> None:
    if "torchcodec" not in decoder_versions():
        pytest.skip("torchcodec cannot be imported")
    stored = np.ascontiguousarray(np.rot90(corpus.draw(8, 50, 70), 1, axes=(1, 2)))
    turned = corpus.write(tmp_path / "turned.mp4", stored, rotation=-90)
    for verdict in ("random", "sequential"):
        frames = read_frames(video, WANTED, decoder="torchcodec", verdict=verdict)
        assert numbers_of(frames) == WANTED
        small = read_frames(
            turned, [6, 2], short_side=40, decoder="torchcodec", rotation=90, verdict=verdict
        )
        assert small.shape == (2, 40, 56, 3)
        assert corpus.read_numbers(small) == [6, 2]
    with pytest.raises(InputError, match=r"has 60 frames, frame 60 was asked for"):
        read_frames(video, [60], decoder="torchcodec")


@pytest.mark.parametrize(
    "name", ["tc_nasa_vfr.mp4", "tc_edit_list_discards_frames.mp4", "tc_mpeg1_program_stream.mpg",
             "tc_vp9.webm", "tc_non_zero_start_pts.mp4", "tc_odd_dims_321x241_h264_444.mp4"],
)  # fmt: skip
def test_awkward_real_files_give_the_frames_of_a_full_decode(name: str) -> None:
    path = real_data("nasty") / name
    with av.open(str(path)) as container:
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    wanted = [len(truth) - 1, 1, len(truth) // 3, len(truth) // 2]
    for decoder, verdict in (("pyav", "random"), ("pyav", "sequential"), ("decord", "sequential")):
        read = read_frames(path, wanted, verdict=verdict, decoder=decoder)
        for number, frame in zip(wanted, read, strict=True):
            assert np.abs(frame.astype(int) - truth[number]).mean() < 4


@pytest.mark.parametrize(
    "name", ["decord_rot90_3frames.mov", "decord_rot180_3frames.mov", "decord_rot270_3frames.mov",
             "tc_nasa_rotated90.mp4"],
)  # fmt: skip
def test_real_rotated_files_are_turned_alike(name: str) -> None:
    path = real_data("nasty") / name
    with open_container(path) as container:
        frame = next(container.decode(video_stream(container)))
    rotation = rotation_of(frame)
    truth = np.rot90(frame.to_ndarray(format="rgb24"), -rotation // 90)
    for decoder in DECODERS:
        (read,) = read_frames(path, [0], decoder=decoder, rotation=rotation)
        assert read.shape == truth.shape
        assert np.abs(read.astype(int) - truth).mean() < 2


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
