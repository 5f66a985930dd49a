"""Batch-norm statistics collected anew over given clips, for networks that were never trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recipes.contract import ConfigurationError, Preempted, StageContext
from recipes.data.augment import normalize
from recipes.engine import distributed
from recipes.models.encoder import VideoEncoder


def calibrate_batchnorm(
    encoder: VideoEncoder, batches: Iterable[Tensor], ctx: StageContext
) -> VideoEncoder:
    """Set every running mean and variance to the average over `batches`, in place.

    Without it a network with random weights runs on mean 0 and variance 1, its features are of no
    use, and any trained network beats it for the wrong reason. Weights do not change.

    Args:
        encoder: on any device; it is returned on the stage's device, in the mode it was in.
        batches: uint8 clips (B, N, C, T, H, W); each rank may give its own, ranks are averaged in
            proportion to their batches.
        ctx: for the device and the stop flag.

    Raises:
        ConfigurationError: there was no batch on any rank.
        Preempted: a stop was requested while it ran.
    """
    device = distributed.device(ctx)
    encoder.to(device)
    training = {module: module.training for module in encoder.modules()}
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    encoder.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    count = _run(encoder, batches, ctx, device)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in training.items():
        module.training = mode
    if distributed.agree(ctx.stop_requested()):
        raise Preempted(0)
    _average(norms, count, device)
    return encoder


def _run(
    encoder: VideoEncoder, batches: Iterable[Tensor], ctx: StageContext, device: torch.device
) -> int:
    count = 0
    with torch.no_grad():
        for clips in batches:
            if ctx.stop_requested():
                break
            encoder(normalize(clips.to(device).float().div_(255.0)))
            count += 1
    return count


def _average(norms: list[_BatchNorm], count: int, device: torch.device) -> None:
    """Average the statistics of all ranks, weighted by the batches each has seen."""
    weight = torch.tensor(float(count), dtype=torch.float64, device=device)
    total = distributed.sum_ranks(weight)
    if not total:
        raise ConfigurationError("batch-norm calibration was given no clips")
    for norm in norms:
        for buffer in _statistics(norm):
            weighted = distributed.sum_ranks(buffer.double() * weight)
            buffer.copy_(weighted / total)


def _statistics(norm: nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in norm.named_buffers() if name.startswith("running_")]
