"""Nearest neighbours and recall against brute force."""

from __future__ import annotations

import math

import pytest
import torch

from recipes.contract import InputError
from recipes.evaluation.recall import Metric, chance_recall, cutoffs, nearest, recall_at


def _brute_force(
    queries: torch.Tensor, gallery: torch.Tensor, k: int, metric: str
) -> list[list[int]]:
    rows = []
    for query in queries.tolist():
        distances = []
        for number, other in enumerate(gallery.tolist()):
            if metric == "euclidean":
                distance = math.dist(query, other)
            else:
                dot = sum(a * b for a, b in zip(query, other, strict=True))
                distance = -dot / (math.hypot(*query) * math.hypot(*other))
            distances.append((distance, number))
        rows.append([number for _, number in sorted(distances)[:k]])
    return rows


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_neighbours_are_those_of_brute_force(metric: Metric, chunk: int) -> None:
    rng = torch.Generator().manual_seed(0)
    queries = torch.randn(20, 6, generator=rng, dtype=torch.float64)
    gallery = torch.randn(37, 6, generator=rng, dtype=torch.float64)
    found = nearest(queries, gallery, 9, metric, chunk)
    assert found.tolist() == _brute_force(queries, gallery, 9, metric)


def test_a_gallery_of_the_queries_themselves_gives_full_recall() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50)
    assert recall_at(nearest(features, features, 5), labels, labels, 1) == 1.0


def test_recall_never_falls_with_more_neighbours() -> None:
    rng = torch.Generator().manual_seed(2)
    queries, gallery = torch.randn(60, 4, generator=rng), torch.randn(80, 4, generator=rng)
    labels = torch.randint(0, 10, (60,), generator=rng)
    gallery_labels = torch.randint(0, 10, (80,), generator=rng)
    rows = nearest(queries, gallery, 80)
    values = [recall_at(rows, labels, gallery_labels, k) for k in range(1, 81)]
    assert values == sorted(values)
    assert values[0] < values[-1] == 1.0


def test_random_features_have_the_recall_of_chance() -> None:
    rng = torch.Generator().manual_seed(4)
    labels, gallery_labels = torch.arange(2000) % 8, torch.arange(160) % 8
    rows = nearest(torch.randn(2000, 5, generator=rng), torch.randn(160, 5, generator=rng), 10)
    for k in (1, 5, 10):
        expected = chance_recall(labels, gallery_labels, k)
        spread = 5 * math.sqrt(expected * (1 - expected) / 160)
        assert recall_at(rows, labels, gallery_labels, k) == pytest.approx(expected, abs=spread)


def test_chance_recall_is_the_hypergeometric_value() -> None:
    gallery_labels = torch.tensor([0] * 3 + [1] * 7)
    expected = 1 - math.comb(7, 4) / math.comb(10, 4)
    assert chance_recall(torch.tensor([0]), gallery_labels, 4) == pytest.approx(expected)
    assert chance_recall(torch.tensor([1]), gallery_labels, 4) == 1.0
    assert chance_recall(torch.tensor([2]), gallery_labels, 4) == 0.0


def test_scaling_a_feature_does_not_change_its_cosine_neighbours() -> None:
    rng = torch.Generator().manual_seed(5)
    queries, gallery = torch.randn(9, 5, generator=rng), torch.randn(30, 5, generator=rng)
    scaled = gallery * torch.rand(30, 1, generator=rng).add(0.1)
    assert torch.equal(nearest(queries, gallery, 4), nearest(queries, scaled, 4))


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_equal_distances_keep_the_order_of_the_gallery(chunk: int) -> None:
    gallery = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).repeat_interleave(20, 0)[torch.arange(40) % 40]
    queries = torch.tensor([[1.0, 0.0]] * 5)
    assert nearest(queries, gallery, 3, chunk=chunk).tolist() == [[0, 1, 2]] * 5
    assert nearest(queries, gallery, 21, chunk=chunk)[0].tolist() == list(range(21))


def test_more_neighbours_than_the_gallery_has_are_refused() -> None:
    with pytest.raises(InputError, match="gallery of 4"):
        nearest(torch.ones(2, 3), torch.ones(4, 3), 5)


def test_recall_beyond_the_neighbours_at_hand_is_refused() -> None:
    rows = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(InputError, match="R@3"):
        recall_at(rows, torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["query", "gallery"])
def test_a_feature_that_is_no_number_is_refused(value: float, side: str) -> None:
    good, bad = torch.ones(5, 3), torch.ones(5, 3)
    bad[2, 1] = value
    queries, gallery = (bad, good) if side == "query" else (good, bad)
    with pytest.raises(InputError, match=f"1 of 5 {side} features"):
        nearest(queries, gallery, 1)


def test_a_zero_feature_has_no_direction_but_has_a_place() -> None:
    gallery = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    queries = torch.tensor([[1.0, 0.0]])
    with pytest.raises(InputError, match="1 gallery features are zero"):
        nearest(queries, gallery, 1)
    assert nearest(queries, gallery, 2, "euclidean").tolist() == [[0, 1]]


def test_features_of_different_width_are_refused() -> None:
    with pytest.raises(InputError, match="differ in width"):
        nearest(torch.ones(2, 3), torch.ones(4, 2), 1)


def test_cutoffs_above_a_small_gallery_are_left_out_unless_asked_for() -> None:
    assert cutoffs((1, 5, 10, 20, 50), 12, explicit=False) == (1, 5, 10)
    assert cutoffs((1, 5), 5, explicit=True) == (1, 5)
    with pytest.raises(InputError, match="gallery of 12"):
        cutoffs((1, 50), 12, explicit=True)
