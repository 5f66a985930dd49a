"""LARS and LAMB: optimizers that scale the step of every tensor by the norms of weight and update.

Where a tensor or its update is zero the ratio of the norms says nothing, and it is 1. Groups with
`adapt` false (norms and biases) take the step unscaled, as the batch sizes that these optimizers
are for make the ratio of such small tensors erratic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv:1708.03888, equation 6).

    For weight w, gradient g, weight decay b, trust coefficient c, momentum m and rate lr:

        d = c |w| / (|g| + b |w|) (g + b w)
        v <- m v + d
        w <- w - lr v

    The rate stands outside of v, as in PyTorch's SGD, so that a change of it acts at once; in the
    paper it stands inside. c = 0.001 without clipping is what facebookresearch/swav trains with.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        adapt: bool = True,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
                "adapt": adapt,
            },
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(weights, group)

    def _step_group(self, weights: list[Tensor], group: Mapping[str, Any]) -> None:
        gradients = _gradients(weights)
        decay = group["weight_decay"]
        updates = torch._foreach_add(gradients, weights, alpha=decay)
        if group["adapt"]:
            weight_norms = _norms(weights)
            scales = _norms(gradients) + decay * weight_norms
            ratios = _ratios(group["trust_coefficient"] * weight_norms, scales)
            torch._foreach_mul_(updates, ratios.unbind())
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight)
        velocities = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])


class Lamb(torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al. 2020, arXiv:1904.00962, algorithm 2, phi(x) = x).

    For weight w, gradient g at step t, weight decay b, betas b1 and b2, and rate lr:

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + b w
        w <- w - lr |w| / |u| u

    eps is the paper's. The gradient is not normalised beforehand: `clip_grad` can do that.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adapt: bool = True,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(weights, group)

    def _step_group(self, weights: list[Tensor], group: Mapping[str, Any]) -> None:
        updates = self._adam(weights, group)
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            ratios = _ratios(_norms(weights), _norms(updates))
            torch._foreach_mul_(updates, ratios.unbind())
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _adam(self, weights: list[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
        """Adam's step without rate and decay, after the moments have taken in the gradients."""
        for weight in weights:
            state = self.state[weight]
            if not state:
                # On the CPU, as PyTorch has it: reading it must not wait for the GPU.
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
        states = [self.state[weight] for weight in weights]
        gradients, (beta1, beta2) = _gradients(weights), group["betas"]
        first, second = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        torch._foreach_add_([state["step"] for state in states], 1.0)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        steps = [float(state["step"]) for state in states]
        roots = torch._foreach_div(second, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(first, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, roots)
        return list(updates)


def _gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def _norms(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of each tensor, as one tensor."""
    return torch.stack(list(torch._foreach_norm(tensors)))


def _ratios(above: Tensor, below: Tensor) -> Tensor:
    """above / below, 1 where either is zero."""
    return torch.where((above > 0) & (below > 0), above / below, 1.0)
