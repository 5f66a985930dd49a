"""How PyTorch and DeepSpeed compute in this process, set once for a training."""

from __future__ import annotations

import ctypes
import os

import torch

from recipes.engine.config import TrainFields


def prepare_torch(config: TrainFields, device: torch.device) -> None:
    """Threads as the job was given them; repeatable kernels on the CPU, and on CUDA where asked."""
    threads = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    if threads:
        torch.set_num_threads(int(threads))
    if device.type == "cpu":
        _keep_memory()
    repeat = device.type == "cpu" or config.deterministic
    if repeat:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(repeat, warn_only=not config.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not repeat


def _keep_memory() -> None:
    """Have the C library keep the memory that a step frees, because the next one takes it again.

    It gives large blocks back to the system at once, and every page of the next is mapped and
    cleared anew: a backward pass of R2D3D-18 took 165 ms with, and 128 ms without. The constants
    are of glibc's malloc.h; other libraries have no `mallopt`, or know none of them.
    """
    trim_threshold, most_mapped = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, -1)
        mallopt(most_mapped, 0)
