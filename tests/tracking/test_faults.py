"""A server that dies at any moment or answers late has every point once, the last one wins."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.tracking.fabricate import Stage, make_pipeline, wait_until
from tests.tracking.flaky import Mortal, Proxy
from tracking import backend, delivering, outbox
from tracking.server import Server
from tracking.stagefiles import StageFiles
from tracking.sync import sync_run

Points = list[tuple[int, str, int]]


@pytest.fixture
def mortal(tmp_path: Path, sqlite_uri: str) -> Iterator[Mortal]:
    one = Mortal(sqlite_uri, tmp_path / "store")
    yield one
    one.close()


def _history(uri: str, stage: Stage) -> Points:
    if not (stage.path / "tracking.json").exists():
        return []
    run_id = stage.tracking()["mlflow_run_id"]
    history = MlflowClient(uri).get_metric_history(run_id, "train/loss") if run_id else []
    return sorted((one.step, repr(one.value), one.timestamp) for one in history)


def _recorded(stage: Stage) -> Points:
    """What metrics.jsonl says, of each step the last line."""
    last = {
        int(line["step"]): (repr(float(line["metrics"]["train/loss"])), round(line["time"] * 1000))
        for line in stage.lines()
    }
    return sorted((step, value, time_ms) for step, (value, time_ms) in last.items())


def _failures(stage: Stage) -> int:
    return (stage.path / "outbox.log").read_text().count("not delivered")


def _loss(step: int) -> float:
    return math.nan if step == 50 else 10.0 / (step + 1)


def test_a_server_killed_at_the_start_in_the_middle_and_at_the_end_has_every_point_once(
    tmp_path: Path, sqlite_uri: str, mortal: Mortal
) -> None:
    run_id = f"run-{os.urandom(4).hex()}"
    pipeline = make_pipeline(tmp_path / "store", run_id, mortal.url, ["pretrain"])
    stage = pipeline.stages["pretrain"]
    stage.start("s001r000")
    first = outbox.start(stage.path, 1)  # there is no server yet
    stage.metrics("s001r000", range(31), train__loss=_loss)
    stage.checkpoint(20)
    wait_until(lambda: _failures(stage) >= 1)
    mortal.start()
    wait_until(lambda: len(_history(sqlite_uri, stage)) == 21)
    mortal.kill()
    stage.metrics("s001r000", range(31, 35), train__loss=_loss)
    stage.end("s001r000", "preempted", 20, 75)
    assert not first.finish(300)

    failures = _failures(stage)
    stage.start("s001r001")
    second = outbox.start(stage.path, 1)  # repeats steps 21 to 34
    stage.metrics("s001r001", range(21, 46), late=900.0, train__loss=_loss)
    stage.checkpoint(40)
    wait_until(lambda: _failures(stage) >= failures + 2)
    mortal.start()
    wait_until(lambda: len(_history(sqlite_uri, stage)) == 41)
    mortal.kill()
    stage.metrics("s001r001", range(46, 51), late=900.0, train__loss=_loss)
    stage.end("s001r001", "failed", 50, 72, cause="diverged", message="the loss is NaN")
    assert not second.finish(300)

    mortal.start()
    assert sync_run(pipeline.store, run_id).problems == ()
    history = _history(sqlite_uri, stage)
    assert history == _recorded(stage)
    assert [step for step, _, _ in history] == list(range(51))
    assert history[-1][1] == "nan"
    client = MlflowClient(sqlite_uri)
    run = client.get_run(stage.tracking()["mlflow_run_id"])
    assert run.info.status == "FAILED"
    assert "diverged: the loss is NaN" in run.data.tags["orchestrate.reason"]
    found = client.search_runs([run.info.experiment_id], f"tags.`orchestrate.run_id` = '{run_id}'")
    assert len(found) == 2  # the parent and one child


def test_a_server_slower_than_the_client_waits_is_given_more_time_and_has_every_point_once(
    tmp_path: Path, mlflow_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(backend.TIMEOUT_VARIABLE, "1")
    monkeypatch.setitem(backend.CLIENT_DEFAULTS, backend.TIMEOUT_VARIABLE, "1")
    run_id = f"run-{os.urandom(4).hex()}"
    with Proxy(mlflow_server.url, "slow", delay=1.2).running() as proxy:
        pipeline = make_pipeline(tmp_path / "store", run_id, proxy.url, ["pretrain"])
        stage = pipeline.stages["pretrain"]
        stage.start("s001r000")
        stage.metrics("s001r000", range(40))
        stage.result("s001r000", {"top1": 0.5}, {}, 39)
        stage.end("s001r000", "succeeded", 39)
        files = StageFiles(stage.path)
        target = files.target(1)
        assert target is not None
        # With one second of patience, as at the end of a job, it is left for later.
        assert delivering.deliver(files, target, lambda _: True, drain=2.0) == 1
        assert _history(mlflow_server.url, stage) == []
        proxy.delay = 1.05
        assert sync_run(pipeline.store, run_id).problems == ()
    assert _history(mlflow_server.url, stage) == _recorded(stage)
    client = MlflowClient(mlflow_server.url)
    experiment = client.get_run(stage.tracking()["mlflow_run_id"]).info.experiment_id
    found = client.search_runs([experiment], f"tags.`orchestrate.run_id` = '{run_id}'")
    assert len(found) == 2
