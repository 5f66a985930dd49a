"""How a model computes, chosen by the recipe: none of it changes what is learned or its names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from recipes.contract import ConfigurationError
from recipes.engine.config import TrainFields
from recipes.engine.sync_batch_norm import synchronized

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def prepare(model: nn.Module, config: TrainFields, world_size: int) -> None:
    """Set a model up, in place, for the recipe's modes; before an engine is put around it.

    Raises:
        ConfigurationError: a mode was asked for that no part of the model has.
    """
    if config.sync_batch_norm and world_size > 1:
        synchronized(model)
    if config.channels_last:
        _channels_last(model)
    if config.activation_checkpointing:
        blocks = [m for m in model.modules() if hasattr(m, "recompute_activations")]
        for block in blocks:
            block.recompute_activations = True  # type: ignore[assignment]
        _found(blocks, "activation_checkpointing", "can compute its activations again")
    if config.compile:
        networks = list(_compiled(model, config))
        for network in networks:
            network.compile()  # in place: names stay as they are
        _found(networks, "compile", "is a backbone")


def spans_ranks(model: nn.Module, config: TrainFields) -> bool:
    """Whether the loss changes with the number of ranks."""
    return config.sync_batch_norm or bool(getattr(model, "spans_ranks", False))


def _found(modules: list[nn.Module], mode: str, what: str) -> None:
    if not modules:
        raise ConfigurationError(f"{mode}: no part of this model {what}; leave it out")


def _compiled(model: nn.Module, config: TrainFields) -> Iterator[nn.Module]:
    """Backbones, which have nearly all of the work; the loss around them is small and varied.

    Where activations are computed again it is the blocks of the recomputed stages, so that what
    runs twice is compiled and not the bookkeeping around it.
    """
    for module in model.modules():
        if isinstance(getattr(module, "feature_dim", None), int):
            stages = getattr(module, "stages", None)
            if config.activation_checkpointing and isinstance(stages, nn.Sequential):
                for stage in stages:
                    yield from stage.children()
            else:
                yield module


def _channels_last(model: nn.Module) -> None:
    """Convolutions get their input in the order of axes that the fast kernels want.

    Kernels bring their weights into the order of the input. At rest weights stay as they are:
    ZeRO keeps them in flat buffers, and a checkpoint is the same with and without.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_pre_hook(_reorder)


def _reorder(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.contiguous(memory_format=_FORMATS[value.dim()])
        if isinstance(value, Tensor) and value.dim() in _FORMATS
        else value
        for value in inputs
    )
