"""The probe stage and its configuration, on real files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file

from cluster import fsio
from recipes.contract import Artifact, Preempted, StageError, StageResult
from recipes.evaluation.config import NUMBERED_SPLITS
from recipes.models.encoder import VideoEncoder, load_encoder
from recipes.stages.probe.config import ProbeConfig
from recipes.stages.probe.run import run
from tests.recipes.evaluation_support import (
    BUILT,
    Recorder,
    context,
    copies,
    encoder_file,
    on_ranks,
    synthetic,
)

DATA = {"format": "synthetic"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return synthetic(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return encoder_file(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def probed(
    tmp_path_factory: pytest.TempPathFactory, drawn: Artifact, trained: Artifact
) -> tuple[Path, StageResult, Recorder]:
    folder, recorder = tmp_path_factory.mktemp("probed"), Recorder()
    ctx = context(folder, {"data": drawn, "encoder": trained}, recorder)
    config = ProbeConfig(data=DATA, windows=2, workers=0, regularization=(1e-3, 1.0))
    return folder / "outputs", run(ctx, config), recorder


Probed = tuple[Path, StageResult, Recorder]


def test_the_numbers_of_a_probe(probed: Probed) -> None:
    _, result, recorder = probed
    metrics = result.metrics
    assert metrics["frozen"] == 1.0
    assert metrics["num_test"] == 10.0
    assert metrics["num_train"] == 16.0
    assert metrics["chance"] == 0.3  # 10 test videos of 4 classes: 3, 3, 2, 2
    assert metrics["C"] in (1e-3, 1.0)
    assert {"holdout_top1/C_0.001", "holdout_top1/C_1"} <= set(metrics)
    assert metrics["top1_low"] <= metrics["top1"] < metrics["top1_high"]
    assert "top5" not in metrics
    assert recorder.metrics == [(0, dict(metrics))]


def test_the_result_names_itself_for_a_table(probed: Probed) -> None:
    _, result, _ = probed
    expected = {
        "protocol": "linear",
        "method": "dpc",
        "backbone": "r2d3d_tiny",
        "pretrain_data": "elsewhere",
        "data": "synthetic",
        "split": None,
        "clip": "2 x 4 frames, stride 1",
        "size": 32,
        "coverage": 1.0,
        "feature": "pooled",
    }
    assert expected.items() <= result.summary.items()
    fsio.to_json({"summary": dict(result.summary), "metrics": dict(result.metrics)})


def test_the_stored_classifier_gives_the_stored_accuracy(probed: Probed) -> None:
    folder, result, _ = probed
    assert {name: output.kind for name, output in result.outputs.items()} == {
        "classifier": "classifier",
        "features": "features",
    }
    stored = load_file(folder / "features.safetensors")
    model = load_file(folder / "classifier.safetensors")
    inputs = (stored["test.features"].double() - model["mean"]) / model["scale"]
    right = (inputs @ model["weight"].T + model["bias"]).argmax(1) == stored["test.labels"]
    assert float(right.double().mean()) == result.metrics["top1"]
    with safe_open(folder / "classifier.safetensors", framework="pt") as stream:
        about = json.loads(stream.metadata()["classifier"])
    assert about["classes"] == list(result.outputs["classifier"].meta["classes"])


def test_every_test_video_has_its_line_and_every_class_too(probed: Probed) -> None:
    folder, result, _ = probed
    with (folder / "predictions.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 10
    right = sum(line["label"] == line["predicted"] for line in lines)
    assert right / 10 == pytest.approx(result.metrics["top1"])
    assert all(line["path"].split("/")[1] == line["label"] for line in lines)
    with (folder / "per_class.csv").open() as stream:
        classes = list(csv.DictReader(stream))
    assert {line["class"]: int(line["num_test"]) for line in classes} == {
        "left": 3,
        "right": 3,
        "up": 2,
        "down": 2,
    }
    for name in ("confusion", "per_class"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 3000


def test_the_file_of_the_encoder_is_left_alone(trained: Artifact, probed: Probed) -> None:
    assert fsio.sha256_file(trained.path) == trained.sha256


def test_an_encoder_that_changes_while_it_is_probed_fails_the_stage(
    tmp_path: Path, drawn: Artifact, trained: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stays_in_training(self: VideoEncoder, mode: bool = True) -> VideoEncoder:
        for module in self.modules():
            module.training = True
        return self

    monkeypatch.setattr(VideoEncoder, "train", stays_in_training)
    ctx = context(tmp_path, {"data": drawn, "encoder": trained})
    with pytest.raises(StageError, match="encoder changed"):
        run(ctx, ProbeConfig(data=DATA, windows=1, workers=0))


def test_a_random_encoder_is_calibrated_and_follows_from_the_seed(
    tmp_path: Path, drawn: Artifact
) -> None:
    results = {}
    for name, changes in {
        "first": {},
        "again": {},
        "other": {"seed": 1},
        "plain": {"calibrate_batchnorm": False},
    }.items():
        config = ProbeConfig(
            data=DATA, windows=1, workers=0, regularization=1.0, **BUILT, **changes
        )
        result = run(context(tmp_path / name, {"data": drawn}), config)
        stored = load_file(tmp_path / name / "outputs" / "features.safetensors")
        results[name] = (stored["test.features"], result.summary)
    assert torch.equal(results["first"][0], results["again"][0])
    assert not torch.allclose(results["first"][0], results["other"][0])
    assert not torch.allclose(results["first"][0], results["plain"][0])
    assert "calibrated" in results["first"][1]["note"]
    assert "calibrated" not in results["plain"][1]["note"]
    assert results["first"][1]["method"] == "random"


def test_context_features_are_another_probe(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    ctx = context(tmp_path, {"data": drawn, "encoder": trained})
    config = ProbeConfig(data=DATA, windows=1, workers=0, regularization=1.0, feature="context")
    assert run(ctx, config).summary["feature"] == "context"
    stored = load_file(tmp_path / "outputs" / "features.safetensors")["test.features"]
    assert bool((stored.abs() <= 1).all())  # states of a ConvGRU are within its tanh


def test_copies_of_the_training_videos_are_all_recognized(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    same = copies(tmp_path / "copies", drawn, 12)
    ctx = context(tmp_path, {"data": same, "encoder": trained})
    result = run(ctx, ProbeConfig(data=DATA, windows=1, workers=0, regularization=1e3))
    assert result.metrics["top1"] == result.metrics["train_top1"] == 1.0


def _probe_on_rank(
    rank: int, world_size: int, folder: Path, data: Artifact, encoder: Artifact
) -> dict[str, float]:
    inputs = {"data": data, "encoder": encoder}
    ctx = context(folder, inputs, rank=rank, world_size=world_size)
    return dict(run(ctx, ProbeConfig(data=DATA, windows=2, workers=0, regularization=0.1)).metrics)


def test_two_ranks_probe_like_one_and_the_first_alone_has_the_result(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    first, second = on_ranks(2, _probe_on_rank, tmp_path / "two", drawn, trained)
    assert second == {}
    alone = _probe_on_rank(0, 1, tmp_path / "one", drawn, trained)
    assert first == pytest.approx(alone, rel=1e-4)


def test_a_stop_leaves_no_result(tmp_path: Path, drawn: Artifact, trained: Artifact) -> None:
    ctx = context(tmp_path, {"data": drawn, "encoder": trained}, Recorder(stop_after=1))
    with pytest.raises(Preempted) as stop:
        run(ctx, ProbeConfig(data=DATA, windows=2, batch_size=4, workers=0))
    assert stop.value.step == 0
    assert list((tmp_path / "outputs").iterdir()) == []


def test_the_encoder_of_the_test_has_statistics_of_its_own(trained: Artifact) -> None:
    encoder, _ = load_encoder(trained.path)
    means = [value for name, value in encoder.named_buffers() if "running_mean" in name]
    assert all(float(mean.abs().max()) > 0 for mean in means)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"encoder": "random"}, "needs backbone"),
        ({"encoder": "random", "backbone": {"name": "r2d3d_tiny"}}, "needs clip"),
        ({"backbone": {"name": "r2d3d_tiny"}}, "remove them"),
        ({"context": {}}, "remove them"),
        ({"split": 2}, "numbered splits"),
        ({"encoder": "mean_color", "clip": {}}, "'input' or 'random'"),
        ({**BUILT, "feature": "context"}, "needs context"),
        ({"calibrate_batchnorm": True}, "would change what"),
        ({"regularization": 0.0}, "greater than 0"),
        ({"regularization": []}, "at least 1 item"),
        ({"windows": 0}, "greater than or equal to 1"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_what_a_probe_cannot_be_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProbeConfig.model_validate({"data": DATA, **config})


@pytest.mark.parametrize("name", NUMBERED_SPLITS)
def test_numbered_splits_begin_with_the_first(name: str) -> None:
    data = {"format": name, "root": "/data"}
    assert ProbeConfig.model_validate({"data": data}).fold == 1
    assert ProbeConfig.model_validate({"data": data, "split": 3}).fold == 3
    assert ProbeConfig.model_validate({"data": DATA}).fold is None


def test_one_value_of_regularization_is_no_choice() -> None:
    assert ProbeConfig.model_validate({"data": DATA, "regularization": 1}).strengths == (1.0,)
    assert len(ProbeConfig.model_validate({"data": DATA}).strengths) == 6
