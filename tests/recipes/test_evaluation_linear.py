"""Logistic regression against scikit-learn, and the choice of its strength."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from recipes.contract import ConfigurationError, InputError
from recipes.evaluation.linear import best_strength, fit, hold_out, select, statistics


def _clusters(
    rows: int, dim: int, classes: int, spread: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, dim, generator=rng)
    return centres[labels] + spread * torch.randn(rows, dim, generator=rng), labels


def _objective(
    weight: np.ndarray, bias: np.ndarray, inputs: torch.Tensor, labels: torch.Tensor, c: float
) -> float:
    logits = inputs @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    penalty = float((weight**2).sum()) / (2 * c * len(labels))
    return float(functional.cross_entropy(logits, labels)) + penalty


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
def test_the_optimum_is_that_of_scikit_learn(c: float) -> None:
    features, labels = _clusters(300, 24, 7, spread=2.0)
    features = features * torch.logspace(-2, 2, 24) + 5.0
    model = fit(features, labels, 7, c)
    inputs = (features.double() - model.mean) / model.scale
    reference = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(inputs.numpy(), labels.numpy())
    best = _objective(reference.coef_, reference.intercept_, inputs, labels, c)
    assert model.objective == pytest.approx(best, abs=1e-6)
    agree = model.scores(features).argmax(1).numpy() == reference.predict(inputs.numpy())
    assert agree.mean() > 0.99


def test_two_classes_reach_the_optimum_too() -> None:
    features, labels = _clusters(80, 5, 2, spread=1.5)
    model = fit(features, labels, 2, 1.0)
    inputs = (features.double() - model.mean) / model.scale
    # With two columns of weights the optimum has w0 = -w1, so |W|^2 is half of |w1 - w0|^2 and the
    # binary form with C reaches it at 2 C.
    reference = LogisticRegression(C=2.0, tol=1e-10, max_iter=5000).fit(inputs, labels)
    difference = (model.weight[1] - model.weight[0]).numpy()
    np.testing.assert_allclose(difference, reference.coef_[0], atol=2e-4)


def test_separable_features_are_classified_without_an_error() -> None:
    features, labels = _clusters(200, 16, 5, spread=0.05)
    model = fit(features, labels, 5, 1.0)
    assert bool((model.scores(features).argmax(1) == labels).all())


def test_features_without_signal_stay_at_chance() -> None:
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(400) % 4
    train, test = (torch.randn(400, 8, generator=rng) for _ in range(2))
    share = (fit(train, labels, 4, 1e-2).scores(test).argmax(1) == labels).double().mean()
    assert 0.17 < float(share) < 0.33


def test_a_constant_feature_is_harmless() -> None:
    features, labels = _clusters(60, 4, 3, spread=0.1)
    features[:, 2] = 0.1
    mean, scale = statistics(features)
    assert float(scale[2]) == 1.0
    assert float(mean[2]) == pytest.approx(0.1)
    assert bool(torch.isfinite(fit(features, labels, 3, 1.0).weight).all())


def test_fitting_twice_gives_the_same_bits() -> None:
    features, labels = _clusters(120, 10, 4, spread=1.0)
    first, second = (fit(features, labels, 4, 0.1) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_a_feature_that_is_no_number_is_refused() -> None:
    features, labels = _clusters(20, 4, 2, spread=1.0)
    features[3, 1] = float("nan")
    with pytest.raises(InputError, match="1 of 20 features"):
        fit(features, labels, 2, 1.0)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(InputError, match="at least two classes"):
        fit(torch.randn(6, 3), torch.zeros(6, dtype=torch.int64), 4, 1.0)


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(InputError, match="do not fit 2 classes"):
        fit(torch.randn(6, 3), torch.arange(6) % 3, 2, 1.0)


def test_no_group_is_on_both_sides_of_the_held_out_part() -> None:
    labels = np.arange(120) % 4
    groups = [f"g{row // 6}" for row in range(120)]
    kept, held = hold_out(labels, groups, 0.2, seed=0)
    assert sorted([*kept, *held]) == list(range(120))
    assert {groups[i] for i in kept}.isdisjoint({groups[i] for i in held})
    assert len(held) == pytest.approx(24, abs=6)
    assert set(labels[kept]) == {0, 1, 2, 3}


def test_videos_without_a_group_count_one_by_one() -> None:
    kept, held = hold_out(np.arange(50) % 2, [""] * 50, 0.2, seed=1)
    assert len(held) == 10
    assert len(kept) == 40


def test_the_held_out_part_follows_from_the_seed() -> None:
    labels, groups = np.arange(60) % 3, [f"g{row // 2}" for row in range(60)]
    first, again, other = (hold_out(labels, groups, 0.25, seed=s)[1].tolist() for s in (5, 5, 6))
    assert first == again
    assert first != other


def test_too_few_groups_say_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="set regularization to a single value"):
        hold_out(np.arange(20) % 2, ["one"] * 20, 0.2, seed=0)
    with pytest.raises(ConfigurationError, match="1 video"):
        hold_out(np.arange(5), [""] * 5, 0.2, seed=0)


def test_few_videos_of_a_class_or_few_groups_make_fewer_folds() -> None:
    kept, held = hold_out(np.arange(16) % 4, [""] * 16, 0.1, seed=0)
    assert (len(kept), len(held)) == (12, 4)
    kept, held = hold_out(np.arange(16) % 4, ["one", "two"] * 8, 0.2, seed=0)
    assert (len(kept), len(held)) == (8, 8)


def test_a_strong_penalty_wins_where_features_are_mostly_noise() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    features = torch.randn(80, 200, generator=rng)
    features[:, :50] += 0.7 * labels[:, None]
    held = hold_out(labels.numpy(), [""] * 80, 0.2, seed=0)
    accuracies = select(features, labels, 2, (1e3, 1e-3), held)
    assert accuracies[1e-3] > 0.8
    assert best_strength(accuracies) == 1e-3


def test_equal_accuracies_take_the_strongest_penalty() -> None:
    assert best_strength({10.0: 0.5, 0.1: 0.5, 1.0: 0.5}) == 0.1
    assert best_strength({10.0: 0.6, 0.1: 0.5}) == 10.0
