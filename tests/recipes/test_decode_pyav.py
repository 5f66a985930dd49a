"""The PyAV reader finds frames by the time stamps of packets, and doubts what it cannot check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.contract import InputError
from recipes.data import timeline
from recipes.data.decode import open_container, read_frames, video_stream
from recipes.data.timeline import DoubtError, Timeline, from_index, look
from tests.recipes import corpus_edits as edits
from tests.recipes.corpus import draw, read_numbers, write

WANTED = [41, 3, 3, 58, 17]
EVEN = {"sc_threshold": "0"}  # no further key frames where the picture changes
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pyav") / "plain.mp4", draw(60), options=EVEN)


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyav") / "reordered.mkv"
    return write(path, draw(60), b_frames=3, options=EVEN)


def looked_at(path: Path) -> Timeline:
    with open_container(path) as container:
        return look(container, video_stream(container))[0]


def read(path: Path, **arguments: Any) -> list[int]:
    return read_numbers(read_frames(path, WANTED, decoder="pyav", **arguments))


def test_the_table_in_the_header_tells_the_same_as_the_packets(plain: Path) -> None:
    with open_container(plain) as container:
        table = from_index(container, video_stream(container))
    packets = looked_at(plain)
    assert table is not None
    for name in ("times", "packets", "keys", "key_times"):
        assert np.array_equal(getattr(table, name), getattr(packets, name))
    assert packets.keys.tolist() == [0, 12, 24, 36, 48]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("b.mp4", {"b_frames": 2}), ("a.mkv", {}), ("mpeg4.mp4", {"codec": "mpeg4"}),
     ("fragments.mp4", {"container": FRAGMENTS}), ("cut.mp4", {"edit": edits.shift(-17)})],
)  # fmt: skip
def test_the_table_in_the_header_is_not_used_where_it_says_too_little(
    tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    path = write(tmp_path / name, draw(40), **settings)
    with open_container(path) as container:
        assert from_index(container, video_stream(container)) is None


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [("same.mp4", {"b_frames": 2, "edit": edits.same_time(31)}, "one time stamp"),
     ("packed.avi", {"codec": "mpeg4", "b_frames": 1, "edit": edits.pack_b_frames}, "one picture"),
     ("fast.mkv", {"edit": edits.faster(3000)}, "do not ascend"),
     ("late.ts", {"edit": edits.drop(5)}, "no key frame"),
     ("stored.mp4", {"b_frames": 2, "edit": edits.shown_as_stored}, "are reordered")],
)  # fmt: skip
def test_doubtful_time_stamps_are_not_used_and_the_frames_are_right_all_the_same(
    tmp_path: Path, name: str, settings: dict[str, Any], reason: str
) -> None:
    path = write(tmp_path / name, draw(60), **settings)
    with pytest.raises(DoubtError, match=reason):
        looked_at(path)
    wanted = [40, 3, 17]
    in_order = read_frames(path, wanted, decoder="pyav", verdict="sequential")
    assert np.array_equal(read_frames(path, wanted, decoder="pyav"), in_order)


@pytest.mark.parametrize(
    "settings",
    [{"gop": 30, "edit": edits.flag_all_as_key}, {"gop": 30, "edit": edits.flag_some_as_key},
     {"edit": edits.flag_first_as_key}, {"options": {"intra-refresh": "1"}},
     {"b_frames": 3, "gop": 15, "options": {"x264-params": "open-gop=1"}}],
)  # fmt: skip
def test_key_frames_that_are_none_do_not_lead_to_wrong_frames(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = write(tmp_path / "keys.mp4", draw(60), **settings)
    for number in (1, 13, 29, 44, 59):
        assert read_numbers(read_frames(path, [number], decoder="pyav")) == [number]
    assert read(path) == WANTED


def test_only_the_packets_of_each_clip_are_decoded(reordered: Path, plain: Path) -> None:
    from recipes.data.decode import Request, Target
    from recipes.data.decode_pyav import _spans

    for path in (plain, reordered):
        clips = np.array([2, 4, 6, 40, 42])
        request = Request(
            path=path, numbers=clips, target=Target(), sequential=False, gop=12, rotation=0
        )
        first, second = _spans(looked_at(path), request)
        assert (first.first, first.start, first.stop) == (0, 0, 7)
        assert (second.first, second.start, second.stop) == (36, 36, 43)
        assert first.last <= 8
        assert second.last <= 44


def test_a_file_too_large_to_keep_its_packets_is_read_twice(
    reordered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "_HELD_BYTES", 1000)
    with open_container(reordered) as container:
        assert look(container, video_stream(container))[1] == []
    assert read(reordered) == WANTED


def test_damage_is_an_error_and_not_a_frame(reordered: Path, tmp_path: Path) -> None:
    with open_container(reordered) as container:
        packets = [packet for packet in container.demux(video_stream(container)) if packet.size]
        spots = [(packet.pos or 0, packet.size) for packet in packets[20:40]]
    data = bytearray(reordered.read_bytes())
    for start, size in spots:
        data[start + size // 2 : start + size - 2] = bytes(size - 2 - size // 2)
    path = tmp_path / "damaged.mkv"
    path.write_bytes(data)
    for verdict in ("random", "sequential"):
        with pytest.raises(InputError, match=rf"{path}: .*(damaged|cannot be decoded)"):
            read_frames(path, range(60), decoder="pyav", verdict=verdict)


def test_a_frame_after_the_last_is_refused_with_the_number_of_frames(
    plain: Path, reordered: Path
) -> None:
    for path in (plain, reordered):
        for verdict in ("random", "sequential"):
            with pytest.raises(InputError, match=r"has 60 frames, frame 60 was asked for"):
                read_frames(path, [0, 60], decoder="pyav", verdict=verdict)


def test_the_film_is_read_and_not_the_cover_picture(tmp_path: Path) -> None:
    path = tmp_path / "cover.mp4"
    edits.with_cover(path, cover_first=True)
    assert read(path) == WANTED
