"""Multinomial logistic regression on features by L-BFGS, and the choice of its strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recipes.contract import ConfigurationError, InputError


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """Scores = ((x - mean) / scale) W^T + b, all float64 on the CPU.

    `weight` (K, D), `bias` (K,), `mean` and `scale` (D,) are of the training features; `objective`
    is the value L-BFGS ended at and `inverse_strength` the C it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    inverse_strength: float
    objective: float
    iterations: int

    def scores(self, features: Tensor) -> Tensor:
        """Logits (B, K) float64 of features (B, D)."""
        return standardize(features, self.mean, self.scale) @ self.weight.T + self.bias


def standardize(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """(x - mean) / scale in float64; (B, D) with (D,) statistics."""
    return (features.double().cpu() - mean) / scale


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (biased; 1 where a feature is constant) of (B, D): two (D,)."""
    whole = features.double().cpu()
    scale = whole.std(0, correction=0)
    # Rounding leaves a constant column a spread near 1e-16 of its size, which is not signal.
    constant = scale <= 1e-12 * whole.abs().amax(0)
    return whole.mean(0), scale.masked_fill(constant, 1.0)


def fit(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    inverse_strength: float,
    max_iterations: int = 2000,
    device: torch.device | str = "cpu",
) -> LinearClassifier:
    """Fit on standardized features; same optimum as scikit-learn's LogisticRegression.

    Minimizes mean cross-entropy + |W|^2 / (2 C n), scikit-learn's objective divided by C n; the
    bias is free. Convex, so that the start does not matter; deterministic.

    Args:
        features: (B, D).
        labels: (B,) class numbers below `num_classes`.
        num_classes: K.
        inverse_strength: C, above 0; larger is a weaker penalty.
        max_iterations: of L-BFGS with a strong Wolfe line search.
        device: where it computes.

    Raises:
        InputError: a feature is NaN or infinite, or the labels hold fewer than two classes.
    """
    _check(features, labels, num_classes)
    mean, scale = statistics(features)
    inputs = standardize(features, mean, scale).to(device)
    targets = labels.to(device)
    weight = inputs.new_zeros(num_classes, inputs.shape[1]).requires_grad_()
    bias = inputs.new_zeros(num_classes).requires_grad_()
    decay = 1.0 / (2.0 * inverse_strength * len(inputs))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(inputs @ weight.T + bias, targets)
        loss = loss + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return LinearClassifier(
        weight=weight.detach().cpu(),
        bias=bias.detach().cpu(),
        mean=mean,
        scale=scale,
        inverse_strength=inverse_strength,
        objective=float(objective().detach()),
        iterations=int(optimizer.state[weight]["n_iter"]),
    )


def hold_out(
    labels: Sequence[int] | NDArray[np.int64], groups: Sequence[str], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into (kept, held out) such that no group is on both sides.

    The held-out side is the fold of a stratified group k-fold that leaves every class on the kept
    side if one does; k = round(1 / share), less where there are fewer groups or videos of a class.
    An empty group name is a group of its own.

    Raises:
        ConfigurationError: there is one group only, or one video of each class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names = [group or f"row {row}" for row, group in enumerate(groups)]
    target = np.asarray(labels, dtype=np.int64)
    num_groups, largest = len(set(names)), int(np.bincount(target).max())
    folds = min(max(2, round(1 / share)), num_groups, largest)
    if folds < 2:
        raise ConfigurationError(
            f"cannot hold out {share:.0%} of the training videos: they form {num_groups} group(s), "
            f"which are never divided, and classes have {largest} video(s) at most; set "
            "regularization to a single value"
        )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    splits = _splits(splitter, target, names)
    for kept, held in splits:
        if len(set(target[kept])) == len(set(target)):
            return kept, held
    return splits[0]


def select(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    strengths: Sequence[float],
    held: tuple[NDArray[np.int64], NDArray[np.int64]],
    max_iterations: int = 2000,
    device: torch.device | str = "cpu",
) -> dict[float, float]:
    """Accuracy on the held-out rows of a fit to the kept ones, for each C of `strengths`."""
    kept, out = (torch.from_numpy(rows) for rows in held)
    accuracies = {}
    for strength in strengths:
        model = fit(features[kept], labels[kept], num_classes, strength, max_iterations, device)
        predicted = model.scores(features[out]).argmax(1)
        accuracies[strength] = float((predicted == labels[out]).double().mean())
    return accuracies


def best_strength(accuracies: dict[float, float]) -> float:
    """The C with the highest accuracy; of equal ones the strongest penalty, the smallest C."""
    return max(accuracies, key=lambda strength: (accuracies[strength], -strength))


def _splits(
    splitter: object, target: NDArray[np.int64], names: Sequence[str]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    import warnings

    with warnings.catch_warnings():
        # A class rarer than the folds is expected here: it stays on the kept side if it can.
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(splitter.split(np.zeros(len(target)), target, names))  # type: ignore[attr-defined]


def _check(features: Tensor, labels: Tensor, num_classes: int) -> None:
    bad = int((~torch.isfinite(features).all(1)).sum())
    if bad:
        raise InputError(f"{bad} of {len(features)} features hold NaN or infinity")
    present = set(labels.tolist())
    if len(present) < 2:
        raise InputError(
            f"a classifier needs videos of at least two classes; found {len(present)} of "
            f"{num_classes} among {len(labels)} training videos"
        )
    if min(present) < 0 or max(present) >= num_classes:
        raise InputError(f"labels {min(present)}..{max(present)} do not fit {num_classes} classes")
