"""Tracking of real pipelines: a server that dies in mid-training, and secrets that nobody finds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import CommandLine, make_command_line
from tests.slurm_cluster import PrivateSlurm
from tests.tracking.flaky import Mortal
from tracking.server import default_uri

pytestmark = pytest.mark.e2e

ONLY_PRETRAIN = (
    "tiny.yaml",
    *("~stages.probe", "~stages.probe_random", "~stages.finetune", "~stages.retrieval"),
    "~stages.report",
    "stages.pretrain.checkpoint.steps=5",
)
SECRETIVE = """\
defaults: [cluster: slurm, data: synthetic, _self_]
name: secretive
data:
  synthetic: {train: 8, test: 4, size: 32, frames: 20, classes: 2}
vars: {hub: {token: CANARY}}
stages:
  index: {kind: index, data: "${data.synthetic}"}
"""


def _wait_for_step(run: CommandLine, step: int, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in run.store.glob("stages/pretrain-*/progress.json"):
            if json.loads(path.read_text())["step"] >= step:
                return
        time.sleep(0.05)
    raise AssertionError(f"pretraining did not reach step {step} within {seconds} s")


def test_a_training_whose_server_dies_in_the_middle_ends_well_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    mortal = Mortal(default_uri(tmp_path / "server"), tmp_path / "server")
    run = make_command_line(tmp_path / "client")
    try:
        mortal.start()
        process = run.start("submit", *ONLY_PRETRAIN, f"+tracking.uri={mortal.url}")
        _wait_for_step(run, 4)
        mortal.kill()
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        mortal.start()
        run("sync", timeout=300)
        _check_delivered(run, mortal.url, tmp_path)
    finally:
        mortal.close()


def _check_delivered(run: CommandLine, uri: str, folder: Path) -> None:
    """The curve is that of metrics.jsonl, the run has ended, what rank 0 printed is there."""
    from mlflow import MlflowClient

    lines = [json.loads(line) for line in _pretrain(run, "metrics.jsonl").splitlines()]
    record = json.loads(_pretrain(run, "tracking.json"))
    client = MlflowClient(uri)
    for name in ("train/loss", "train/lr"):
        history = client.get_metric_history(record["mlflow_run_id"], name)
        expected = [(one["step"], one["metrics"][name]) for one in lines if name in one["metrics"]]
        assert [(one.step, one.value) for one in history] == expected
    ended = client.get_run(record["mlflow_run_id"])
    assert ended.info.status == "FINISHED"
    (log,) = client.list_artifacts(ended.info.run_id, "jobs")
    local = client.download_artifacts(ended.info.run_id, log.path, str(folder))
    assert "orchestrate:" in Path(local).read_text(encoding="utf-8")


def _pretrain(run: CommandLine, name: str) -> str:
    return (run.stage_dir("pretrain") / name).read_text(encoding="utf-8")


@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_a_secret_of_the_environment_an_override_or_the_recipe_is_found_nowhere(
    slurm: PrivateSlurm,
) -> None:
    secrets = {name: f"{name}-{os.urandom(8).hex()}" for name in ("shell", "override", "recipe")}
    run = make_command_line(slurm.shared / f"secret-{os.urandom(3).hex()}", slurm.env)
    recipe = SECRETIVE.replace("CANARY", secrets["recipe"])
    (run.folder / "secretive.yaml").write_text(recipe, encoding="utf-8")
    words = ("cluster.resources.device=cpu", f"+vars.api_key={secrets['override']}")
    seen = run("submit", "secretive.yaml", *words, MY_API_TOKEN=secrets["shell"])
    job = run.status()["index"]["job_id"]
    seen += slurm.run("scontrol", "show", "job", "-dd", job).stdout
    seen += slurm.run("scontrol", "write", "batch_script", job, "-").stdout
    deadline = time.monotonic() + 240
    while run.status()["index"]["status"] not in ("succeeded", "failed", "lost"):
        assert time.monotonic() < deadline, run("status")
        time.sleep(1)
    for command in ("status", "sync", "lineage"):
        target = () if command != "lineage" else ("latest",)
        seen += run(command, *target, MY_API_TOKEN=secrets["shell"])
    seen += run("logs", "latest:index")
    assert run.status()["index"]["status"] == "succeeded", seen
    assert (run.store / "mlflow.db").exists()
    for name, secret in secrets.items():
        assert secret not in seen, name
        for path in run.store.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), (name, path)
