"""What class scores of test videos amount to: metrics, tables and figures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from recipes.data.table import VideoTable
from recipes.evaluation.accuracy import (
    chance_level,
    confusion_matrix,
    per_class_accuracy,
    topk_accuracy,
)
from recipes.evaluation.figures import Bar, save_bars, save_confusion
from recipes.evaluation.intervals import wilson_interval
from recipes.evaluation.tables import write_csv


def classification_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracies as shares in [0, 1].

    `top5` is given for more than five classes. `chance` is what naming one class for every video
    reaches at best, 1/K for balanced classes. `mean_class_accuracy` weighs classes equally, those
    without a test video left out. `top1_low` and `top1_high` are Wilson's 95 % interval.

    Args:
        scores: (V, K) one row a test video.
        labels: (V,) class numbers.
    """
    num_classes = scores.shape[1]
    confusion = confusion_matrix(scores.argmax(1), labels, num_classes)
    top1 = topk_accuracy(scores, labels, 1)
    low, high = wilson_interval(top1, len(labels))
    metrics = {"top1": top1, "top1_low": low, "top1_high": high}
    if num_classes > 5:
        metrics["top5"] = topk_accuracy(scores, labels, 5)
    metrics["chance"] = chance_level(labels)
    metrics["mean_class_accuracy"] = float(per_class_accuracy(confusion).nanmean())
    metrics["num_test"] = float(len(labels))
    metrics["num_classes"] = float(num_classes)
    return metrics


def write_classification(folder: Path, probabilities: Tensor, table: VideoTable) -> None:
    """Write `predictions.csv`, `per_class.csv` and two figures below `folder`.

    Args:
        folder: the stage's output folder.
        probabilities: (V, K), rows as in `table`.
        table: the labelled test videos.
    """
    labels = torch.tensor(table.labels)
    confusion = confusion_matrix(probabilities.argmax(1), labels, len(table.classes))
    shares = per_class_accuracy(confusion).tolist()
    _write_predictions(folder / "predictions.csv", probabilities, table)
    rows = zip(table.classes, confusion.sum(1).tolist(), shares, strict=True)
    write_csv(
        folder / "per_class.csv",
        ("class", "num_test", "top1"),
        ((name, count, f"{share:.6f}" if count else "") for name, count, share in rows),
    )
    save_confusion(folder / "figures" / "confusion.png", confusion.numpy(), table.classes)
    bars = [
        Bar(label=name, value=share, interval=wilson_interval(share, count) if count else None)
        for name, count, share in zip(table.classes, confusion.sum(1).tolist(), shares, strict=True)
    ]
    title = f"{table.name}: accuracy per class ({len(table)} test videos)"
    save_bars(folder / "figures" / "per_class.png", bars, title)


def _write_predictions(path: Path, probabilities: Tensor, table: VideoTable) -> None:
    best = probabilities.max(1)
    rows = (
        (name, table.classes[label], table.classes[choice], f"{share:.6f}")
        for name, label, choice, share in zip(
            table.paths,
            table.labels.tolist(),
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        )
    )
    write_csv(path, ("path", "label", "predicted", "probability"), rows)
