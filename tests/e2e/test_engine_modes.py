"""The training engine's options together: killed on two ranks, continued on one, then evaluated."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import CommandLine, make_command_line

pytestmark = pytest.mark.e2e

STEPS = 12
RECIPE = (
    "tiny.yaml",
    "~stages.probe",
    "~stages.probe_random",
    "~stages.finetune",
    "~stages.report",
    f"stages.pretrain.max_steps={STEPS}",
    "stages.pretrain.micro_batch=2",
    "stages.pretrain.log_every=1",
    "stages.pretrain.checkpoint.steps=3",
    "stages.pretrain.optimizer.name=adamw",
    "+stages.pretrain.optimizer.decay_norm_and_bias=false",
    "+stages.pretrain.zero_stage=2",
    "+stages.pretrain.ema_decay=0.9",
    "+stages.pretrain.clip_grad=1.0",
    "+stages.pretrain.activation_checkpointing=true",
)


def ranks(count: int) -> str:
    return f"+stages.pretrain.resources={{tasks_per_node: {count}}}"


def losses(stage: Path) -> dict[int, float]:
    """The loss of every step; where attempts overlap, the last one counts."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: line["metrics"]["train/loss"]
        for line in lines
        if "train/loss" in line["metrics"]
    }


def wait_for_step(run: CommandLine, process: subprocess.Popen[str], step: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        for path in run.store.glob("stages/pretrain-*/checkpoints/step_*/manifest.json"):
            if json.loads(path.read_text())["step"] >= step:
                return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no step {step}: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CommandLine]:
    """The pipeline left alone, and with its executor and so its ranks killed in pretraining."""
    folder = tmp_path_factory.mktemp("modes")
    whole, killed = (make_command_line(folder / name) for name in ("whole", "killed"))
    whole("submit", *RECIPE, ranks(2), "~stages.retrieval")
    index = whole.stage_dir("index")
    shutil.copytree(index, killed.store / "stages" / index.name)
    process = killed.start("submit", *RECIPE, ranks(2), ORCHESTRATE_FAULT="slow:300")
    wait_for_step(killed, process, 3)
    process.kill()
    process.communicate(timeout=60)
    killed("submit", *RECIPE, ranks(1))
    return {"whole": whole, "killed": killed}


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def test_it_went_on_with_one_rank_from_a_checkpoint_of_two(runs: dict[str, CommandLine]) -> None:
    stage = runs["killed"].stage_dir("pretrain")
    starts = [read(path) for path in sorted(stage.glob("attempts/*/start.json"))]
    assert [start["world_size"] for start in starts] == [2, 1]
    by_attempt: dict[str, list[int]] = {}
    for line in (stage / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        by_attempt.setdefault(entry["attempt"], []).append(entry["step"])
    first, second = by_attempt.values()
    assert 3 <= max(first) < STEPS
    assert 3 < min(second) <= max(first) + 1
    assert max(second) == STEPS


def test_every_step_has_the_loss_of_a_training_left_alone(runs: dict[str, CommandLine]) -> None:
    whole, killed = (losses(run.stage_dir("pretrain")) for run in runs.values())
    assert sorted(killed) == list(range(1, STEPS + 1))
    assert killed == pytest.approx(whole, rel=5e-3)


def test_what_follows_takes_the_encoder_and_every_stage_succeeds(
    runs: dict[str, CommandLine],
) -> None:
    run = runs["killed"]
    assert {stage["status"] for stage in run.status().values()} == {"succeeded"}
    metrics = read(run.stage_dir("retrieval") / "result.json")["metrics"]
    assert 0 <= metrics["R@1"] <= 1


def test_the_card_names_recipe_code_and_data(runs: dict[str, CommandLine]) -> None:
    run = runs["killed"]
    stage = run.stage_dir("pretrain")
    outputs = stage / "outputs"
    text = (outputs / "README.md").read_text()
    spec, result = read(stage / "stage.json"), read(stage / "result.json")
    code = Path(read(sorted(stage.glob("submission-?.json"))[-1])["code"]).name
    data = result["inputs"]["data"][0]["sha256"]
    assert "a moving average of the weights (decay 0.9)" in text
    for fact in ("| recipe | tiny |", f"| stage key | {spec['key']} |", code, data):
        assert fact in text
    assert yaml.safe_load(text.split("---\n")[1])["tags"][2:] == ["dpc", "r2d3d_tiny"]
    files = read(outputs / "manifest.json")["files"]
    assert {"README.md", "encoder.py", "encoder.safetensors", "encoder.json"} <= files.keys()
