"""A stage goes on when what it says about itself cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import fsio
from orchestrator.notes import Notes
from orchestrator.store import StageDir


def lines_of(stage: StageDir) -> list[int]:
    return [value["step"] for _, value in fsio.read_json_lines(stage.metrics_file)]


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    (tmp_path / "stages" / "one").mkdir(parents=True)
    return StageDir(tmp_path / "stages" / "one")


def test_metrics_wait_in_memory_while_they_cannot_be_written(
    stage: StageDir, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = Notes(stage)
    notes.metrics({"step": 1})
    stage.metrics_file.rename(stage.path / "kept")
    stage.metrics_file.mkdir()  # as good as a disk that takes nothing, also for root
    notes.metrics({"step": 2})
    notes.metrics({"step": 3})
    stage.metrics_file.rmdir()
    (stage.path / "kept").rename(stage.metrics_file)
    notes.metrics({"step": 4})
    assert lines_of(stage) == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("metrics wait in memory") == 1


def test_progress_that_cannot_be_written_is_said_once(
    stage: StageDir, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = Notes(stage)
    stage.progress_file.mkdir()
    notes.progress({"step": 1})
    notes.progress({"step": 2})
    assert capsys.readouterr().err.count("progress is not shown") == 1


def test_a_line_behind_a_torn_one_is_not_lost(stage: StageDir) -> None:
    stage.metrics_file.write_text('{"step": 1}\n{"st')
    Notes(stage).metrics({"step": 2})
    assert lines_of(stage) == [1, 2]
