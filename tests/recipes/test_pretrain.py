"""The pretraining stage on real, drawn video files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cluster import fsio
from recipes.catalog import METHODS, STAGES, load
from recipes.contract import Artifact, ConfigurationError, Preempted, StageResult
from recipes.engine.state import History
from recipes.models.encoder import load_encoder, random_encoder, save_encoder
from recipes.stages.pretrain.config import PretrainConfig
from recipes.stages.pretrain.run import build_method, run
from tests.recipes.evaluation_support import Recorder, artifact, context, synthetic

CLIP = {"blocks": 4, "frames": 2, "stride": 1, "size": 32}


def config(**changes: Any) -> PretrainConfig:
    given: dict[str, Any] = {
        "data": {"format": "synthetic"},
        "method": {"name": "dpc", "pred_steps": 2},
        "backbone": {"name": "r2d3d_tiny"},
        "clip": CLIP,
        "max_steps": 6,
        "batch_size": 4,
        "micro_batch": 2,
        "workers": 0,
        "log_every": 2,
        "seed": 5,
    }
    return PretrainConfig.model_validate({**given, **changes})


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return synthetic(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def trained(
    videos: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, StageResult, Recorder]:
    """One pretraining of six steps, a step and a half of an epoch, left alone."""
    folder, recorder = tmp_path_factory.mktemp("trained"), Recorder()
    return folder, run(context(folder, {"data": videos}, recorder), config()), recorder


def test_it_leaves_an_encoder_that_describes_itself(trained):
    folder, result, _ = trained
    output = result.outputs["encoder"]
    assert (output.kind, output.path) == ("encoder", folder / "outputs" / "encoder.safetensors")
    encoder, description = load_encoder(output.path)
    assert description.method == "dpc"
    assert description.pretrain_data == "synthetic"
    assert description.pretrain_steps == result.steps == 6
    assert description.clip.model_dump(include=set(CLIP)) == CLIP
    assert output.meta == description.model_dump(mode="json")
    assert encoder.feature_dims == {"pooled": 64, "context": 64}
    assert encoder.backbone.bn1.num_batches_tracked == 12, "six steps of two micro-batches"


def test_it_logs_training_and_speed_and_keeps_a_picture(trained):
    folder, result, recorder = trained
    assert [step for step, _ in recorder.metrics] == [2, 4, 6]
    names = set(recorder.metrics[-1][1])
    assert {"train/loss", "train/top1", "train/lr", "train/grad_norm", "train/epoch"} <= names
    assert {"speed/clips_per_second", "speed/data_wait_share", "speed/step_seconds"} <= names
    assert 0 <= recorder.metrics[-1][1]["speed/data_wait_share"] <= 1
    assert result.metrics["train/loss"] == recorder.metrics[-1][1]["train/loss"]
    assert result.metrics["num_train"] == 16
    picture = folder / "outputs" / "figures" / "training.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    last = recorder.progress[-1]
    assert (last.phase, last.step, last.steps, last.epoch, last.epochs) == ("train", 6, 6, 1, 2)


def test_its_summary_names_it_and_claims_no_test_result(trained):
    _, result, _ = trained
    assert result.summary["method"] == "dpc"
    assert result.summary["clip"] == "4 x 2 frames, stride 1"
    assert result.summary["split"] is None
    assert "protocol" not in result.summary


def test_stopped_in_an_epoch_it_goes_on_to_the_same_encoder(trained, videos, tmp_path):
    whole, result, recorder = trained
    asking = Recorder(stop_after=2)
    with pytest.raises(Preempted) as stop:
        run(context(tmp_path, {"data": videos}, asking), config())
    assert stop.value.step == 3
    assert not (tmp_path / "outputs" / "encoder.safetensors").exists()
    going_on = Recorder()
    # Decoding processes are transient: they change nothing.
    again = run(context(tmp_path, {"data": videos}, going_on), config(workers=2))
    assert fsio.sha256_file(again.outputs["encoder"].path) == fsio.sha256_file(
        result.outputs["encoder"].path
    )
    logged = [(step, values["train/loss"]) for step, values in asking.metrics + going_on.metrics]
    assert logged == [(step, values["train/loss"]) for step, values in recorder.metrics]
    assert (whole / "outputs" / "encoder.json").read_text() == (
        tmp_path / "outputs" / "encoder.json"
    ).read_text()


def test_a_crash_behind_the_training_does_not_train_again(trained, videos, tmp_path, monkeypatch):
    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("recipes.stages.pretrain.run.save_encoder", full_disk)
        with pytest.raises(OSError, match="no space"):
            run(context(tmp_path, {"data": videos}), config())
    recorder = Recorder()
    result = run(context(tmp_path, {"data": videos}, recorder), config())
    assert recorder.metrics == []
    assert result.metrics == trained[1].metrics
    assert fsio.sha256_file(result.outputs["encoder"].path) == fsio.sha256_file(
        trained[1].outputs["encoder"].path
    )
    assert (tmp_path / "outputs" / "figures" / "training.png").exists()


def test_it_can_start_from_another_pretraining(trained, tmp_path):
    _, result, _ = trained
    given = artifact("encoder", result.outputs["encoder"])
    ctx = context(tmp_path, {"init": given})
    started = build_method(ctx, config())
    source, _ = load_encoder(given.path)
    own = started.export_encoder()[0].state_dict()
    assert all(torch.equal(own[name], value) for name, value in source.state_dict().items())
    fresh = build_method(context(tmp_path, {}), config())
    assert not torch.equal(fresh.backbone.conv1.weight, source.backbone.conv1.weight)
    assert torch.equal(
        fresh.predictor[0].weight, build_method(ctx, config()).predictor[0].weight
    ), "the head is new"


def test_a_start_from_another_architecture_is_refused(trained, tmp_path):
    _, result, _ = trained
    _, description = load_encoder(result.outputs["encoder"].path)
    path = tmp_path / "other.safetensors"
    other = description.model_copy(update={"context": None})
    save_encoder(random_encoder(other, seed=0), other, path)
    given = Artifact(name="encoder", kind="encoder", path=path, sha256="", bytes=0)
    with pytest.raises(ConfigurationError, match="same backbone and method"):
        build_method(context(tmp_path, {"init": given}), config())


def test_weights_at_the_start_are_a_function_of_the_seed(tmp_path):
    ctx = context(tmp_path, {})
    first, again, other = (build_method(ctx, config(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.backbone.conv1.weight, again.backbone.conv1.weight)
    assert not torch.equal(first.backbone.conv1.weight, other.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"clip": {**CLIP, "blocks": 2}}, r"none is left to predict from"),
        ({"split": 2}, "only ucf101 and hmdb51 have numbered splits"),
        ({"method": {"name": "nope"}}, "'dpc'"),
        ({"method": {"name": "dpc", "temperature": 1}}, "not permitted"),
        ({"backbone": {"name": "resnet"}}, "'r2d3d18', 'r2d3d34', 'r2d3d_tiny'"),
        ({"epochs": 3}, "epochs or max_steps"),
    ],
)
def test_impossible_configurations_are_refused_with_the_reason(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        config(**changes)


def test_the_catalog_names_this_stage_and_its_methods():
    assert load(STAGES["pretrain"].config) is PretrainConfig
    assert load(STAGES["pretrain"].target) is run
    for name, entry in METHODS.items():
        assert load(entry.config)(name=name).name == name
        assert callable(load(entry.target))


def test_the_config_imports_nothing_heavy():
    code = (
        "import sys, recipes.stages.pretrain.config\n"
        "heavy = {'torch', 'numpy', 'pandas', 'deepspeed', 'mlflow', 'decord', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_long_history_is_thinned_evenly_and_continues_after_a_restart():
    whole, stopped = History(longest=8), History(longest=8)
    for step in range(50):
        whole.add(step, {"x": float(step)})
        stopped.add(step, {"x": float(step)})
        if step == 21:
            resumed = History(longest=8)
            resumed.load(stopped.state())
            stopped = resumed
    steps = [step for step, _ in whole.entries]
    assert steps == [0, 8, 16, 24, 32, 40, 48]
    assert stopped.entries == whole.entries
