"""Proof that a network was not changed while it was evaluated."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from recipes.contract import StageError


def digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all parameters and buffers.

    Buffers count: batch-norm statistics collected on the target set are a change too. Those that
    are not saved with the model count as well.
    """
    total = hashlib.sha256()
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, value in sorted(named, key=lambda pair: pair[0]):
        whole = value.detach().cpu().contiguous()
        total.update(f"{name} {tuple(whole.shape)} {whole.dtype}\n".encode())
        total.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def check_frozen(model: nn.Module, before: str) -> None:
    """Compare with a digest taken earlier.

    Raises:
        StageError: a parameter or a buffer is not what it was.
    """
    if digest(model) != before:
        raise StageError(
            "the encoder changed while its features were taken; a frozen network must not: "
            "look for a layer that updates its state in evaluation mode"
        )
