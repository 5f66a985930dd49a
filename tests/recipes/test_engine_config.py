"""Training fields: what they refuse, accumulation; what a rank computes on."""

from __future__ import annotations

import os

import pytest
import torch
from pydantic import ValidationError

from recipes.engine import distributed
from recipes.engine.config import CheckpointConfig, TrainFields
from recipes.engine.deepspeed_engine import prepare_environment
from tests.recipes.engine_worker import make_context
from tests.recipes.train_fields import fields


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"epochs": None}, "give epochs or max_steps"),
        ({"max_steps": 5}, "give epochs or max_steps"),
        ({"batch_size": 9}, "multiple of micro_batch 2"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"zero_stage": 4}, "0, 1, 2 or 3"),
        ({"precision": "fp8"}, "'fp32', 'bf16' or 'fp16'"),
        ({"optimizer": {"schedule": "step"}}, "needs milestones"),
        ({"optimizer": {"milestones": [1]}}, "no effect"),
        ({"optimizer": {"schedule": "step", "milestones": [2, 1]}}, "must rise"),
        ({"optimizer": {"schedule": "restarts"}}, "needs restart_epochs"),
        ({"optimizer": {"restart_epochs": 5}}, "restart_epochs has no effect with schedule const"),
        (
            {"optimizer": {"schedule": "cosine", "restart_factor": 2}},
            "restart_factor has no effect with schedule cosine",
        ),
        ({"optimizer": {"min_lr_ratio": 0.1}}, "min_lr_ratio has no effect with schedule const"),
        ({"optimizer": {"nesterov": True}}, "nesterov has no effect with optimizer adam"),
        (
            {"optimizer": {"name": "sgd", "momentum": 0, "nesterov": True}},
            "nesterov needs a momentum",
        ),
        ({"optimizer": {"lr_rule": "sqrt"}}, "lr_rule has no effect with no lr_batch"),
        ({"offload": "optimizer"}, "offload optimizer needs zero_stage 1, 2 or 3; here it is 0"),
        ({"offload": "all", "zero_stage": 2}, "needs zero_stage 3; here it is 2"),
        ({"loss_scale": {"initial": 1024}}, "no effect with precision fp32: only fp16 needs it"),
        ({"optimizer": {"name": "lars"}, "zero_stage": 1}, "norms of single tensors .* are gone"),
        ({"optimizer": {"name": "lamb"}, "zero_stage": 3}, "lamb needs zero_stage 0"),
        (
            {"epochs": None, "max_steps": 5, "profile": {}},
            "profile.last 12 lies behind max_steps 5",
        ),
        ({"profile": {"first": 5, "last": 4}}, "last 4 lies before first 5"),
        ({"checkpoint": {"keep": 1}}, "greater than or equal to 2"),
        ({"checkpoint": {"keep_every": 10}}, "keep_every 10 needs steps"),
        ({"checkpoint": {"keep_every": 10, "steps": 4}}, "must be a multiple of steps 4"),
        ({"learning_rate": 1}, "not permitted"),
    ],
)
def test_impossible_training_fields_are_refused_with_the_reason(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        fields(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "sgd", "nesterov": True}},
        {"optimizer": {"name": "lars", "lr": 0.3, "lr_batch": 256}},
        {"optimizer": {"schedule": "restarts", "restart_epochs": 1, "restart_factor": 2}},
        {"optimizer": {"schedule": "restarts", "restart_epochs": 1, "min_lr_ratio": 0.1}},
        {"offload": "optimizer", "zero_stage": 1},
        {"offload": "all", "zero_stage": 3},
        {"precision": "fp16", "loss_scale": {"initial": 1024}},
        {"ema_decay": 0.99, "zero_stage": 3},
        {"checkpoint": {"keep_every": 10, "steps": 5}},
        {"profile": {}},
    ],
)
def test_fields_that_fit_are_accepted_and_survive_being_written_with_all_defaults(changes):
    config = fields(**changes)
    assert TrainFields.model_validate(config.model_dump(mode="json")) == config


def test_accumulation_keeps_the_global_batch_on_any_fitting_rank_count():
    assert {ranks: fields().accumulation(ranks) for ranks in (1, 2, 4)} == {1: 4, 2: 2, 4: 1}
    with pytest.raises(ValueError, match=r"micro_batch 2 x 3 ranks.*fit: 1, 2, 4"):
        fields().accumulation(3)


def test_ten_minutes_and_two_kept_are_the_defaults():
    assert CheckpointConfig() == CheckpointConfig(minutes=10.0, steps=None, keep=2)


@pytest.mark.parametrize(("device", "local_rank"), [("cuda:0", "0"), ("cuda:3", "3"), ("cpu", "3")])
def test_deepspeed_is_told_the_number_of_the_visible_device(monkeypatch, device, local_rank):
    # SLURM with one GPU bound to each task: local rank 3 sees its own GPU as number 0.
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "2")
    monkeypatch.setenv("DS_ACCELERATOR", "")
    prepare_environment(torch.device(device))
    assert os.environ["LOCAL_RANK"] == local_rank
    assert "OMPI_COMM_WORLD_LOCAL_RANK" not in os.environ
    assert os.environ["DS_ACCELERATOR"] == ("cpu" if device == "cpu" else "")


def test_an_absent_gpu_is_the_fault_of_the_node_and_never_replaced_by_the_cpu(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(distributed.DeviceError, match="needs CUDA device 0 and sees 0") as raised:
        distributed.init(make_context(tmp_path, device="cuda"))
    assert raised.value.exit_code == 74


@pytest.mark.parametrize(("visible", "index"), [(1, 0), (4, 3)])
def test_a_rank_takes_its_own_of_several_gpus_or_the_only_one(
    tmp_path, monkeypatch, visible, index
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    found = distributed.device(make_context(tmp_path, device="cuda", rank=3))
    assert found == torch.device("cuda", index)
