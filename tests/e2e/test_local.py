"""The main job on this machine, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import CommandLine, make_command_line

pytestmark = pytest.mark.e2e

STAGES = {
    "index-synthetic-motion",
    "pretrain",
    "probe",
    "probe_random",
    "finetune",
    "retrieval",
    "report",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A store in which the tiny pipeline has run to its end."""
    run = make_command_line(tmp_path_factory.mktemp("finished"))
    run("submit", "tiny.yaml")
    return run


def test_every_stage_succeeds_and_the_report_names_the_baseline(finished: CommandLine) -> None:
    stages = finished.status()
    assert {name: stage["status"] for name, stage in stages.items()} == dict.fromkeys(
        STAGES, "succeeded"
    )
    report = (finished.stage_dir("report") / "outputs" / "report.md").read_text(encoding="utf-8")
    assert "random" in report
    assert "dpc" in report.lower()


def test_submitting_again_computes_nothing(finished: CommandLine) -> None:
    before = sorted(finished.store.glob("stages/*/attempts/*"))
    finished("submit", "tiny.yaml")
    assert sorted(finished.store.glob("stages/*/attempts/*")) == before


def test_resources_do_not_change_what_is_reused(finished: CommandLine) -> None:
    output = finished("plan", "tiny.yaml", "stages.pretrain.workers=0", "--json")
    actions = {stage["name"]: stage["action"] for stage in json.loads(output)["stages"]}
    assert set(actions.values()) == {"reuse"}


def test_a_scientific_change_runs_what_depends_on_it_and_nothing_else(
    finished: CommandLine,
) -> None:
    output = finished("plan", "tiny.yaml", "stages.pretrain.max_steps=25", "--json")
    actions = {stage["name"]: stage["action"] for stage in json.loads(output)["stages"]}
    assert actions["index-synthetic-motion"] == actions["probe_random"] == "reuse"
    assert actions["pretrain"] == actions["probe"] == actions["report"] == "run"


def test_mlflow_holds_the_pipeline_its_stages_and_where_the_encoder_came_from(
    finished: CommandLine,
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.store}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = {
        r.data.tags["orchestrate.stage"]: r for r in runs if "mlflow.parentRunId" in r.data.tags
    }
    assert set(children) == STAGES
    assert all(run.info.status == "FINISHED" for run in runs)
    assert len(runs) == len(STAGES) + 1
    pretrain, probe = children["pretrain"], children["probe"]
    assert pretrain.info.run_id in json.dumps(probe.data.tags)
    steps = [point.step for point in client.get_metric_history(pretrain.info.run_id, "train/loss")]
    lines = (finished.stage_dir("pretrain") / "metrics.jsonl").read_text().splitlines()
    assert steps == [json.loads(line)["step"] for line in lines]
    assert client.get_run(probe.info.run_id).inputs.model_inputs


def test_nothing_in_the_store_is_open_to_others(finished: CommandLine) -> None:
    for path in [finished.store, *finished.store.rglob("*")]:
        if not path.is_symlink():
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_changed_encoder_is_refused_by_the_next_stage(
    command_line: CommandLine,
) -> None:
    run = command_line
    run("submit", "tiny.yaml", "~stages.report", "~stages.finetune", "~stages.retrieval",
        "~stages.probe", "~stages.probe_random")  # fmt: skip
    encoder = run.stage_dir("pretrain") / "outputs" / "encoder.safetensors"
    content = bytearray(encoder.read_bytes())
    content[-1] ^= 1
    encoder.write_bytes(content)
    output = run("submit", "tiny.yaml", code=1)
    assert "has another content than its stage left" in " ".join(output.split())
    stages = run.status()
    assert stages["probe"]["status"] == "failed"
    assert stages["report"]["status"] == "blocked"
    assert stages["probe_random"]["status"] == "succeeded"


def _wait_for_step(run: CommandLine, step: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in run.store.glob("stages/pretrain-*/progress.json"):
            if json.loads(path.read_text())["step"] >= step:
                return
        time.sleep(0.05)
    raise AssertionError(f"pretraining did not reach step {step} within {seconds} s")


def test_ctrl_c_checkpoints_and_a_second_submit_ends_with_the_same_weights(
    finished: CommandLine, tmp_path: Path
) -> None:
    run = make_command_line(tmp_path)
    process = run.start("submit", "tiny.yaml")
    _wait_for_step(run, 2)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "submit" in output
    pretrain = run.stage_dir("pretrain")
    (manifest,) = sorted(pretrain.glob("checkpoints/step_*/manifest.json"))[-1:]
    assert 0 < json.loads(manifest.read_text())["step"] < 24
    run("submit", "tiny.yaml")
    assert len(list(pretrain.glob("attempts/*/start.json"))) == 2
    encoder = Path("outputs") / "encoder.safetensors"
    reference = finished.stage_dir("pretrain") / encoder
    assert (pretrain / encoder).read_bytes() == reference.read_bytes()
