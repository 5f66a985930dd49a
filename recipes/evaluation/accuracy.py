"""Accuracy of class scores: top-k, confusion matrix, per class."""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.contract import InputError


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows whose label is among the k highest scores.

    Equal scores are ordered against the label, so that a constant output is never a hit by luck.

    Args:
        scores: (B, K) one score a class.
        labels: (B,) class numbers.
        k: 1 <= k <= K.

    Raises:
        ValueError: k is outside 1..K, or shapes do not fit.
        InputError: a score is not a number.
    """
    num_classes = scores.shape[1]
    if not 1 <= k <= num_classes:
        raise ValueError(f"top-{k} of {num_classes} classes does not exist")
    if labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores {tuple(scores.shape)} do not fit labels {tuple(labels.shape)}")
    if not torch.isfinite(scores).all():
        raise InputError("class scores hold NaN or infinity: the network has diverged")
    own = scores.gather(1, labels[:, None])
    rank = (scores >= own).sum(1)
    return float((rank <= k).double().mean())


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts (K, K) int64: row = true class, column = predicted class; (B,) inputs."""
    cells = labels * num_classes + predicted
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Recall of each class (K,) float64; NaN where a class has no video."""
    return confusion.diagonal().double() / confusion.sum(1).double()


def chance_level(labels: Tensor) -> float:
    """Accuracy of always naming the most frequent class of `labels` (B,); 1/K when balanced."""
    return float(labels.bincount().max()) / len(labels)
