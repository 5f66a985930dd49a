"""Batch norm whose statistics are those of the micro-batches of all ranks together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from recipes.engine.distributed import world_size


class SyncBatchNorm(_BatchNorm):
    """A batch norm of any dimension, on CUDA and on the CPU (PyTorch's own knows CUDA only).

    In evaluation it is the plain layer. In training every rank calls it equally often. Means are
    joined as in Chan et al. 1979, without the cancellation of E[x^2] - E[x]^2. Names and shapes of
    weights and statistics are those of the layer it replaces.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm wants (B, C, ...), not a tensor of {input.dim()} axes")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) to the same shape and type, normalized over all axes but C and all ranks."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        mean, variance, count = _statistics(input)
        self._track(mean, variance, count)
        inverse = torch.rsqrt(variance + self.eps)
        out: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, mean, inverse, count
        )
        return out

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics; the variance is the unbiased one, as in the plain layer."""
        if (
            self.running_mean is None
            or self.running_var is None
            or self.num_batches_tracked is None
        ):
            return
        self.num_batches_tracked.add_(1)
        weight = self.momentum
        if weight is None:  # a cumulative average
            weight = 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


def synchronized(model: nn.Module) -> nn.Module:
    """Replace every batch norm below `model` in place, sharing its weights and statistics."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm):
                setattr(parent, name, _copy(child))
    return model


def _copy(norm: _BatchNorm) -> SyncBatchNorm:
    made = SyncBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    # As they are: in a momentum encoder the weights are buffers.
    made._parameters, made._buffers = norm._parameters, norm._buffers
    return made.train(norm.training)


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


def _wide(x: Tensor) -> Tensor:
    """At least fp32, in which sums over a batch are exact enough."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C) and biased variance (C) over all ranks, and the number of values a channel has."""
    wide = _wide(x)
    count = torch.tensor([wide.numel() / wide.shape[1]], dtype=wide.dtype, device=wide.device)
    mean = wide.mean(_axes(wide))
    squares = (wide - _per_channel(mean, wide)).square().sum(_axes(wide))
    if world_size() > 1:
        own = torch.cat([count, mean, squares])
        parts = [torch.empty_like(own) for _ in range(world_size())]
        distributed.all_gather(parts, own)
        joined = torch.stack(parts)
        counts, means, all_squares = joined.tensor_split([1, 1 + len(mean)], dim=1)
        count = counts.sum(0)
        mean = (means * counts).sum(0) / count
        squares = (all_squares + counts * (means - mean).square()).sum(0)
    return mean, squares / count, count


class _Normalize(torch.autograd.Function):
    """y = w (x - mean) / sigma + b, with the gradient through mean and sigma over all ranks.

    With g = dL/dy and n = (x - mean) / sigma, summed over all values of a channel on all ranks:
    dL/dx = w / sigma (g - sum(g) / N - n sum(g n) / N) (Ioffe and Szegedy 2015). The gradients of w
    and b are this rank's share; the engine adds the ranks' up as it does for every parameter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        inverse: Tensor,
        count: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, inverse, count)
        wide = _wide(x)
        out = (wide - _per_channel(mean, wide)) * _per_channel(inverse, wide)
        if weight is not None and bias is not None:
            out = out * _per_channel(weight, out) + _per_channel(bias, out)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient, wide = _wide(gradients[0]), _wide(x)
        normal = (wide - _per_channel(mean, wide)) * _per_channel(inverse, wide)
        own = torch.stack([gradient.sum(_axes(wide)), (gradient * normal).sum(_axes(wide))])
        total = own.clone()
        if world_size() > 1:
            distributed.all_reduce(total)
        total /= count
        scale = inverse if weight is None else inverse * weight
        grad = gradient - _per_channel(total[0], wide) - normal * _per_channel(total[1], wide)
        grad = (grad * _per_channel(scale, wide)).to(x.dtype)
        if weight is None:
            return grad, None, None, None, None, None
        return grad, own[1].to(weight.dtype), own[0].to(weight.dtype), None, None, None
