"""Synthetic videos: drawn the same each time, and only motion tells their classes, in the files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from cluster import fsio
from recipes.data.config import SyntheticData
from recipes.data.controls import chance_interval, measure_controls, motion_accuracy
from recipes.data.decode import read_frames
from recipes.data.synthetic import DIRECTIONS, class_of, draw, encode, scan, video_path
from recipes.data.table import VideoTable, load_table
from tests.recipes.data_files import index, warm_workers

TRAIN, TEST = 400, 400


@pytest.fixture(scope="module", params=["motion", "static"])
def tables(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VideoTable, VideoTable]:
    folder = tmp_path_factory.mktemp(f"synthetic-{request.param}")
    artifact = index(folder, format="synthetic", variant=request.param, train=TRAIN, test=TEST)
    return load_table(artifact, "train"), load_table(artifact, "test")


def test_the_index_finds_all_videos_usable_and_balanced(
    tables: tuple[VideoTable, VideoTable],
) -> None:
    for table, count in zip(tables, (TRAIN, TEST), strict=True):
        assert (len(table), table.coverage) == (count, 1.0)
        assert np.bincount(table.labels).tolist() == [count // 4] * 4
        assert set(table.frames.tolist()) == {20}
        assert set(table.verdicts) == {"random"}
        assert table.classes == tuple(DIRECTIONS)


def test_no_shortcut_in_the_files_beats_a_guess(tables: tuple[VideoTable, VideoTable]) -> None:
    controls = measure_controls(*tables)
    assert {control.shortcut for control in controls} == {"one frame", "mean colours", "file size"}
    assert len(controls) == 6
    for control in controls:
        assert control.at_chance, control


def test_the_direction_is_in_the_files(tables: tuple[VideoTable, VideoTable]) -> None:
    assert motion_accuracy(tables[1]) > 0.95


def test_the_controls_find_a_shortcut_that_is_there(
    tables: tuple[VideoTable, VideoTable],
) -> None:
    from dataclasses import replace

    leaky = [replace(table, bytes=table.bytes + 3000 * table.labels) for table in tables]
    found = {
        c.shortcut: c for c in measure_controls(*leaky) if c.classifier != "logistic regression"
    }
    assert not found["file size"].at_chance
    assert found["file size"].accuracy > 0.4
    assert found["one frame"].at_chance


@pytest.mark.parametrize("variant", ["motion", "static"])
def test_encoding_keeps_the_pictures(variant: Literal["motion", "static"], tmp_path: Path) -> None:
    config = SyntheticData(variant=variant)
    for number in range(4):
        frames = draw(config, "train", number)
        encode(frames, tmp_path / "video.mp4")
        read = read_frames(tmp_path / "video.mp4", range(len(frames)))
        error = (read.astype(float) - frames) @ [0.299, 0.587, 0.114]
        assert 20 * np.log10(255 / error.std()) > 36  # dB, of luma


@pytest.mark.parametrize("variant", ["motion", "static"])
def test_a_video_is_a_function_of_seed_split_and_number(
    variant: Literal["motion", "static"],
) -> None:
    config = SyntheticData(variant=variant)
    first = draw(config, "train", 5)
    assert first.shape == (20, 32, 32, 3)
    assert np.array_equal(first, draw(config, "train", 5))
    assert np.array_equal(first, draw(config.model_copy(update={"train": 7}), "train", 5))
    for other in (
        draw(config, "test", 5),
        draw(config, "train", 9),
        draw(config.model_copy(update={"seed": 1}), "train", 5),
    ):
        assert np.abs(first.astype(int) - other).mean() > 5


def test_files_are_the_same_bytes_each_time_with_any_number_of_workers(tmp_path: Path) -> None:
    warm_workers()
    config = SyntheticData(train=60, test=8, classes=2, size=16)
    one, two = scan(config, tmp_path / "a", 1), scan(config, tmp_path / "b", 2)
    assert one.rows == two.rows
    assert one.classes == ("left", "right")
    for row in one.rows:
        files = [listing.root / row.path for listing in (one, two)]
        assert fsio.sha256_file(files[0]) == fsio.sha256_file(files[1])
        assert files[0].stat().st_mtime_ns == files[1].stat().st_mtime_ns


def test_the_object_moves_as_its_class_says_at_the_agreed_speed() -> None:
    config = SyntheticData(variant="static", size=64, frames=12)
    for number in range(8):
        frames = draw(config, "train", number).astype(float).mean(axis=-1)
        moving = np.abs(frames - np.median(frames, axis=0))
        angle = np.exp(2j * np.pi * np.arange(64) / 64)
        down = np.unwrap(np.angle((moving.sum(axis=2) * angle).sum(axis=1))) * 64 / (2 * np.pi)
        right = np.unwrap(np.angle((moving.sum(axis=1) * angle).sum(axis=1))) * 64 / (2 * np.pi)
        travelled = np.array([down[-1] - down[0], right[-1] - right[0]])
        step = DIRECTIONS[class_of(config, number)]
        assert travelled @ step > 11 * 2 * 0.5  # at least half the way: the median hides a part
        assert np.abs(travelled).argmax() == np.abs(step).argmax()


def test_paths_name_split_and_class() -> None:
    assert video_path(SyntheticData(), "test", 6) == "test/up/00006.mp4"


def test_the_interval_of_chance_is_the_binomial_one() -> None:
    low, high = chance_interval(0.25, 600)
    assert (low * 600, high * 600) == pytest.approx((123, 178), abs=1)  # 150 +- 2.58 x 10.6
    rng = np.random.default_rng(0)
    guesses = rng.binomial(600, 0.25, 20_000) / 600
    inside = ((guesses >= low) & (guesses <= high)).mean()
    assert 0.985 < inside < 0.996
    assert chance_interval(0.5, 1, 0.9) == (0.0, 1.0)
