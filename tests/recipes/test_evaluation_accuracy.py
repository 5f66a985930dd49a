"""Accuracies, confusion matrices and intervals against counting and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from recipes.contract import InputError
from recipes.evaluation.accuracy import (
    chance_level,
    confusion_matrix,
    per_class_accuracy,
    topk_accuracy,
)
from recipes.evaluation.intervals import chance_interval, wilson_interval


def test_top_k_counts_the_labels_among_the_k_best() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    labels = torch.tensor([1, 1, 0, 0])
    assert topk_accuracy(scores, labels, 1) == 0.5
    assert topk_accuracy(scores, labels, 2) == 0.75
    assert topk_accuracy(scores, labels, 3) == 1.0


def test_a_constant_output_is_no_hit() -> None:
    assert topk_accuracy(torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64), 3) == 0.0


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="diverged"):
        topk_accuracy(torch.full((2, 3), float("nan")), torch.zeros(2, dtype=torch.int64), 1)


@pytest.mark.parametrize("k", [0, 4])
def test_a_top_k_that_does_not_exist_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="3 classes"):
        topk_accuracy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), k)


def test_the_confusion_matrix_has_true_classes_as_rows() -> None:
    labels, predicted = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 0])
    confusion = confusion_matrix(predicted, labels, 3)
    assert confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    shares = per_class_accuracy(confusion).tolist()
    assert shares[:2] == [0.5, pytest.approx(2 / 3)]
    assert math.isnan(shares[2])


def test_chance_is_the_share_of_the_most_frequent_class() -> None:
    assert chance_level(torch.arange(12) % 4) == 0.25
    assert chance_level(torch.tensor([2, 2, 2, 0])) == 0.75


def test_the_wilson_interval_has_its_published_values() -> None:
    # Agresti and Coull 1998: 0 of 10 gives (0, 0.278), 5 of 10 gives (0.237, 0.763).
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=5e-4)
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-4)
    low, high = wilson_interval(1.0, 3)
    assert 0.0 < low < high == 1.0


def test_the_wilson_interval_covers_in_about_95_of_100_cases() -> None:
    torch.manual_seed(0)
    hits = torch.distributions.Binomial(98, 0.3).sample((4000,)) / 98
    covered = [low <= 0.3 <= high for low, high in (wilson_interval(h, 98) for h in hits.tolist())]
    assert 0.93 < sum(covered) / len(covered) < 0.97


def test_the_interval_of_chance_leaves_two_and_a_half_percent_on_each_side() -> None:
    low, high = chance_interval(0.25, 600)

    def tail(first: int, last: int) -> float:
        return sum(math.comb(600, k) * 0.25**k * 0.75 ** (600 - k) for k in range(first, last + 1))

    assert tail(0, round(low * 600) - 1) <= 0.025 < tail(0, round(low * 600))
    assert tail(round(high * 600) + 1, 600) <= 0.025 < tail(round(high * 600), 600)
    assert low < 0.25 < high


def test_impossible_shares_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(1.2, 10)
    with pytest.raises(ValueError, match="no interval"):
        chance_interval(0.5, 0)
