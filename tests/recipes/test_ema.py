"""The moving average of weights: its values, and what it does to the model it belongs to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recipes.engine.ema import Ema, attach, decay_at


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    return model


def train_a_little(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def test_the_average_is_the_weighted_sum_of_all_weights_so_far():
    """a_n = d_n a_(n-1) + (1 - d_n) w_n, written out as a sum over the history."""
    model = network()
    ema = attach(model, decay=0.6)
    history = [model[0].weight.detach().double().clone()]
    decays = []
    for step in range(1, 31):
        train_a_little(model)
        ema.update(step)
        history.append(model[0].weight.detach().double().clone())
        decays.append(decay_at(0.6, step))
    shares = [1.0, *(1 - decay for decay in decays)]
    expected = torch.zeros_like(history[0])
    for n, (share, weights) in enumerate(zip(shares, history, strict=True)):
        expected += share * torch.tensor(decays[n:]).double().prod() * weights
    torch.testing.assert_close(ema.get_buffer("0/weight"), expected.float(), rtol=1e-5, atol=1e-6)


def test_early_steps_keep_less_of_the_average_than_late_ones():
    assert decay_at(0.999, 1) == 2 / 11
    assert decay_at(0.999, 90) == 91 / 100
    assert decay_at(0.999, 8990) == pytest.approx(0.999)
    assert decay_at(0.999, 10**6) == 0.999
    assert decay_at(0.1, 1) == 0.1


def test_only_weights_with_a_gradient_are_averaged_and_the_state_dict_stays_as_it_was():
    model = network()
    before = set(model.state_dict())
    parameters = [name for name, _ in model.named_parameters()]
    attach(model, decay=0.9)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    added = {name.removeprefix("ema.") for name, _ in model.named_buffers() if "ema." in name}
    assert added == {name.replace(".", "/") for name in trained}
    assert "2/bias" not in added
    assert set(model.state_dict()) == before
    assert [name for name, _ in model.named_parameters()] == parameters


def test_the_models_own_weights_come_back_bit_by_bit_even_after_an_error():
    model = network()
    ema = attach(model, decay=0.9)
    train_a_little(model)
    ema.update(1)
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(KeyError), ema.applied():
        assert torch.equal(model[0].weight, ema.get_buffer("0/weight"))
        assert not torch.equal(model[0].weight, raw["0.weight"])
        raise KeyError
    assert all(torch.equal(value, raw[name]) for name, value in model.state_dict().items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses


def test_evaluation_uses_the_current_batch_statistics():
    model = network()
    ema = attach(model, decay=0.9)
    model[1](torch.randn(8, 4))
    mean = model[1].running_mean.clone()
    assert mean.any()
    with ema.applied():
        assert torch.equal(model[1].running_mean, mean)


def test_a_model_of_16_bits_is_averaged_in_32():
    model = network().half()
    ema = attach(model, decay=0.999)
    start = ema.get_buffer("0/weight").clone()
    with torch.no_grad():
        model[0].weight.add_(1e-3)
    for step in range(1000, 1010):
        ema.update(step * 10)
    moved = ema.get_buffer("0/weight") - start
    assert moved.dtype == torch.float32
    assert 0 < moved.mean() < 2e-5, "in 16 bits such a step would be rounded away"
    with ema.applied():
        assert model[0].weight.dtype == torch.float16


def test_a_model_with_something_else_called_ema_is_refused():
    model = network()
    attach(model, decay=0.9)
    with pytest.raises(ValueError, match="attribute `ema` of its own"):
        attach(model, decay=0.9)


def test_the_average_does_not_hold_the_model_as_a_part_of_itself():
    model = network()
    ema = Ema(model, decay=0.9)
    assert not list(ema.parameters())
    assert not list(ema.children())


def test_the_average_can_go_into_parameters_that_replaced_the_first_ones():
    model = network()
    ema = attach(model, decay=0.9)
    for layer in (model[0], model[1]):
        layer.weight = nn.Parameter(torch.zeros_like(layer.weight))
    ema.follow(model)
    ema.apply_for_good()
    assert torch.equal(model[0].weight, ema.get_buffer("0/weight"))
    assert model[1].weight.all()
