"""The process beside rank 0, against a real server that is there, away, refusing or hanging."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cluster import fsio
from tests.tracking.fabricate import Pipeline, Stage, make_pipeline, wait_until
from tests.tracking.flaky import Proxy
from tracking import delivering, outbox
from tracking.outbox import Outbox
from tracking.server import Server
from tracking.stagefiles import StageFiles
from tracking.sync import sync_stage

Start = Callable[..., Outbox]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start outboxes as rank 0 would; what is left of them ends with the test."""
    started: list[Outbox] = []

    def begin(stage: Stage, submission: int = 1) -> Outbox:
        started.append(outbox.start(stage.path, submission))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()


def _one(tmp_path: Path, uri: str, name: str = "pretrain") -> tuple[Pipeline, Stage]:
    run_id = f"run-{os.urandom(4).hex()}"
    pipeline = make_pipeline(tmp_path / "store", run_id, uri, [name])
    return pipeline, pipeline.stages[name]


def _steps(uri: str, stage: Stage, key: str = "train/loss") -> list[int]:
    """Steps in MLflow, in order of step; empty before the stage has a run."""
    if not (stage.path / "tracking.json").exists():
        return []
    history = MlflowClient(uri).get_metric_history(stage.tracking()["mlflow_run_id"], key)
    return sorted(one.step for one in history)


def _values(uri: str, stage: Stage) -> list[tuple[int, float, int]]:
    run_id = stage.tracking()["mlflow_run_id"]
    history = MlflowClient(uri).get_metric_history(run_id, "train/loss")
    return sorted((one.step, one.value, one.timestamp) for one in history)


def _run(uri: str, stage: Stage) -> Run:
    return MlflowClient(uri).get_run(stage.tracking()["mlflow_run_id"])


def _parent(uri: str, stage: Stage) -> Run:
    return MlflowClient(uri).get_run(stage.tracking()["parent_run_id"])


def _said(stage: Stage) -> str:
    return (stage.path / "outbox.log").read_text()


def test_while_training_points_up_to_the_last_checkpoint_appear_and_the_rest_at_the_end(
    tmp_path: Path, mlflow_server: Server, start: Start
) -> None:
    uri = mlflow_server.url
    pipeline, stage = _one(tmp_path, uri)
    stage.start("s001r000")
    stage.end("s001r000", "failed", 0, 66, cause="input", message="no videos")
    assert _deliver_here(stage)
    assert _run(uri, stage).info.status == _parent(uri, stage).info.status == "FAILED"
    stage.submission(2, pipeline.tracking("pretrain"))
    stage.start("s002r000")
    fsio.write_json(stage.path / "progress.json", {"phase": "train", "step": 10, "steps": 20})
    process = start(stage, 2)
    stage.metrics("s002r000", range(10))
    stage.checkpoint(6)
    wait_until(lambda: _steps(uri, stage) == list(range(7)))
    wait_until(lambda: "orchestrate.progress" in _run(uri, stage).data.tags)
    run, parent = _run(uri, stage), _parent(uri, stage)
    assert run.data.tags["orchestrate.progress"] == "train step 10 of 20"
    assert run.data.tags["orchestrate.state"] == "running"
    assert parent.data.tags["orchestrate.run_id"] == pipeline.run_id
    assert run.info.status == parent.info.status == "RUNNING"
    assert "| running |" in parent.data.tags["mlflow.note.content"]
    stage.metrics("s002r000", range(10, 20))
    stage.result("s002r000", {"best": 0.5}, {}, 19)
    stage.end("s002r000", "succeeded", 19)
    assert process.finish(300)
    assert _steps(uri, stage) == list(range(20))
    assert [one[:2] for one in _values(uri, stage)] == [(n, 10.0 / (n + 1)) for n in range(20)]
    assert _run(uri, stage).info.status == "FINISHED"
    assert _run(uri, stage).data.metrics["best"] == 0.5
    assert _parent(uri, stage).info.status == "FINISHED"
    assert not {"orchestrate.reason", "orchestrate.progress"} & set(_run(uri, stage).data.tags)


def _deliver_here(stage: Stage) -> bool:
    files = StageFiles(stage.path)
    target = files.target(1)
    assert target is not None
    return delivering.deliver(files, target, lambda _: True) == 0


def test_five_preemptions_give_one_child_run_with_each_step_once_from_the_last_attempt(
    tmp_path: Path, sqlite_uri: str, start: Start
) -> None:
    pipeline, stage = _one(tmp_path, sqlite_uri)
    expected: dict[int, int] = {}
    for restart in range(6):
        attempt, first = f"s001r{restart:03d}", 4 * restart
        stage.start(attempt)
        # The first and the last are processes; those between run the same code in this one.
        process = start(stage) if restart in (0, 5) else None
        late = 1000.0 * restart
        stage.metrics(attempt, range(first, first + 7), late)
        expected |= {step: round((1.75e9 + late + step) * 1000) for step in range(first, first + 7)}
        stage.checkpoint(first + 3)
        if restart < 5:
            # The last three steps come after the checkpoint and are done again by the next attempt.
            stage.end(attempt, "preempted", first + 3, 75)
        else:
            stage.result(attempt, {}, {}, first + 6)
            stage.end(attempt, "succeeded", first + 6)
        assert process.finish(300) if process else _deliver_here(stage)
        run = _run(sqlite_uri, stage)
        assert run.info.status == ("SCHEDULED" if restart < 5 else "FINISHED")
        assert run.data.tags["orchestrate.attempts"] == str(restart + 1)
    history = _values(sqlite_uri, stage)
    assert {step: time_ms for step, _, time_ms in history} == expected
    assert [step for step, _, _ in history] == list(range(27))
    client = MlflowClient(sqlite_uri)
    query = f"tags.`orchestrate.run_id` = '{pipeline.run_id}'"
    assert len(client.search_runs([run.info.experiment_id], query)) == 2  # the parent and one child


def test_a_killed_rank_leaves_only_committed_points_and_the_outbox_ends_by_itself(
    tmp_path: Path, sqlite_uri: str
) -> None:
    _, stage = _one(tmp_path, sqlite_uri)
    stage.start("s001r000")
    stage.metrics("s001r000", range(10))
    stage.checkpoint(6)
    code = (
        "import sys, time; from pathlib import Path; from tracking import outbox;"
        "box = outbox.start(Path(sys.argv[1]), 1);"
        "print(box.process.pid, flush=True); time.sleep(60)"
    )
    rank = subprocess.Popen(
        [sys.executable, "-c", code, str(stage.path)], stdout=subprocess.PIPE, text=True
    )
    assert rank.stdout is not None
    pid = int(rank.stdout.readline())
    wait_until(lambda: _steps(sqlite_uri, stage) == list(range(7)))
    rank.kill()
    rank.wait()
    wait_until(lambda: _run(sqlite_uri, stage).info.status == "SCHEDULED")
    wait_until(lambda: not _alive(pid))
    assert _steps(sqlite_uri, stage) == list(range(7))
    assert "without a record" in _run(sqlite_uri, stage).data.tags["orchestrate.reason"]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_signals_that_stop_a_job_do_not_stop_the_outbox_from_its_first_moment(
    tmp_path: Path, sqlite_uri: str, start: Start
) -> None:
    _, stage = _one(tmp_path, sqlite_uri)
    stage.start("s001r000")
    stage.metrics("s001r000", range(3))
    process = start(stage)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            process.process.send_signal(number)
        time.sleep(0.05)
    assert process.process.poll() is None
    stage.result("s001r000", {}, {}, 2)
    stage.end("s001r000", "succeeded", 2)
    assert process.finish(300)
    assert _steps(sqlite_uri, stage) == [0, 1, 2]


def test_the_stop_signals_still_reach_the_rank_that_started_an_outbox(
    tmp_path: Path, sqlite_uri: str, start: Start
) -> None:
    _, stage = _one(tmp_path, sqlite_uri)
    start(stage)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_with_the_server_away_a_job_ends_soon_and_sync_delivers_everything_later(
    tmp_path: Path, mlflow_server: Server, start: Start
) -> None:
    with Proxy(mlflow_server.url, "pass").running() as proxy:
        away = proxy.url
    _, stage = _one(tmp_path, away)  # nobody listens there any more
    stage.start("s001r000")
    process = start(stage)
    stage.metrics("s001r000", range(50))
    wait_until(lambda: "not delivered" in _said(stage))
    stage.result("s001r000", {}, {}, 49)
    stage.end("s001r000", "succeeded", 49)
    started = time.monotonic()
    assert not process.finish(300)
    assert time.monotonic() - started < 150
    assert "left for `orchestrate sync`" in _said(stage)
    stage.submission(1, {**stage_tracking(stage), "uri": mlflow_server.url})
    outcome = sync_stage(stage.path)
    assert (outcome.points, outcome.status, outcome.problem) == (50, "FINISHED", "")
    assert _steps(mlflow_server.url, stage) == list(range(50))


def stage_tracking(stage: Stage) -> dict[str, object]:
    tracking: dict[str, object] = fsio.read_json(stage.path / "submission-1.json")["tracking"]
    return tracking


@pytest.mark.parametrize("mode", ["refuse", "hang"])
def test_a_server_that_is_ill_at_first_gets_every_point_once_when_it_is_well(
    tmp_path: Path,
    mlflow_server: Server,
    start: Start,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with Proxy(mlflow_server.url, mode).running() as proxy:
        pipeline, stage = _one(tmp_path, proxy.url)
        stage.start("s001r000")
        process = start(stage)
        stage.metrics("s001r000", range(40))
        wait_until(lambda: "not delivered" in _said(stage))
        assert proxy.requests > 0
        proxy.mode = "pass"
        stage.result("s001r000", {}, {}, 39)
        stage.end("s001r000", "succeeded", 39)
        assert process.finish(300)
        assert "the server answers again" in _said(stage)
    run = _run(mlflow_server.url, stage)
    assert [one[:2] for one in _values(mlflow_server.url, stage)] == [
        (step, 10.0 / (step + 1)) for step in range(40)
    ]
    client = MlflowClient(mlflow_server.url)
    query = f"tags.`orchestrate.run_id` = '{pipeline.run_id}'"
    assert len(client.search_runs([run.info.experiment_id], query)) == 2


def _new_place(request: pytest.FixtureRequest, kind: str) -> str:
    """A database of either kind, or the server."""
    if kind == "http":
        return str(request.getfixturevalue("mlflow_server").url)
    if kind == "sqlite":
        return str(request.getfixturevalue("sqlite_uri"))
    return str(request.getfixturevalue("postgres_databases")())


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "http"])
def test_two_stages_that_finish_at_once_make_one_parent_and_lose_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, start: Start, kind: str
) -> None:
    uri = _new_place(request, kind)
    names = ["pretrain", "probe"]
    pipeline = make_pipeline(tmp_path / "store", f"run-{os.urandom(4).hex()}", uri, names)
    processes = []
    for stage in pipeline.stages.values():
        stage.start("s001r000")
        stage.metrics("s001r000", range(500))
        stage.result("s001r000", {"top1": 0.5}, {}, 499)
        stage.end("s001r000", "succeeded", 499)
    for stage in pipeline.stages.values():
        processes.append(start(stage))
    with ThreadPoolExecutor() as pool:
        assert all(pool.map(lambda process: process.finish(300), processes))
    for stage in pipeline.stages.values():
        assert [one[:2] for one in _values(uri, stage)] == [(n, 10 / (n + 1)) for n in range(500)]
        assert _run(uri, stage).data.metrics["top1"] == 0.5
    parents = {
        _run(uri, stage).data.tags["mlflow.parentRunId"] for stage in pipeline.stages.values()
    }
    assert len(parents) == 1
    (parent,) = parents
    client = MlflowClient(uri)
    experiment = client.get_run(parent).info.experiment_id
    query = "tags.`orchestrate.role` = 'pipeline'"
    assert [run.info.run_id for run in client.search_runs([experiment], query)] == [parent]
    # Whoever came last saw both stages done.
    assert client.get_run(parent).info.status == "FINISHED"


def test_a_second_outbox_of_a_stage_leaves_the_delivery_to_the_first(
    tmp_path: Path, sqlite_uri: str, start: Start
) -> None:
    _, stage = _one(tmp_path, sqlite_uri)
    stage.start("s001r000")
    stage.metrics("s001r000", range(3))
    first = start(stage)
    stage.checkpoint(2)
    wait_until(lambda: _steps(sqlite_uri, stage) == [0, 1, 2])
    second = start(stage)
    assert not second.finish(300)
    assert "another process delivers this stage" in _said(stage)
    outcome = sync_stage(stage.path, patience_seconds=0.2)
    assert f"process {first.process.pid} on" in outcome.held_by
    assert outcome.problem == ""


def test_an_untracked_or_offline_stage_needs_no_server(
    tmp_path: Path, sqlite_uri: str, start: Start
) -> None:
    pipeline, stage = _one(tmp_path, sqlite_uri)
    stage.submission(1, {**pipeline.tracking("pretrain"), "mode": "offline"})
    stage.submission(2, None)
    for number in (1, 2):
        assert start(stage, number).finish(300)
    assert not (stage.path / "tracking.json").exists()


def test_the_outbox_leaves_nothing_that_others_can_read(
    tmp_path: Path, sqlite_uri: str, start: Start
) -> None:
    _, stage = _one(tmp_path, sqlite_uri)
    stage.start("s001r000")
    process = start(stage)
    stage.result("s001r000", {}, {}, 2)
    stage.end("s001r000", "succeeded", 2)
    assert process.finish(300)
    store = tmp_path / "store"
    for name in ("tracking.json", "outbox.log", ".tracking-lease"):
        assert (stage.path / name).stat().st_mode & 0o077 == 0
    for path in (store / "mlartifacts").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
