"""The index stage: what it finds in good and bad files, what it writes, when it refuses."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.contract import (
    Artifact,
    ConfigurationError,
    InputError,
    Preempted,
    Progress,
    StageResult,
)
from recipes.data.probe import probe
from recipes.data.table import load_table
from recipes.data.workers import map_expendable
from recipes.stages.index.config import IndexConfig
from recipes.stages.index.run import run
from tests.recipes.data_files import (
    context,
    index,
    numbered,
    real_data,
    warm_workers,
    write_set,
    write_video,
)

SOUND = 8


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv of eight sound videos, an AVI with B-frames, and six that cannot be used."""
    root = tmp_path_factory.mktemp("mixed")
    file = write_set(root, SOUND)
    write_video(root / "bframes.avi", numbered(50), "mpeg4", b_frames=2)
    sound = (root / "odd/001.mp4").read_bytes()
    (root / "torn.mp4").write_bytes(sound[: len(sound) // 2])
    (root / "text.mp4").write_text("#EXTM3U\nhttp://localhost:1/x.ts\n")
    (root / "script.mp4").write_text("ffconcat version 1.0\nfile odd/001.mp4\n")
    (root / "empty.mp4").write_bytes(b"")
    with file.open("a", encoding="utf-8") as stream:
        for name in (
            "bframes.avi",
            "torn.mp4",
            "text.mp4",
            "script.mp4",
            "empty.mp4",
            "absent.mp4",
        ):
            stream.write(f"{name},odd,train,\n")
        stream.write("../outside.mp4,odd,train,\n")
    return file


@pytest.fixture(scope="module")
def indexed(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("indexed")
    return index(folder, format="csv", name="mixed", file=str(mixed), max_bad_share=0.5)


def test_each_video_gets_a_row_with_what_was_found(indexed: Artifact) -> None:
    frame = pd.read_parquet(indexed.path).set_index("path")
    assert len(frame) == SOUND + 7
    row = frame.loc["odd/001.mp4"]
    assert (row["frames"], row["fps"], row["width"], row["height"]) == (41, 25.0, 64, 48)
    assert (row["codec"], row["gop"], row["verdict"], row["label_id"]) == ("h264", 12, "random", 1)
    assert (row["split"], row["group"]) == ("train", "scene1")
    assert row["bytes"] > 0
    assert frame.loc["bframes.avi", "verdict"] == "sequential"
    assert frame.loc["bframes.avi", "frames"] == 50


def test_bad_files_are_rejected_each_with_its_reason(indexed: Artifact) -> None:
    frame = pd.read_parquet(indexed.path).set_index("path")
    reasons = frame.loc[frame["verdict"] == "reject", "reason"].to_dict()
    assert set(reasons) == {
        "torn.mp4", "text.mp4", "script.mp4", "empty.mp4", "absent.mp4", "../outside.mp4",
    }  # fmt: skip
    assert reasons["absent.mp4"] == "missing"
    assert reasons["../outside.mp4"].startswith("the path leaves the root")
    assert "is damaged" in reasons["torn.mp4"]
    with (indexed.path.parent / "excluded.csv").open(encoding="utf-8") as stream:
        assert {row["path"]: row["reason"] for row in csv.DictReader(stream)} == reasons


def test_the_artifact_describes_itself(indexed: Artifact, mixed: Path) -> None:
    assert indexed.meta["name"] == "mixed"
    assert indexed.meta["root"] == str(mixed.parent.resolve())
    assert indexed.meta["classes"] == ["even", "odd"]
    assert indexed.meta["counts"] == {"test": 2, "train": SOUND - 2 + 1}
    assert (indexed.meta["videos"], indexed.meta["listed"]) == (SOUND + 1, SOUND + 7)
    assert (indexed.path.parent / "figures" / "videos.png").stat().st_size > 5000


def test_the_same_files_give_the_same_bytes(indexed: Artifact, mixed: Path, tmp_path: Path) -> None:
    again = index(tmp_path, format="csv", name="again", file=str(mixed), max_bad_share=0.5)
    assert again.sha256 == indexed.sha256


def test_too_many_bad_videos_end_the_stage_and_the_report_stays(
    mixed: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"mixed: 6 of 15 videos cannot be used .* share of 0.3"
    ) as error:
        index(tmp_path, format="csv", name="mixed", file=str(mixed), max_bad_share=0.3)
    assert str(tmp_path / "excluded.csv") in str(error.value)
    assert not (tmp_path / "index.parquet").exists()
    assert len((tmp_path / "excluded.csv").read_text().splitlines()) == 7


def test_tables_leave_out_rejected_and_short_videos_and_know_the_coverage(
    indexed: Artifact,
) -> None:
    train = load_table(indexed, "train")
    assert (len(train), train.total) == (SOUND - 2 + 1, SOUND - 2 + 7)
    assert train.coverage == pytest.approx(7 / 13)
    assert len(load_table(indexed, "all")) == SOUND + 1
    long = load_table(indexed, "train", min_frames=42)
    assert (len(long), long.total) == (3, 13)
    assert long.frames.min() == 42
    with pytest.raises(InputError, match=r"no usable video in split 'train' .*longest 50 frames"):
        load_table(indexed, "train", min_frames=51)
    with pytest.raises(InputError, match="no usable video in split 'val'"):
        load_table(indexed, "val")
    with pytest.raises(ConfigurationError, match="mixed has no split 1"):
        load_table(indexed, "train", fold=1)


def test_selecting_rows_keeps_arrays_aligned_and_coverage(indexed: Artifact) -> None:
    table = load_table(indexed, "train")
    part = table.select([4, 1])
    assert part.paths == (table.paths[4], table.paths[1])
    assert part.labels.tolist() == table.labels[[4, 1]].tolist()
    assert part.coverage == pytest.approx(table.coverage, abs=0.1)


def test_a_file_that_is_no_index_is_refused(indexed: Artifact, mixed: Path) -> None:
    from dataclasses import replace

    with pytest.raises(InputError, match="not a readable index"):
        load_table(replace(indexed, path=mixed), "train")


def test_official_folds_become_columns(tmp_path: Path) -> None:
    root = tmp_path / "hmdb"
    lines: list[list[str]] = [[], [], []]
    for number in range(6):
        name = f"clip_[{number}]_wave_x.avi"
        write_video(root / "wave" / name, numbered(12), "mpeg4")
        for fold in range(3):
            lines[fold].append(f"{name} {(number + fold) % 3} \n")
    for fold in range(3):
        (root / f"wave_test_split{fold + 1}.txt").write_text("".join(lines[fold]))
    artifact = index(tmp_path / "out", format="hmdb51", root=str(root), lists=".")
    assert artifact.meta["folds"] == [1, 2, 3]
    for fold in range(3):
        table = load_table(artifact, "train", fold=fold + 1)
        numbers = [int(Path(path).name[6]) for path in table.paths]
        assert numbers == [n for n in range(6) if (n + fold) % 3 == 1]
    assert load_table(artifact, "train").paths == load_table(artifact, "train", fold=1).paths
    assert len(load_table(artifact, "all")) == 6


def test_other_ranks_have_nothing_to_do(tmp_path: Path) -> None:
    config = IndexConfig.model_validate(
        {"data": {"format": "folder", "name": "none", "root": "/nonexistent"}}
    )
    assert run(context(tmp_path, rank=1, world_size=2), config) == StageResult()


def test_stopping_ends_the_stage_as_preempted(mixed: Path, tmp_path: Path) -> None:
    config = IndexConfig.model_validate(
        {"data": {"format": "csv", "name": "x", "file": str(mixed)}, "workers": 1}
    )
    with pytest.raises(Preempted):
        run(context(tmp_path, stop_requested=lambda: True), config)


def test_progress_is_reported_up_to_the_last_video(mixed: Path, tmp_path: Path) -> None:
    reports: list[Progress] = []
    config = IndexConfig.model_validate(
        {"data": {"format": "csv", "name": "x", "file": str(mixed), "max_bad_share": 1.0}}
    )
    run(context(tmp_path, report_progress=reports.append), config)
    assert (reports[-1].phase, reports[-1].step, reports[-1].steps) == ("index", 14, 14)


def test_damage_in_the_picture_data_is_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    path = write_video(tmp_path / "noise.mp4", noise)
    assert probe(path).verdict == "random"
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 2000
    rejected = 0
    for place in range(start, start + 20_000, 2000):
        damaged = data.copy()
        damaged[place : place + 40] = bytes(40)
        path.write_bytes(damaged)
        rejected += probe(path).verdict == "reject"
    assert rejected >= 5  # not all: an entropy decoder may come to sense in the same slice


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("decord_corrupted.mp4", "reject", "is damaged"),
        ("decord_rot90_3frames.mov", "random", ""),
        ("decord_rot180_3frames.mov", "random", ""),
        ("tc_nasa_rotated90.mp4", "random", ""),
        ("tc_audio_only.mp3", "reject", "not a video of a known container"),
        ("tc_animated.gif", "reject", "not a video of a known container"),
        ("tc_av1.mkv", "reject", "or set data.decoder: pyav"),
        ("tc_edit_list_discards_frames.mp4", "sequential", "an edit list leaves out frames"),
        ("tc_mpeg1_program_stream.mpg", "sequential", "its container has no index"),
        ("tc_one_frame_mpeg4.mp4", "random", ""),
        ("tc_nasa_vfr.mp4", "random", ""),
        ("tc_h264_10bit.mp4", "random", ""),
        ("tc_vp8.webm", "random", ""),
    ],
)
def test_real_files_that_break_decoders_get_a_verdict(name: str, verdict: str, reason: str) -> None:
    found = probe(real_data("nasty") / name)
    assert found.verdict == verdict
    assert reason in found.reason
    assert (found.frames > 0) == (found.mendable or verdict == "random")


def test_the_real_clips_are_all_usable(tmp_path: Path) -> None:
    file = real_data("tennis7.csv")
    artifact = index(tmp_path, format="csv", name="tennis7", file=str(file))
    train, test = load_table(artifact, "train"), load_table(artifact, "test")
    assert (len(train), len(test), train.coverage) == (273, 98, 1.0)
    assert len(train.classes) == 7
    assert set(train.verdicts) == {"random"}
    assert (min(train.frames.min(), test.frames.min()), train.frames.max()) == (59, 63)
    assert not set(train.groups) & set(test.groups)


def _fragile(item: str) -> str:
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hang":
        time.sleep(60)
    return item.upper()


def test_a_decoder_that_crashes_or_hangs_costs_only_its_file() -> None:
    warm_workers()
    items = ["a", "crash", "b", "c", "hang", "d", "crash", "e"]
    done: list[int] = []
    results = map_expendable(
        _fragile,
        items,
        workers=2,
        seconds=1,
        crashed=lambda item: f"lost {item}",
        on_result=done.append,
    )
    assert results == ["A", "lost crash", "B", "C", "lost hang", "D", "lost crash", "E"]
    assert done[-1] == len(items)


def test_an_error_of_the_function_itself_is_raised() -> None:
    warm_workers()
    with pytest.raises(TypeError):
        map_expendable(len, [3], workers=1, seconds=5, crashed=lambda item: -1)  # type: ignore[list-item]


def test_configurations_import_nothing_heavy() -> None:
    script = (
        "import sys, recipes.data.config, recipes.stages.index.config\n"
        "heavy = {'torch', 'numpy', 'pandas', 'av', 'decord', 'sklearn', 'matplotlib', 'mlflow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
