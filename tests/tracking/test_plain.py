"""What a stage's own code logs with plain `mlflow.log_*`."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient, search_runs

from tests.tracking.fabricate import Stage, make_pipeline
from tracking.server import Server

# A rank whose method logs by itself, as early as it can, and ends as `orchestrator.entry` does.
RANK = """
import os, sys
from pathlib import Path
from cluster import fsio
from tests.tracking.fabricate import Stage
from tracking import outbox, plain

folder, rank, uri = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
box = outbox.start(folder, 1) if rank == 0 and uri else None
plain.aim_at_run(folder, rank, uri, box)
assert "mlflow" not in sys.modules
import mlflow

mlflow.log_metric("mine", 0.25, step=3)
mlflow.log_param("trick", "on")
mlflow.log_text("seen", "notes/own.txt") if os.environ["MLFLOW_TRACKING_URI"] == uri else None
stage = Stage(folder, "pretrain", "pretrain", fsio.read_json(folder / "stage.json")["key"])
stage.metrics("s001r000", range(5))
stage.result("s001r000", {}, {}, 4)
stage.end("s001r000", "succeeded", 4)
if box:
    box.finish(300)
os._exit(0)
"""


def _rank(stage: Stage, uri: str, rank: int = 0, **more: str) -> float:
    """Run one rank to its end; returns the seconds it took."""
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", RANK, str(stage.path), str(rank), uri],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **more},
        cwd=stage.path,
        check=True,
        timeout=200,
    )
    return time.monotonic() - started


def _stage(folder: Path, uri: str | None, mode: str = "online") -> Stage:
    run_id = f"run-{os.urandom(4).hex()}"
    stage = make_pipeline(folder / "store", run_id, uri, ["pretrain"], mode).stages["pretrain"]
    stage.start("s001r000")
    return stage


def _own(stage: Stage, rank: int) -> list[tuple[str, float]]:
    with sqlite3.connect(stage.path / "own-mlflow" / f"rank{rank}.db") as database:
        return database.execute("select key, value from metrics").fetchall()


def test_calls_of_a_method_land_in_the_run_of_its_stage(
    tmp_path: Path, mlflow_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _stage(tmp_path, mlflow_server.url)
    _rank(stage, mlflow_server.url)
    client = MlflowClient(mlflow_server.url)
    run = client.get_run(stage.tracking()["mlflow_run_id"])
    assert (run.data.metrics["mine"], run.data.params["trick"]) == (0.25, "on")
    assert [one.step for one in client.get_metric_history(run.info.run_id, "mine")] == [3]
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 5
    assert run.info.status == "FINISHED"
    assert [one.path for one in client.list_artifacts(run.info.run_id, "notes")]
    # What people do with it next.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    found = search_runs([run.info.experiment_id], "params.trick = 'on'", output_format="list")
    assert [one.info.run_id for one in found] == [run.info.run_id]
    assert not (stage.path / "own-mlflow").exists()


@pytest.mark.parametrize("mode", ["offline", "away"])
def test_without_a_server_calls_neither_fail_nor_wait_and_are_kept_in_the_folder_of_the_stage(
    tmp_path: Path, mode: str
) -> None:
    uri = "http://127.0.0.1:9"
    stage = _stage(tmp_path, uri, "offline" if mode == "offline" else "online")
    assert _rank(stage, uri) < 120
    assert _own(stage, 0) == [("mine", 0.25)]


def test_of_the_other_ranks_each_has_a_place_of_its_own(tmp_path: Path, sqlite_uri: str) -> None:
    stage = _stage(tmp_path, sqlite_uri)
    _rank(stage, sqlite_uri, rank=3)
    assert _own(stage, 3) == [("mine", 0.25)]
    assert not (stage.path / "tracking.json").exists()


def test_an_address_that_the_user_chose_is_left_alone(tmp_path: Path, sqlite_uri: str) -> None:
    stage = _stage(tmp_path, sqlite_uri)
    mine = f"sqlite:///{tmp_path}/mine.db"
    _rank(stage, sqlite_uri, rank=1, MLFLOW_TRACKING_URI=mine)
    assert not (stage.path / "own-mlflow").exists()
    assert (tmp_path / "mine.db").exists()
