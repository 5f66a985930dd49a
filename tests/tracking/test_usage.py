"""How busy a node is, sampled beside the training and delivered like its metrics."""

from __future__ import annotations

import os
from pathlib import Path

from mlflow import MlflowClient

from cluster import fsio
from tests.tracking.fabricate import make_pipeline, wait_until
from tracking import outbox, usage
from tracking.sync import sync_run

CPU = "system/cpu_utilization_percentage"


def test_gpus_are_read_by_their_index_and_what_one_does_not_tell_is_left_out() -> None:
    table = "0, 87, 81559, 143771, 512.34\n3, [N/A], 0, 143771, [N/A]\nNo devices were found\n"
    assert usage.gpu_values(table) == {
        "system/gpu_0_utilization_percentage": 87.0,
        "system/gpu_0_memory_usage_megabytes": 85520.8,
        "system/gpu_0_memory_usage_percentage": 56.7,
        "system/gpu_0_power_usage_watts": 512.3,
        "system/gpu_3_memory_usage_megabytes": 0.0,
        "system/gpu_3_memory_usage_percentage": 0.0,
    }


def test_samples_of_a_later_attempt_go_on_where_those_of_the_first_ended(tmp_path: Path) -> None:
    for attempt in ("s001r000", "s001r001"):
        sampler = usage.Sampler(tmp_path, attempt, interval=0.05).start()
        before = len(list(fsio.read_json_lines(tmp_path / usage.FILE)))
        wait_until(lambda n=before: len(list(fsio.read_json_lines(tmp_path / usage.FILE))) > n + 1)
        sampler.stop()
    lines = [line for _, line in fsio.read_json_lines(tmp_path / usage.FILE)]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert {line["attempt"] for line in lines} == {"s001r000", "s001r001"}
    for line in lines:
        assert 0 <= line["metrics"][CPU] <= 100
        assert 0 < line["metrics"]["system/system_memory_usage_percentage"] <= 100


def test_what_was_sampled_without_a_server_arrives_with_the_next_sync(
    tmp_path: Path, sqlite_uri: str
) -> None:
    run_id = f"run-{os.urandom(4).hex()}"
    pipeline = make_pipeline(tmp_path / "store", run_id, sqlite_uri, ["pretrain"], "offline")
    stage = pipeline.stages["pretrain"]
    stage.submission(1, {**pipeline.tracking("pretrain"), "system_metrics": True})
    stage.start("s001r000")
    process = outbox.start(stage.path, 1)
    for step in range(3):
        line = {"step": step, "time": 1.75e9 + step, "attempt": "s001r000", "metrics": {CPU: 50.0}}
        fsio.append_json_line(stage.path / usage.FILE, line)
    stage.result("s001r000", {}, {}, 1)
    stage.end("s001r000", "succeeded", 1)
    assert process.finish(300)
    for _ in range(2):
        assert sync_run(pipeline.store, run_id).problems == ()
        client = MlflowClient(sqlite_uri)
        history = client.get_metric_history(stage.tracking()["mlflow_run_id"], CPU)
        assert [one.step for one in history][:3] == [0, 1, 2]
        assert len({(one.step, one.timestamp) for one in history}) == len(history)
