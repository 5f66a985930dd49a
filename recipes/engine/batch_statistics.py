"""What batch norms remember of the batches, kept aside for a step that may be left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class Kept:
    """Running statistics as they were before a step.

    The forward pass has moved them before anybody knows that the step is left out; what is not
    finite would stay in them for good.
    """

    def __init__(self, model: nn.Module) -> None:
        """Of all batch norms of a model, in a momentum encoder as well."""
        self._live = _of(model)
        self._before = [values.clone() for values in self._live]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the present ones; nothing here waits for the device."""
        if self._live:
            torch._foreach_copy_(self._before, self._live)

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the ones that were kept the present ones."""
        if self._live:
            torch._foreach_copy_(self._live, self._before)


def finite(model: nn.Module) -> bool:
    """Whether all running statistics are."""
    return all(bool(values.isfinite().all()) for values in _of(model))


def _of(model: nn.Module) -> list[Tensor]:
    """Means, variances and counters; none of a norm that keeps no statistics."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    found = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    return [values.detach() for triple in found for values in triple if values is not None]
