"""Parameter groups and PyTorch optimizers from a recipe's optimizer section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from recipes.engine.config import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters that share a learning rate, `lr_ratio` times the recipe's, and a weight decay."""

    name: str
    params: tuple[nn.Parameter, ...]
    lr_ratio: float = 1.0
    weight_decay: float = 0.0


def param_groups(
    model: nn.Module, config: OptimizerConfig, lr_ratios: Mapping[str, float] | None = None
) -> list[ParamGroup]:
    """Split the trainable parameters of a model; every one is in exactly one group.

    Args:
        model: parameters without gradient are left out.
        config: for weight decay and whether norms and biases get it.
        lr_ratios: prefix of parameter names (`encoder.`) to learning rate over the recipe's; the
            longest prefix that matches counts, 1 where none does.

    Raises:
        ValueError: a prefix matches no parameter, which would train at the wrong rate silently.
    """
    ratios = dict(lr_ratios or {})
    found: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefix = max((p for p in ratios if name.startswith(p)), key=len, default="")
            decays = config.decay_norm_and_bias or parameter.ndim > 1
            found.setdefault((prefix, decays), []).append(parameter)
    names = [name for name, _ in model.named_parameters()]
    unused = sorted(p for p in ratios if not any(name.startswith(p) for name in names))
    if unused:
        raise ValueError(f"no parameter name begins with {', '.join(unused)}")
    return [
        ParamGroup(
            name=(prefix or "all") + ("" if decays else " (no decay)"),
            params=tuple(parameters),
            lr_ratio=ratios.get(prefix, 1.0),
            weight_decay=config.weight_decay if decays else 0.0,
        )
        for (prefix, decays), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def build(groups: Iterable[ParamGroup], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over the groups, in its fused form, which a CPU has as well."""
    parts = [
        {
            "params": list(group.params),
            "lr": config.lr * group.lr_ratio,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    if config.name == "sgd":
        return torch.optim.SGD(
            parts, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(parts, lr=config.lr, betas=config.betas, fused=True)
