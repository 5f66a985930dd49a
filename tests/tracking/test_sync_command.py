"""`orchestrate sync` as a person types it, on fabricated stores and real MLflow databases."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow import MlflowClient

from cluster.contract import Phase
from tests.orchestrator.fabricated import FakeExecutor
from tests.tracking.conftest import Invoke
from tests.tracking.fabricate import Pipeline, finish_all, make_pipeline
from tests.tracking.flaky import Proxy
from tracking import outbox
from tracking.server import Server
from tracking.stagefiles import StageFiles

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def _status(pipeline: Pipeline, stage: str) -> str:
    run_id = pipeline.stages[stage].tracking()["mlflow_run_id"]
    return str(MlflowClient(pipeline.uri).get_run(run_id).info.status)


def test_offline_a_job_never_connects_and_sync_delivers_everything_later(
    tmp_path: Path, mlflow_server: Server, orchestrate: Invoke
) -> None:
    with Proxy(mlflow_server.url, "pass").running() as proxy:
        store, run_id = tmp_path / "store", f"offline-{tmp_path.name}"
        pipeline = make_pipeline(store, run_id, proxy.url, mode="offline")
        finish_all(pipeline)
        stage = pipeline.stages["pretrain"]
        assert outbox.start(stage.path, 1).finish()
        assert proxy.requests == 0
        result = orchestrate("sync")
        assert (result.exit_code, result.stderr) == (0, "")
        page, *_ = result.stdout.splitlines()
        assert page.startswith(f"{run_id}  FINISHED  {proxy.url}/#/experiments/")
        run = MlflowClient(proxy.url).get_run(stage.tracking()["mlflow_run_id"])
        history = MlflowClient(proxy.url).get_metric_history(run.info.run_id, "train/loss")
        assert run.info.status == "FINISHED"
        assert [one.step for one in history] == list(range(0, 200, 5))


def test_sync_says_what_was_new_and_the_second_time_that_nothing_is(
    tmp_path: Path, sqlite_uri: str, orchestrate: Invoke
) -> None:
    finish_all(make_pipeline(tmp_path / "store", "r1", sqlite_uri))
    lines = orchestrate("sync", "r1").stdout.splitlines()
    assert lines[0] == f"r1  FINISHED  {sqlite_uri}"
    assert [line.split() for line in lines[1:]] == [
        ["stage", "delivered", "state", "MLflow", "run"],
        ["data-ucf101", "0", "points", "succeeded", "FINISHED"],
        ["pretrain", "40", "points", "succeeded", "FINISHED"],
        ["probe", "10", "points", "succeeded", "FINISHED"],
        ["report", "0", "points", "succeeded", "FINISHED"],
    ]
    value = json.loads(orchestrate("sync", "r1", "--json").stdout)
    (run,) = value["runs"]
    documented = {"run_id", "uri", "tracked", "away", "stages", "status", "url", "problem"}
    assert set(run) == documented
    assert not any(stage["delivered"] for stage in run["stages"])
    documented = {"stage", "mlflow_run_id", "delivered", "points", "state", "status", "held_by"}
    assert set(run["stages"][0]) == {*documented, "problem"}


def test_a_run_without_a_server_goes_to_the_database_of_the_store(
    tmp_path: Path, sqlite_uri: str, orchestrate: Invoke
) -> None:
    pipeline = make_pipeline(tmp_path / "store", "r1", None)
    finish_all(pipeline)
    assert orchestrate("sync").stdout.startswith(f"r1  FINISHED  {sqlite_uri}\n")


def test_the_run_of_a_job_that_is_gone_is_closed_with_the_reason_of_the_scheduler(
    tmp_path: Path, sqlite_uri: str, orchestrate: Invoke, scheduler: FakeExecutor
) -> None:
    pipeline = make_pipeline(tmp_path / "store", "r1", sqlite_uri)
    stage = pipeline.stages["pretrain"]
    stage.start("s001r000")
    stage.metrics("s001r000", range(5))
    scheduler.phases = {"41": Phase.RUNNING}
    assert orchestrate("sync").exit_code == 0
    assert _status(pipeline, "pretrain") == "RUNNING"
    scheduler.phases = {"41": Phase.GONE}
    scheduler.reasons = {"41": "NODE_FAIL"}
    result = orchestrate("sync")
    assert result.exit_code == 0
    assert _status(pipeline, "pretrain") == "KILLED"
    client = MlflowClient(sqlite_uri)
    tags = client.get_run(stage.tracking()["mlflow_run_id"]).data.tags
    assert tags["orchestrate.state"] == "lost"
    assert tags["orchestrate.reason"].startswith("scheduler: NODE_FAIL; killed")
    assert len(client.get_metric_history(stage.tracking()["mlflow_run_id"], "train/loss")) == 5


def test_a_server_that_does_not_answer_is_exit_code_3_and_one_line_for_all_runs(
    tmp_path: Path, orchestrate: Invoke
) -> None:
    for name in ("r1", "r2"):
        finish_all(make_pipeline(tmp_path / "store", name, NOWHERE))
    result = orchestrate("sync", "--all")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: not delivered: ")
    assert "127.0.0.1" in line
    assert "`orchestrate sync` tries again" in line
    assert [one.split()[0] for one in result.stdout.splitlines()] == ["r1", "r2"]


def test_all_runs_are_delivered_the_oldest_first(
    tmp_path: Path, sqlite_uri: str, orchestrate: Invoke
) -> None:
    for name in ("r1", "r2"):
        make_pipeline(tmp_path / "store", name, sqlite_uri)
    value = json.loads(orchestrate("sync", "--all", "--json").stdout)
    assert [run["run_id"] for run in value["runs"]] == ["r1", "r2"]
    assert orchestrate("sync", "r1", "--all").exit_code == 2


def test_while_the_scheduler_does_not_answer_nothing_is_closed_and_sync_says_so(
    tmp_path: Path, sqlite_uri: str, orchestrate: Invoke, scheduler: FakeExecutor
) -> None:
    pipeline = make_pipeline(tmp_path / "store", "r1", sqlite_uri)
    pipeline.stages["pretrain"].start("s001r000")
    scheduler.down = True
    result = orchestrate("sync")
    assert result.exit_code == 3
    assert "Unable to contact slurm controller" in result.stderr
    assert _status(pipeline, "pretrain") == "RUNNING"


def test_a_stage_that_another_process_delivers_is_left_to_it(
    tmp_path: Path, sqlite_uri: str, orchestrate: Invoke
) -> None:
    from tracking.lease import Lease
    from tracking.shipping import LEASE

    pipeline = make_pipeline(tmp_path / "store", "r1", sqlite_uri, ["pretrain"])
    stage = pipeline.stages["pretrain"]
    stage.start("s001r000")
    lease = Lease.acquire(stage.path / LEASE)
    assert lease is not None
    with lease:
        result = orchestrate("sync")
    assert result.exit_code == 0
    assert "just now" in result.stdout
    assert StageFiles(stage.path).target() is not None


def test_a_run_whose_tracking_is_off_is_left_alone(tmp_path: Path, orchestrate: Invoke) -> None:
    from cluster import fsio

    pipeline = make_pipeline(tmp_path / "store", "r1", None)
    run = fsio.read_json(pipeline.run_dir / "run.json")
    fsio.write_json(pipeline.run_dir / "run.json", {**run, "tracking": {"enabled": False}})
    assert orchestrate("sync").stdout == "r1  tracking is off (tracking.enabled)\n"
    assert not (tmp_path / "store" / "mlflow.db").exists()
