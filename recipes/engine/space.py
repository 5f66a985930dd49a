"""Whether the disk has room for checkpoints."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

from torch import nn

from cluster import fsio
from recipes.engine import fragments, state
from recipes.engine.config import OptimizerConfig

log = logging.getLogger(__name__)

# Tensors of a weight's shape that an optimizer keeps.
_STATES = {"sgd": 1, "lars": 1, "adam": 2, "adamw": 2, "lamb": 2}


def estimated_bytes(model: nn.Module, optimizer: OptimizerConfig, ranks: int) -> int:
    """Size of a checkpoint before there is any optimizer state, with 1 % for all that is small."""
    numels = {name: _numel(shape) for name, shape in fragments.shapes(model).items()}
    trained = sum(numels[name] for name, p in model.named_parameters() if p.requires_grad)
    weights = 4 * (sum(numels.values()) + trained * _STATES[optimizer.name])
    own = [state.own_buffers(model, rank) for rank in range(ranks)]
    buffers = sum(value.numel() * value.element_size() for each in own for _, value in each)
    return int(1.01 * (weights + buffers))


def is_too_little(directory: Path, size: int, needed: int) -> bool:
    """Whether not even `size` bytes are free; says so, and where less than `needed` are."""
    free = _free(directory)
    if free < needed:
        level = logging.ERROR if free < size else logging.WARNING
        log.log(
            level,
            "%s: the checkpoints to be kept there need %.2f GB more, one of them %.2f GB; %.2f GB "
            "are free",
            directory,
            needed / 1e9,
            size / 1e9,
            free / 1e9,
        )
    return free < size


def require(directory: Path, size: int) -> None:
    """Refuse to begin what cannot be ended.

    Raises:
        OSError: ENOSPC; names needed and free.
    """
    free = _free(directory)
    if free < size:
        reason = (
            f"{os.strerror(errno.ENOSPC)}: needed are {size / 1e9:.2f} GB, free {free / 1e9:.2f}"
        )
        raise OSError(errno.ENOSPC, reason, str(directory))


def free(directory: Path) -> str:
    """What is free there, for a message; never an error, which would be one of this rank alone."""
    try:
        return f"{_free(directory) / 1e9:.1f} GB free"
    except OSError:
        return "free space unknown"


def _free(directory: Path) -> int:
    """Free bytes for us where `directory` is or will be; a quota is not seen."""
    return shutil.disk_usage(fsio.make_dir(directory)).free


def _numel(shape: list[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product
