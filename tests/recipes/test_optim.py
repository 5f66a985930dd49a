"""Parameter groups and optimizers: LARS and LAMB against plain loops and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recipes.contract import ConfigurationError
from recipes.engine.config import OptimizerConfig
from recipes.engine.layerwise import Lamb, Lars
from recipes.engine.loop import train
from recipes.engine.optim import ParamGroup, build, param_groups, refuse_ungrouped
from tests.recipes.engine_worker import make_context
from tests.recipes.train_fields import fields


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


def test_a_trainable_parameter_that_is_not_in_exactly_one_group_is_refused_by_name(tmp_path):
    network = model()
    bias, *others = [p for name, p in network.named_parameters() if name != "head.weight"]
    twice = [ParamGroup(name="a", params=(bias, *others)), ParamGroup(name="b", params=(bias,))]
    first = next(iter(dict(network.named_parameters())))
    message = rf"one group of the optimizer: {first} \(in 2\), head\.weight \(in 0\)\."
    with pytest.raises(ConfigurationError, match=message):
        train(make_context(tmp_path), network, lambda start: [], fields(), param_groups=twice)
    network["head"].weight.requires_grad_(False)
    refuse_ungrouped(network, [ParamGroup(name="a", params=(bias, *others))])


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


def test_norms_and_biases_of_video_networks_are_told_from_weights():
    network = nn.ModuleDict(
        {
            "conv": nn.Conv3d(1, 2, 1),
            "norm": nn.BatchNorm3d(2),
            "instance": nn.InstanceNorm3d(2, affine=True),
            "group": nn.GroupNorm(1, 2),
            "volume": nn.LayerNorm([2, 3, 4]),
            "lstm": nn.LSTM(2, 3),
            "head": nn.Linear(2, 3),
        }
    )
    network.register_parameter("temperature", nn.Parameter(torch.ones(())))
    config = OptimizerConfig(weight_decay=0.1, decay_norm_and_bias=False)
    names = {id(p): name for name, p in network.named_parameters()}
    decayed = {
        names[id(p)]
        for group in param_groups(network, config)
        for p in group.params
        if group.weight_decay
    }
    assert decayed == {"conv.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"}


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_lars_and_lamb_leave_norms_and_biases_unscaled_and_decay_them_as_asked(
    name, decay_norm_and_bias
):
    config = OptimizerConfig(
        name=name, weight_decay=0.1, decay_norm_and_bias=decay_norm_and_bias, lr=1.0
    )
    groups = param_groups(model(), config, {"encoder.": 0.5})
    optimizer = build(groups, config, 8)
    assert len(optimizer.param_groups) == len(groups) == 4
    for group in optimizer.param_groups:
        matrices = {p.ndim > 1 for p in group["params"]}
        assert matrices == {group["adapt"]}
        assert group["weight_decay"] == (0.1 if group["adapt"] or decay_norm_and_bias else 0.0)
    assert "adapt" not in build(groups, OptimizerConfig(), 8).param_groups[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("lars", Lars),
        ("lamb", Lamb),
    ],
)
def test_the_optimizer_is_the_one_of_that_name_with_its_settings(name, kind):
    config = OptimizerConfig(name=name, lr=0.5, momentum=0.7, betas=(0.8, 0.9), weight_decay=0.01)
    optimizer = build(param_groups(model(), config, {"head.": 0.1}), config, 8)
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {0.05, 0.5}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}
    expected = {"momentum": 0.7} if name in ("sgd", "lars") else {"betas": (0.8, 0.9)}
    assert expected.items() <= optimizer.param_groups[0].items()


def test_the_optimizer_starts_at_the_rate_of_its_batch():
    config = OptimizerConfig(lr=0.5, lr_batch=256)
    (group,) = build(param_groups(model(), config), config, 512).param_groups
    assert group["lr"] == 1.0


SETTINGS = {
    "lars": {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.05, "trust_coefficient": 0.02},
    "lamb": {"lr": 0.3, "betas": (0.7, 0.8), "weight_decay": 0.05, "eps": 1e-6},
}
KINDS = {"lars": Lars, "lamb": Lamb}


def lars_by_hand(weight, gradient, state, *, lr, momentum, weight_decay, trust_coefficient, adapt):
    update = gradient + weight_decay * weight
    if adapt and weight.norm() > 0 and gradient.norm() + weight_decay * weight.norm() > 0:
        below = gradient.norm() + weight_decay * weight.norm()
        update = trust_coefficient * weight.norm() / below * update
    state["v"] = momentum * state.get("v", torch.zeros_like(weight)) + update
    return weight - lr * state["v"]


def lamb_by_hand(weight, gradient, state, *, lr, betas, weight_decay, eps, adapt):
    step = state["step"] = state.get("step", 0) + 1
    zero = torch.zeros_like(weight)
    state["m"] = betas[0] * state.get("m", zero) + (1 - betas[0]) * gradient
    state["v"] = betas[1] * state.get("v", zero) + (1 - betas[1]) * gradient**2
    first, second = state["m"] / (1 - betas[0] ** step), state["v"] / (1 - betas[1] ** step)
    update = first / (second.sqrt() + eps) + weight_decay * weight
    ratio = 1.0
    if adapt and weight.norm() > 0 and update.norm() > 0:
        ratio = weight.norm() / update.norm()
    return weight - lr * ratio * update


BY_HAND = {"lars": lars_by_hand, "lamb": lamb_by_hand}


def weights(device: str = "cpu") -> list[nn.Parameter]:
    """Of several shapes; one is zero."""
    torch.manual_seed(0)
    shapes = [(4, 2, 3, 3, 3), (5, 4), (7,), (3, 3)]
    values = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    values[3].zero_()
    return [nn.Parameter(value.to(device)) for value in values]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """Random ones, the same for the same step; the second tensor has none at step 1."""
    torch.manual_seed(step)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, dtype=torch.float64).to(parameter.device)
        parameter.grad = None if (index, step) == (1, 1) else gradient


def on_devices() -> list:
    absent = not torch.cuda.is_available()
    return ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(absent, reason="needs a GPU"))]


@pytest.mark.parametrize("device", on_devices())
@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_lars_and_lamb_do_what_a_loop_over_tensors_does(name, adapt, device):
    parameters, expected = weights(device), weights(device)
    optimizer = KINDS[name](parameters, adapt=adapt, **SETTINGS[name])
    states: list[dict] = [{} for _ in parameters]
    for step in range(5):
        set_gradients(parameters, step)
        for index, (parameter, state) in enumerate(zip(parameters, states, strict=True)):
            if parameter.grad is not None:
                moved = BY_HAND[name](
                    expected[index].data, parameter.grad, state, adapt=adapt, **SETTINGS[name]
                )
                expected[index].data.copy_(moved)
        optimizer.step()
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "share"),
    [
        ("lars", {"lr": 0.3, "trust_coefficient": 0.02}, 0.3 * 0.02),
        ("lars", {"lr": 0.3, "trust_coefficient": 0.02, "weight_decay": 0.0}, 0.3 * 0.02),
        ("lamb", {"lr": 0.3, "weight_decay": 0.1}, 0.3),
    ],
)
def test_the_first_step_is_a_fixed_share_of_the_norm_of_each_tensor(name, settings, share):
    parameters = weights()[:3]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = KINDS[name](parameters, **settings)
    for scale, parameter in enumerate(parameters):
        parameter.grad = 100.0**scale * torch.randn_like(parameter)
    optimizer.step()
    for parameter, old in zip(parameters, before, strict=True):
        moved = (parameter.detach() - old).norm() / old.norm()
        assert moved.item() == pytest.approx(share)


def test_a_tensor_or_an_update_of_norm_zero_is_not_scaled():
    zero, idle = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
    zero.grad, idle.grad = torch.tensor([1.0, -2.0, 0.0]), torch.zeros(3)
    Lars([zero, idle], lr=0.5, momentum=0.0).step()
    assert zero.tolist() == [-0.5, 1.0, 0.0]
    assert idle.tolist() == [1.0, 1.0, 1.0]
    zero = nn.Parameter(torch.zeros(3))
    zero.grad = torch.tensor([1.0, -2.0, 0.0])
    Lamb([zero, idle], lr=0.5, eps=0.0625).step()
    assert zero.tolist() == pytest.approx([-0.5 / 1.0625, 0.5 * 2 / 2.0625, 0.0])
    assert idle.tolist() == [1.0, 1.0, 1.0]


def test_without_adapting_lars_is_sgd_and_lamb_without_decay_is_adam():
    pairs = [
        (
            Lars(weights(), adapt=False, **SETTINGS["lars"]),
            torch.optim.SGD(weights(), lr=0.3, momentum=0.8, weight_decay=0.05),
        ),
        (
            Lamb(weights(), lr=0.3, eps=1e-8, adapt=False),
            torch.optim.Adam(weights(), lr=0.3),
        ),
    ]
    for pair in pairs:
        for step in range(4):
            for optimizer in pair:
                set_gradients(optimizer.param_groups[0]["params"], step + 2)
                optimizer.step()
        ours, theirs = (optimizer.param_groups[0]["params"] for optimizer in pair)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_lars_and_lamb_go_on_from_their_saved_state_bit_by_bit(name, tmp_path):
    parameters = weights()
    optimizer = KINDS[name](parameters, **SETTINGS[name])
    for step in range(3):
        set_gradients(parameters, step)
        optimizer.step()
    torch.save([optimizer.state_dict(), parameters], tmp_path / "state.pt")
    for step in range(3, 6):
        set_gradients(parameters, step)
        optimizer.step()
    state, others = torch.load(tmp_path / "state.pt", weights_only=True)
    again = KINDS[name](others, lr=1.0)
    again.load_state_dict(state)
    for step in range(3, 6):
        set_gradients(others, step)
        again.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    ours, theirs = optimizer.state_dict(), again.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for index, values in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][index][key]) for key, value in values.items())
