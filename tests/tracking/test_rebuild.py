"""What a lost database had is made again from the store, and is the same."""

from __future__ import annotations

import contextlib
import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from cluster import fsio
from cluster.contract import Phase
from tests.orchestrator.fabricated import FakeExecutor
from tests.tracking.conftest import Invoke
from tests.tracking.dump import dump
from tests.tracking.fabricate import Pipeline, Stage, finish_all, make_pipeline
from tracking import delivering
from tracking.stagefiles import StageFiles


def _job(stage: Stage, submission: int = 1) -> None:
    """What the outbox of a job that has ended delivers."""
    files = StageFiles(stage.path)
    target = files.target(submission)
    assert target is not None
    assert delivering.deliver(files, target, lambda _: True) == 0


def _finished_after_many_troubles(pipeline: Pipeline) -> None:
    """Preempted, diverged for good, resumed, set back to an older checkpoint, finished."""
    finish_all(pipeline)
    for name in ("data-ucf101", "pretrain", "probe", "report"):
        (pipeline.stages[name].path / "result.json").rename(
            pipeline.stages[name].path / "later.json"
        )
    stage = pipeline.stages["pretrain"]
    (stage.path / "metrics.jsonl").unlink()
    _finish(pipeline.stages["data-ucf101"])
    _job(pipeline.stages["data-ucf101"])
    stage.metrics("s001r000", range(10))
    stage.checkpoint(6)
    stage.end("s001r000", "preempted", 6, 75, cause="preempted")
    _job(stage)
    stage.start("s001r001")
    stage.metrics("s001r001", range(7, 16), late=100)
    stage.failure("s001r001", "loss is nan at step 15", "Traceback: DivergedError")
    stage.end("s001r001", "failed", 15, 72, cause="diverged", message="loss is nan at step 15")
    _job(stage)
    stage.submission(2, pipeline.tracking("pretrain"))
    config = fsio.read_json(stage.path / "stage.json")
    config["config"]["workers"] = 3
    fsio.write_json(stage.path / "stage.json", config)
    stage.start("s002r000")
    stage.metrics("s002r000", range(7, 26), late=200)
    stage.checkpoint(25)
    stage.end("s002r000", "preempted", 25, 75, cause="preempted")
    _job(stage, 2)
    stage.start("s002r001")
    stage.metrics("s002r001", range(20, 40), late=300)
    stage.end("s002r001", "succeeded", 39)
    _finish(stage)
    _job(stage, 2)
    for name in ("probe", "report"):
        _finish(pipeline.stages[name])
        _job(pipeline.stages[name])


def _finish(stage: Stage) -> None:
    (stage.path / "later.json").rename(stage.path / "result.json")


def _gone_in_other_ways(store: Path, uri: str) -> None:
    """A run with a lost stage, one that was cancelled, one that waits, one that diverges."""
    lost = make_pipeline(store, "r2", uri)
    lost.stages["pretrain"].start("s001r000")
    lost.stages["pretrain"].metrics("s001r000", range(5))
    cancelled = make_pipeline(store, "r3", uri)
    cancelled.stages["pretrain"].start("s001r000")
    cancelled.stages["pretrain"].end("s001r000", "preempted", 3, 75)
    fsio.write_json(
        cancelled.stages["pretrain"].path / "cancel.json", {"user": "ada", "host": "n", "at": 5.0}
    )
    diverged = make_pipeline(store, "r4", uri)
    stage = diverged.stages["pretrain"]
    stage.start("s001r000")
    stage.metrics("s001r000", range(5), loss=lambda step: math.nan if step == 4 else 1.0)
    stage.end("s001r000", "failed", 4, 72, cause="diverged", message="loss is nan at step 4")
    _job(stage)


def _second_run_of_the_same_stages(first: Pipeline) -> None:
    folder = fsio.make_dir(first.store / "runs" / "r1-again")
    for name in ("plan.json", "recipe.yaml"):
        shutil.copy(first.run_dir / name, folder / name)
    run = fsio.read_json(first.run_dir / "run.json")
    again = {"run_id": "r1-again", "created_at": run["created_at"] + 1}
    fsio.write_json(folder / "run.json", {**run, **again})


def _check_equal(found: dict[str, Any], before: dict[str, Any]) -> None:
    """Run by run and field by field, so that a difference can be read."""
    assert (found["experiments"], found["models"]) == (before["experiments"], before["models"])
    assert found["runs"].keys() == before["runs"].keys()
    for title, run in before["runs"].items():
        for name, value in run.items():
            assert found["runs"][title][name] == value, (title, name)


def _wipe(store: Path, empty: Path) -> None:
    """Into the same file, which MLflow keeps open in the process of this test."""
    with (
        contextlib.closing(sqlite3.connect(empty)) as source,
        contextlib.closing(sqlite3.connect(store / "mlflow.db")) as target,
    ):
        source.backup(target)
    shutil.rmtree(store / "mlartifacts")


def test_a_lost_database_is_rebuilt_from_the_store_and_is_equal(
    tmp_path: Path,
    sqlite_uri: str,
    empty_database: Path,
    orchestrate: Invoke,
    scheduler: FakeExecutor,
) -> None:
    store = tmp_path / "store"
    first = make_pipeline(store, "r1", sqlite_uri)
    _finished_after_many_troubles(first)
    _second_run_of_the_same_stages(first)
    _gone_in_other_ways(store, sqlite_uri)
    scheduler.phases = {"41": Phase.GONE}
    scheduler.reasons = {"41": "NODE_FAIL"}
    assert orchestrate("sync", "--all").exit_code == 0
    before = dump(sqlite_uri)
    assert len(before["runs"]) == 5 + 4 + 3
    loss = before["runs"]["r1:pretrain"]["histories"]["train/loss"]
    assert [step for step, _, _ in loss] == [*range(40), 195]  # and the result
    assert "lineage.html" in before["runs"]["r1:"]["artifacts"]
    assert "failure-s001r001.txt" in before["runs"]["r1:pretrain"]["artifacts"]

    _wipe(store, empty_database)
    result = orchestrate("sync", "--rebuild")
    assert (result.exit_code, result.stderr) == (0, "")
    _check_equal(dump(sqlite_uri), before)

    ids = {run.info.run_id for run in MlflowClient(sqlite_uri).search_runs(["1", "2", "3", "4"])}
    assert orchestrate("sync", "--rebuild").exit_code == 0
    _check_equal(dump(sqlite_uri), before)
    again = {run.info.run_id for run in MlflowClient(sqlite_uri).search_runs(["1", "2", "3", "4"])}
    assert again == ids


def test_of_a_lost_database_one_run_can_be_had_although_its_encoder_is_of_another(
    tmp_path: Path, sqlite_uri: str, empty_database: Path, orchestrate: Invoke
) -> None:
    store = tmp_path / "store"
    source = make_pipeline(store, "r1", sqlite_uri, ["data-ucf101", "pretrain"])
    for stage in source.stages.values():
        stage.start("s001r000")
    encoder = {"kind": "encoder", "file": "encoder.safetensors", "content": b"weights"}
    source.stages["pretrain"].result("s001r000", {}, {"encoder": encoder}, 10)
    taker = make_pipeline(store, "r2", sqlite_uri, ["probe"])
    spec = fsio.read_json(taker.stages["probe"].path / "stage.json")
    item = {"ref": "run:r1:pretrain.encoder", "artifact": "encoder", "kind": "encoder"}
    made_by = source.stages["pretrain"]
    spec["inputs"] = {"encoder": [{**item, "stage": made_by.path.name, "key": made_by.key}]}
    fsio.write_json(taker.stages["probe"].path / "stage.json", spec)
    taker.stages["probe"].start("s001r000")
    taker.stages["probe"].result("s001r000", {"top1": 0.5}, {}, 10)
    assert orchestrate("sync", "--all").exit_code == 0
    before = dump(sqlite_uri)
    _wipe(store, empty_database)
    result = orchestrate("sync", "r2", "--rebuild")
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(dump(sqlite_uri)["runs"]) == {"r2:", "r2:probe"}
    assert orchestrate("sync", "r1").exit_code == 0
    assert orchestrate("sync", "r2").exit_code == 0
    _check_equal(dump(sqlite_uri), before)
