"""How PyTorch and DeepSpeed compute in this process, set once for a training."""

from __future__ import annotations

import os
from typing import Any

import torch

from recipes.engine.config import TrainFields
from recipes.engine.speed import Clock


def prepare_torch(config: TrainFields, device: torch.device) -> None:
    """Threads as the job was given them; repeatable kernels on the CPU, and on CUDA where asked."""
    threads = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    if threads:
        torch.set_num_threads(int(threads))
    repeat = device.type == "cpu" or config.deterministic
    if repeat:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(repeat, warn_only=not config.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not repeat


def care_for_reduction(raw: Any, clock: Clock, *, alone: bool) -> None:
    """Count DeepSpeed's reduction of gradients, which ends a backward pass, as communication.

    A rank that is alone needs none: DeepSpeed would copy all gradients twice for nothing.
    """
    raw.enable_backward_allreduce = not alone
    reduce = raw.allreduce_gradients

    def timed(*arguments: Any, **options: Any) -> Any:
        before = clock.enter("communication")
        try:
            return reduce(*arguments, **options)
        finally:
            clock.enter(before)

    raw.allreduce_gradients = timed
