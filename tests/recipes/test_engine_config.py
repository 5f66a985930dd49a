"""Training fields, DeepSpeed's configuration, schedules, parameter groups."""

from __future__ import annotations

import math
import os

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from recipes.contract import ConfigurationError
from recipes.engine import distributed
from recipes.engine.config import CheckpointConfig, OptimizerConfig, TrainFields
from recipes.engine.deepspeed_engine import prepare_environment
from recipes.engine.ds_config import ds_config
from recipes.engine.optim import build, param_groups
from recipes.engine.schedule import lr_factor, total_steps
from tests.recipes.engine_worker import make_context


def fields(**changes) -> TrainFields:
    return TrainFields.model_validate({"epochs": 2, "batch_size": 8, "micro_batch": 2, **changes})


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
        ({"checkpoint": {"keep": 1}}, "greater than or equal to 2"),
        ({"learning_rate": 1}, "not permitted"),
    ],
)
def test_impossible_training_fields_are_refused_with_the_reason(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        fields(**changes)


def test_accumulation_keeps_the_global_batch_on_any_fitting_rank_count():
    assert {ranks: fields().accumulation(ranks) for ranks in (1, 2, 4)} == {1: 4, 2: 2, 4: 1}
    with pytest.raises(ValueError, match=r"micro_batch 2 x 3 ranks.*fit: 1, 2, 4"):
        fields().accumulation(3)


def test_the_plain_configuration_of_deepspeed():
    assert ds_config(fields(), world_size=2) == {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        "zero_optimization": {"stage": 0},
        "zero_allow_untested_optimizer": False,
    }


def test_the_configuration_of_deepspeed_with_everything_on():
    config = fields(
        precision="bf16", zero_stage=2, clip_grad=5.0, optimizer={"name": "sgd", "lr": 0.1}
    )
    assert ds_config(config, world_size=4) == {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 5.0,
        "steps_per_print": None,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def test_a_batch_that_does_not_fit_the_ranks_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="rank counts that fit"):
        ds_config(fields(), world_size=3)


def test_the_length_is_given_in_epochs_or_in_steps():
    assert total_steps(fields(epochs=3), steps_per_epoch=7) == 21
    assert total_steps(fields(epochs=None, max_steps=5), steps_per_epoch=7) == 5


def factors(total: int, per_epoch: int = 10, **optimizer) -> list[float]:
    config = OptimizerConfig.model_validate(optimizer)
    return [lr_factor(config, step, total, per_epoch) for step in range(total)]


def test_the_rate_is_constant_by_default():
    assert factors(4) == [1.0] * 4


def test_the_warmup_rises_linearly_to_the_full_rate():
    assert factors(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors(20, warmup_epochs=0.5)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_the_cosine_falls_from_the_end_of_the_warmup_to_its_floor():
    given = factors(104, warmup_steps=4, schedule="cosine", min_lr_ratio=0.05)
    assert given[4] == 1.0
    assert given[54] == pytest.approx(0.525)
    assert given[79] == pytest.approx(0.05 + 0.95 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert given[103] == pytest.approx(0.05, abs=0.001)
    assert sorted(given[4:], reverse=True) == given[4:]


def test_the_rate_drops_at_each_milestone():
    given = factors(40, schedule="step", milestones=[1, 2.5], gamma=0.1)
    assert given[9:11] == pytest.approx([1.0, 0.1])
    assert given[24:26] == pytest.approx([0.1, 0.01])


def model() -> nn.Module:
    parts = {
        "encoder": nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)),
        "head": nn.Linear(2, 3),
    }
    return nn.ModuleDict(parts)


def test_every_parameter_is_in_exactly_one_group():
    config = OptimizerConfig(weight_decay=0.1, decay_norm_and_bias=False)
    network = model()
    groups = param_groups(network, config, {"encoder.": 0.1})
    found = [id(p) for group in groups for p in group.params]
    assert sorted(found) == sorted(id(p) for p in network.parameters())
    rates = {id(p): group.lr_ratio for group in groups for p in group.params}
    decays = {id(p): group.weight_decay for group in groups for p in group.params}
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == (0.1 if name.startswith("encoder.") else 1.0)
        assert decays[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)


def test_by_default_one_group_decays_all_parameters():
    (group,) = param_groups(model(), OptimizerConfig(weight_decay=0.1))
    assert (group.lr_ratio, group.weight_decay, len(group.params)) == (1.0, 0.1, 6)


def test_frozen_parameters_are_left_out_and_the_longest_prefix_counts():
    network = model()
    network["encoder"][0].requires_grad_(False)
    groups = param_groups(network, OptimizerConfig(), {"encoder.": 0.1, "encoder.1": 0.01})
    assert {group.name: group.lr_ratio for group in groups} == {"all": 1.0, "encoder.1": 0.01}
    assert sum(len(group.params) for group in groups) == 4


def test_a_prefix_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="no parameter name begins with backbone"):
        param_groups(model(), OptimizerConfig(), {"backbone.": 0.1})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_the_optimizer_is_the_one_of_that_name_with_its_settings(name, kind):
    config = OptimizerConfig(name=name, lr=0.5, momentum=0.7, betas=(0.8, 0.9), weight_decay=0.01)
    optimizer = build(param_groups(model(), config, {"head.": 0.1}), config)
    assert type(optimizer) is kind
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.05, 0.5]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}
    expected = {"momentum": 0.7} if name == "sgd" else {"betas": (0.8, 0.9)}
    assert expected.items() <= optimizer.param_groups[0].items()


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
