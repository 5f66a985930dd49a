"""Fine-tuning: the head, learning rates, learning, and a stop after the last step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from recipes.contract import Artifact, Preempted
from recipes.data.augment import normalize
from recipes.data.loader import Batch
from recipes.engine import optim
from recipes.evaluation.subject import Subject, open_subject
from recipes.stages.finetune.config import FinetuneConfig
from recipes.stages.finetune.model import ENCODER_PREFIX, VideoClassifier
from recipes.stages.finetune.run import build_classifier, run
from tests.recipes.evaluation_support import (
    BUILT,
    Recorder,
    context,
    copies,
    encoder_file,
    synthetic,
)

DATA = {"format": "synthetic"}
SHORT: dict[str, Any] = {
    "data": DATA,
    "batch_size": 4,
    "micro_batch": 4,
    "max_steps": 3,
    "windows": 2,
    "workers": 0,
    "augment": "none",
    "checkpoint": {"minutes": None},
}


@pytest.fixture(scope="module", autouse=True)
def _rank_environment() -> Iterator[None]:
    """What the entry point sets.

    The process group stays: DeepSpeed keeps it for the life of a process and breaks without it.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return synthetic(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return encoder_file(tmp_path_factory.mktemp("encoder"))


def _subject(folder: Path, encoder: Artifact) -> Subject:
    return open_subject(context(folder, {"encoder": encoder}), FinetuneConfig(**SHORT))


def _classifier(folder: Path, encoder: Artifact, **changes: Any) -> VideoClassifier:
    return build_classifier(_subject(folder, encoder), 4, FinetuneConfig(**{**SHORT, **changes}))


def test_every_parameter_of_the_encoder_learns_at_a_tenth_and_no_other(
    tmp_path: Path, trained: Artifact
) -> None:
    model = _classifier(tmp_path, trained)
    config = FinetuneConfig(**SHORT)
    groups = optim.param_groups(model, config.optimizer, {ENCODER_PREFIX: config.lr_ratio})
    ratio = {id(p): group.lr_ratio for group in groups for p in group.params}
    assert len(ratio) == sum(len(group.params) for group in groups)
    found = {name: ratio.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert {name for name, value in found.items() if value == 0.1} == {
        f"encoder.{name}" for name, _ in _subject(tmp_path, trained).encoder.named_parameters()
    }
    assert {name for name, value in found.items() if value == 1.0} == {
        "norm.weight",
        "norm.bias",
        "linear.weight",
        "linear.bias",
    }


def test_the_ratio_is_one_from_scratch_and_can_be_set() -> None:
    assert FinetuneConfig(**SHORT).lr_ratio == 0.1
    assert FinetuneConfig(**SHORT, **BUILT).lr_ratio == 1.0
    assert FinetuneConfig(**SHORT, **BUILT, backbone_lr_ratio=0.3).lr_ratio == 0.3


def test_the_head_is_that_of_dpc_step_by_step(tmp_path: Path, trained: Artifact) -> None:
    model = _classifier(tmp_path, trained).eval()
    clips = torch.randn(3, 2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder = model.encoder
    assert encoder.context is not None
    with torch.no_grad():
        hidden = torch.zeros(3, 64, 4, 4)
        for block in range(2):
            maps = torch.relu(encoder.backbone(clips[:, block])).mean(dim=2)
            hidden = encoder.context.step(maps, hidden)
        norm = model.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        values = hidden.mean(dim=(2, 3)) - norm.running_mean
        values = values / (norm.running_var + norm.eps).sqrt()
        expected = values @ model.linear.weight.T + model.linear.bias
        torch.testing.assert_close(model(clips), expected, rtol=1e-4, atol=1e-5)


def test_without_a_context_network_the_head_takes_the_pooled_feature(tmp_path: Path) -> None:
    model = _classifier(tmp_path, encoder_file(tmp_path, context_network=False)).eval()
    clips = torch.randn(2, 2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = model.encoder(clips)["pooled"]
        torch.testing.assert_close(model(clips), model.linear(model.norm(pooled)))


def test_new_layers_follow_from_the_seed(tmp_path: Path, trained: Artifact) -> None:
    torch.manual_seed(1)
    first = _classifier(tmp_path, trained)
    torch.manual_seed(2)
    again, other = _classifier(tmp_path, trained), _classifier(tmp_path, trained, seed=5)
    assert torch.equal(first.linear.weight, again.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)
    rows = first.linear.weight @ first.linear.weight.T
    torch.testing.assert_close(rows, torch.eye(4), atol=1e-5, rtol=0)


def test_probabilities_are_those_of_normalized_pixels(tmp_path: Path, trained: Artifact) -> None:
    model = _classifier(tmp_path, trained).eval()
    clips = torch.randint(0, 256, (2, 2, 3, 4, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        found = model.probabilities(clips)
        torch.testing.assert_close(found, model(normalize(clips.float() / 255)).softmax(1))
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_the_loss_is_cross_entropy_and_reaches_every_parameter(
    tmp_path: Path, trained: Artifact
) -> None:
    model = _classifier(tmp_path, trained, dropout=0.0)
    batch = Batch(
        clips=torch.randint(0, 256, (4, 2, 3, 4, 32, 32), dtype=torch.uint8),
        labels=torch.tensor([0, 1, 2, 3]),
        seeds=torch.arange(4),
        videos=torch.arange(4),
    )
    assert model.encoder.context is not None
    model.encoder.context.dropout.p = 0.0  # it would draw anew in the second pass
    output = model.train().loss(batch)
    output.loss.backward()
    with torch.no_grad():
        logits = model(normalize(batch.clips.float() / 255))
    expected = -logits.log_softmax(1)[torch.arange(4), batch.labels].mean()
    torch.testing.assert_close(output.loss.detach(), expected)
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert 0.0 <= float(output.metrics["top1"]) <= 1.0


def test_eight_videos_are_learnt_from_scratch_and_the_last_weights_tested(
    tmp_path: Path, drawn: Artifact
) -> None:
    same = copies(tmp_path / "copies", drawn, 8)
    config = FinetuneConfig(
        **{**SHORT, **BUILT, "max_steps": 120, "batch_size": 8, "micro_batch": 8, "dropout": 0.0},
        optimizer={"lr": 3e-3},
    )
    recorder = Recorder()
    result = run(context(tmp_path, {"data": same}, recorder), config)
    assert result.steps == 120
    assert result.metrics["top1"] == 1.0
    assert result.metrics["train/top1"] > 0.95
    assert result.summary["method"] == "supervised"
    assert result.summary["protocol"] == "finetune"
    assert (120, "top1") in [(step, name) for step, values in recorder.metrics for name in values]
    with safe_open(tmp_path / "outputs" / "classifier.safetensors", framework="pt") as stream:
        about = json.loads(stream.metadata()["classifier"])
        names = set(stream.keys())
    assert about["classes"] == list(same.meta["classes"])
    assert {"linear.weight", "norm.running_mean"} <= names
    assert (tmp_path / "outputs" / "figures" / "confusion.png").exists()


def test_a_pretrained_encoder_moves_a_tenth_as_far(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    moved = {}
    start = _subject(tmp_path, trained).encoder.state_dict()
    for ratio in (0.1, 1.0):
        folder = tmp_path / str(ratio)
        config = FinetuneConfig(**{**SHORT, "max_steps": 1}, backbone_lr_ratio=ratio)
        result = run(context(folder, {"data": drawn, "encoder": trained}), config)
        assert result.summary["method"] == "dpc"
        assert result.summary["pretrain_data"] == "elsewhere"
        with safe_open(folder / "outputs" / "classifier.safetensors", framework="pt") as stream:
            weight = stream.get_tensor("encoder.backbone.conv1.weight")
        moved[ratio] = float((weight - start["backbone.conv1.weight"]).abs().mean())
    # Adam's first step has the size of the rate, whatever the gradient.
    assert moved[0.1] == pytest.approx(moved[1.0] / 10, rel=0.02)


def test_a_stop_while_testing_repeats_no_training(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    inputs = {"data": drawn, "encoder": trained}
    config = FinetuneConfig(**SHORT)
    with pytest.raises(Preempted) as stop:
        run(context(tmp_path, inputs, Recorder(stop_after=4)), config)
    assert stop.value.step == 3
    assert not (tmp_path / "outputs" / "classifier.safetensors").exists()
    recorder = Recorder()
    resumed = run(context(tmp_path, inputs, recorder), config)
    assert resumed.steps == 3
    assert not [values for _, values in recorder.metrics if "train/loss" in values]
    whole = run(context(tmp_path / "whole", inputs), config)
    assert dict(resumed.metrics) == dict(whole.metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 1}, "batch norm needs more than one clip"),
        ({"backbone_lr_ratio": 0.0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"augment": "strong"}, "augment"),
        ({"max_steps": None}, "epochs or max_steps"),
        ({"encoder": "random"}, "needs backbone"),
        ({"encoder": "mean_color"}, "'input' or 'random'"),
        ({"split": 1}, "numbered splits"),
    ],
)
def test_what_a_finetuning_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FinetuneConfig.model_validate({**SHORT, **changes})


def test_augmentation_is_dpcs_by_default_and_can_be_written_out() -> None:
    default = FinetuneConfig.model_validate({**SHORT, "augment": "finetune"}).augmentation
    assert default.crop_area == (0.5, 1.0)
    assert default.jitter.p == 0.3
    own = FinetuneConfig.model_validate({**SHORT, "augment": {"flip": 0.25}}).augmentation
    assert own.flip == 0.25
    assert FinetuneConfig.model_fields["augment"].default == "finetune"
