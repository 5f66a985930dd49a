"""Learning-rate schedules: closed forms, and PyTorch's schedulers as oracles."""

from __future__ import annotations

import math

import pytest
import torch

from recipes.engine.config import OptimizerConfig
from recipes.engine.schedule import base_lr, lr_factor, total_steps
from tests.recipes.train_fields import fields


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


def oracle(scheduler, total: int, **settings) -> list[float]:
    """Rates that a scheduler of PyTorch gives, for a rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = scheduler(optimizer, **settings)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_the_cosine_is_that_of_pytorch():
    given = factors(40, schedule="cosine", min_lr_ratio=0.1)
    expected = oracle(torch.optim.lr_scheduler.CosineAnnealingLR, 40, T_max=40, eta_min=0.1)
    assert given == pytest.approx(expected)


def test_the_drops_are_those_of_pytorch():
    given = factors(40, schedule="step", milestones=[1, 2, 2, 3.5], gamma=0.3)
    expected = oracle(
        torch.optim.lr_scheduler.MultiStepLR, 40, milestones=[10, 20, 20, 35], gamma=0.3
    )
    assert given == pytest.approx(expected)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 7])
def test_the_restarts_are_those_of_pytorch_after_the_warmup(factor, warmup):
    given = factors(
        100 + warmup,
        schedule="restarts",
        restart_epochs=0.8,
        restart_factor=factor,
        min_lr_ratio=0.05,
        warmup_steps=warmup,
    )
    expected = oracle(
        torch.optim.lr_scheduler.CosineAnnealingWarmRestarts,
        100,
        T_0=8,
        T_mult=factor,
        eta_min=0.05,
    )
    assert given[warmup:] == pytest.approx(expected)


def test_periods_may_grow_by_a_fraction():
    given = factors(48, schedule="restarts", restart_epochs=1, restart_factor=1.5)
    # Periods of 10, 15 and 22.5 steps: the rate is back at its peak at steps 0, 10, 25 and near 48.
    peaks = [step for step, rate in enumerate(given) if rate == 1.0]
    assert peaks == [0, 10, 25]
    assert given[17] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 15)))
    assert given[47] < 0.01


def test_a_rate_far_on_is_found_as_fast_as_the_first():
    config = OptimizerConfig(schedule="restarts", restart_epochs=1)
    assert lr_factor(config, 10**9, 10**9, 10) == 1.0
    assert lr_factor(config, 10**9 + 5, 10**9, 10) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({"lr": 0.3}, 0.3),
        ({"lr": 0.3, "lr_batch": 256}, 1.2),
        ({"lr": 0.3, "lr_batch": 256, "lr_rule": "sqrt"}, 0.6),
        ({"lr": 0.3, "lr_batch": 4096}, 0.075),
    ],
)
def test_the_rate_is_scaled_to_the_batch_it_is_used_with(changes, rate):
    assert base_lr(OptimizerConfig(**changes), 1024) == pytest.approx(rate)
