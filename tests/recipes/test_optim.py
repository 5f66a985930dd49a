"""Parameter groups and optimizers: LARS and LAMB against plain loops and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recipes.engine.config import OptimizerConfig
from recipes.engine.optim import build, param_groups


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
