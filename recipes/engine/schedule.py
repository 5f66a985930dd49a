"""Learning-rate schedules as pure functions of the optimizer step: a resume needs no state."""

from __future__ import annotations

import math

from recipes.engine.config import OptimizerConfig, TrainFields


def total_steps(config: TrainFields, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole training."""
    if config.max_steps is not None:
        return config.max_steps
    return (config.epochs or 0) * steps_per_epoch


def lr_factor(config: OptimizerConfig, step: int, total: int, steps_per_epoch: int) -> float:
    """Learning rate of a step (from 0) as a share of `config.lr`.

    Warm-up over W steps: (step + 1) / W. Cosine, with t = (step - W) / (total - W):
    min + (1 - min) (1 + cos(pi t)) / 2. Step: gamma ** (milestones passed).
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        t = min(1.0, (step - warmup) / max(1, total - warmup))
        half = 0.5 * (1 + math.cos(math.pi * t))
        return config.min_lr_ratio + (1 - config.min_lr_ratio) * half
    if config.schedule == "step":
        passed = sum(step >= round(epoch * steps_per_epoch) for epoch in config.milestones)
        return float(config.gamma**passed)
    return 1.0
