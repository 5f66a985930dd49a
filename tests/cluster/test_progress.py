"""What counts as committed work: whole checkpoints, and lines of journals."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import fsio
from cluster.progress import committed_step, has_committed


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return fsio.make_dir(tmp_path / "checkpoints")


def commit(checkpoints: Path, step: int, suffix: str = "") -> None:
    folder = fsio.make_dir(checkpoints / f"step_{step:09d}{suffix}")
    fsio.write_json(folder / "manifest.json", {"step": step})


def test_a_stage_without_a_folder_has_nothing(tmp_path: Path) -> None:
    assert committed_step(tmp_path) == 0
    assert not has_committed(tmp_path)


def test_only_committed_checkpoints_count(tmp_path: Path, checkpoints: Path) -> None:
    fsio.make_dir(checkpoints / "step_000000200")
    commit(checkpoints, 300, suffix=".tmp")
    assert not has_committed(tmp_path)
    commit(checkpoints, 90)
    commit(checkpoints, 100)
    assert committed_step(tmp_path) == 100
    assert has_committed(tmp_path)


def test_each_whole_line_of_a_journal_counts(tmp_path: Path, checkpoints: Path) -> None:
    journal = checkpoints / "files.jsonl"
    journal.touch()
    assert not has_committed(tmp_path)
    for number in range(3):
        fsio.append_json_line(journal, {"path": f"{number}.mp4"})
    with journal.open("a") as stream:
        stream.write('{"path": "torn')
    assert committed_step(tmp_path) == 3
    assert has_committed(tmp_path)
