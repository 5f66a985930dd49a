"""Parameter groups and optimizers from a recipe's optimizer section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from recipes.contract import ConfigurationError
from recipes.engine.config import OptimizerConfig
from recipes.engine.layerwise import Lamb, Lars
from recipes.engine.schedule import base_lr

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters that share a learning rate, `lr_ratio` times the recipe's, and a weight decay.

    `adapt` says whether LARS and LAMB scale the step by the norms; others know nothing of it.
    """

    name: str
    params: tuple[nn.Parameter, ...]
    lr_ratio: float = 1.0
    weight_decay: float = 0.0
    adapt: bool = True


def param_groups(
    model: nn.Module, config: OptimizerConfig, lr_ratios: Mapping[str, float] | None = None
) -> list[ParamGroup]:
    """Split the trainable parameters of a model; every one is in exactly one group.

    Norms and biases are told by the type of their module and by having at most one dimension,
    which the weight of a convolution, a linear or a recurrent layer never has.

    Args:
        model: parameters without gradient are left out.
        config: for weight decay and whether norms and biases get it.
        lr_ratios: prefix of parameter names (`encoder.`) to learning rate over the recipe's; the
            longest prefix that matches counts, 1 where none does.

    Raises:
        ValueError: a prefix matches no parameter, which would train at the wrong rate silently.
    """
    ratios = dict(lr_ratios or {})
    layerwise = config.name in ("lars", "lamb")
    norms = _of_norms(model)
    found: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefix = max((p for p in ratios if name.startswith(p)), key=len, default="")
            matrix = parameter.ndim > 1 and id(parameter) not in norms
            key = prefix, config.decay_norm_and_bias or matrix, matrix or not layerwise
            found.setdefault(key, []).append(parameter)
    names = [name for name, _ in model.named_parameters()]
    unused = sorted(p for p in ratios if not any(name.startswith(p) for name in names))
    if unused:
        raise ValueError(f"no parameter name begins with {', '.join(unused)}")
    return [
        ParamGroup(
            name=(prefix or "all") + _exempt(decays=decays, adapts=adapts),
            params=tuple(parameters),
            lr_ratio=ratios.get(prefix, 1.0),
            weight_decay=config.weight_decay if decays else 0.0,
            adapt=adapts,
        )
        for (prefix, decays, adapts), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def refuse_ungrouped(model: nn.Module, groups: Iterable[ParamGroup]) -> None:
    """Every trainable parameter must be in exactly one group.

    One in none would stay as it is, and under ZeRO 1 and 2 no rank would save it.

    Raises:
        ConfigurationError: names the parameters.
    """
    counts = Counter(id(parameter) for group in groups for parameter in group.params)
    trained = [(name, counts[id(p)]) for name, p in model.named_parameters() if p.requires_grad]
    wrong = {name: count for name, count in trained if count != 1}
    if wrong:
        found = ", ".join(f"{name} (in {count})" for name, count in sorted(wrong.items()))
        raise ConfigurationError(
            f"trainable parameters must be in exactly one group of the optimizer: {found}. Add "
            "them to one, or set requires_grad = False"
        )


def _of_norms(model: nn.Module) -> set[int]:
    """Ids of the parameters of norms: those of a layer norm over a volume have its dimensions."""
    modules = [module for module in model.modules() if isinstance(module, _NORMS)]
    return {id(p) for module in modules for p in module.parameters(recurse=False)}


def _exempt(*, decays: bool, adapts: bool) -> str:
    """What a group is left out of, for its name."""
    parts = [*([] if decays else ["no decay"]), *([] if adapts else ["not adapted"])]
    return f" ({', '.join(parts)})" if parts else ""


def build(
    groups: Iterable[ParamGroup], config: OptimizerConfig, batch_size: int
) -> torch.optim.Optimizer:
    """The optimizer over the groups; PyTorch's own in their fused form, which a CPU has as well.

    `batch_size` is the global one, which the rate may be scaled to.
    """
    lr = base_lr(config, batch_size)
    layerwise = config.name in ("lars", "lamb")
    parts: list[dict[str, Any]] = [
        {
            "params": list(group.params),
            "lr": lr * group.lr_ratio,
            "weight_decay": group.weight_decay,
            **({"adapt": group.adapt} if layerwise else {}),
        }
        for group in groups
    ]
    match config.name:
        case "sgd":
            momentum, nesterov = config.momentum, config.nesterov
            return torch.optim.SGD(parts, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
        case "lars":
            trust = config.trust_coefficient
            return Lars(parts, lr=lr, momentum=config.momentum, trust_coefficient=trust)
        case "lamb":
            return Lamb(parts, lr=lr, betas=config.betas)
        case "adamw":
            return torch.optim.AdamW(parts, lr=lr, betas=config.betas, fused=True)
        case "adam":
            return torch.optim.Adam(parts, lr=lr, betas=config.betas, fused=True)
