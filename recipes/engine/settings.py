"""How PyTorch computes in this process, once for a training."""

from __future__ import annotations

import os

import torch

from recipes.engine.config import TrainFields


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
