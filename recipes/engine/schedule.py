"""Learning-rate schedules as pure functions of the optimizer step: a resume needs no state."""

from __future__ import annotations

import math

from recipes.engine.config import OptimizerConfig, TrainFields


def total_steps(config: TrainFields, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole training."""
    if config.max_steps is not None:
        return config.max_steps
    return (config.epochs or 0) * steps_per_epoch


def base_lr(config: OptimizerConfig, batch_size: int) -> float:
    """The learning rate that `lr_factor` is a share of.

    `lr` as it is, or, where it is given for `lr_batch` clips, scaled to this batch: by the ratio k
    of the batches (Goyal et al. 2017, arXiv:1706.02677, section 2.1) or by its square root, which
    keeps the variance of a step (Krizhevsky 2014, arXiv:1404.5997, section 5).
    """
    if config.lr_batch is None:
        return config.lr
    ratio = batch_size / config.lr_batch
    return config.lr * (ratio if config.lr_rule == "linear" else math.sqrt(ratio))


def lr_factor(config: OptimizerConfig, step: int, total: int, steps_per_epoch: int) -> float:
    """Learning rate of a step (from 0) as a share of `base_lr`.

    Warm-up over W steps: (step + 1) / W. Then, where c(t) = min + (1 - min) (1 + cos(pi t)) / 2:
    cosine: c((step - W) / (total - W)); restarts: c(share of the present period gone), periods
    counted from W; step: gamma ** (milestones passed, counted from the start of training).
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        return _cosine(config, min(1.0, (step - warmup) / max(1, total - warmup)))
    if config.schedule == "restarts":
        period = max(1, round((config.restart_epochs or 0.0) * steps_per_epoch))
        return _cosine(config, _share_of_period(step - warmup, period, config.restart_factor))
    if config.schedule == "step":
        passed = sum(step >= round(epoch * steps_per_epoch) for epoch in config.milestones)
        return float(config.gamma**passed)
    return 1.0


def _cosine(config: OptimizerConfig, share: float) -> float:
    """Half a cosine wave from 1 at share 0 to `min_lr_ratio` at share 1."""
    half = 0.5 * (1 + math.cos(math.pi * share))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * half


def _share_of_period(step: int, period: float, growth: float) -> float:
    """How much of the period that a step lies in is gone; each is `growth` times the last."""
    left = float(step)
    if growth == 1.0:
        return (left % period) / period
    while left >= period:
        left -= period
        period *= growth
    return left / period
