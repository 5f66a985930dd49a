"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, keeping only x; the block runs a second time when its gradient is wanted.

    The result, the gradients and the running statistics of batch norms are those of `block(x)`.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    out: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return out


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second run sees the same batch: it must not count it again in the running statistics."""
    buffers = [
        buffer
        for module in block.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers(recurse=False)
    ]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        # Through `data`: autograd holds the running statistics and would take this for a change of
        # something it needs, though in training it does not read them.
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)
