"""What to change when memory runs out, said of the memory that did: the device's or the host's."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recipes.contract import OutOfMemoryError
from recipes.engine.config import TrainFields

# How PyTorch says it where it has no exception of its own for it.
_DEVICE_WORDS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "STATUS_ALLOC_FAILED")
_HOST_WORDS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough")


@contextmanager
def explained(config: TrainFields, world_size: int) -> Iterator[None]:
    """Turn an allocation that failed inside into an error with advice.

    Raises:
        OutOfMemoryError: instead of what PyTorch, Python or the system said; that is its cause.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        message = _message(error, config, world_size)
        if message is None:
            raise
        raise OutOfMemoryError(message) from error


def _message(
    error: RuntimeError | MemoryError | OSError, config: TrainFields, world_size: int
) -> str | None:
    """What to say; None where the error is about something else."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(word in text for word in _DEVICE_WORDS):
        return _device_message(text, config, world_size)
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or no_memory or any(word in text for word in _HOST_WORDS):
        return _host_message(text, config)
    return None


def _device_message(text: str, config: TrainFields, world_size: int) -> str:
    peak = ""
    if torch.cuda.is_available():
        gigabytes = torch.cuda.max_memory_allocated() / 1e9
        name = torch.cuda.get_device_name()
        peak = f" The peak was {gigabytes:.1f} GB on {name}."
    choices = "; ".join(_device_advice(config, world_size)) or "ask for GPUs with more memory"
    return f"the GPU's memory ran out ({_first_line(text)}).{peak} What helps: {choices}"


def _device_advice(config: TrainFields, world_size: int) -> Iterator[str]:
    """What the recipe does not do yet, the most effective first."""
    if config.precision == "fp32":
        yield "precision: bf16"
    if not config.activation_checkpointing:
        yield "activation_checkpointing: true (about a third more time)"
    smaller = config.micro_batch // 2
    if smaller and config.batch_size % (smaller * world_size) == 0:
        parts = config.batch_size // (smaller * world_size)
        yield (
            f"micro_batch: {smaller} with {parts} accumulated parts, the same batch_size (another "
            "training: batch norms and losses within a device see fewer clips)"
        )
    if config.zero_stage == 0 and world_size > 1:
        yield "zero_stage: 1, which shares the optimizer's state out over the ranks"
    elif config.offload == "none" and config.zero_stage:
        yield "offload: optimizer"


def _host_message(text: str, config: TrainFields) -> str:
    # ru_maxrss is in KiB on Linux.
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    choices = ["resources.mem_gb: more"]
    if config.workers > 1:
        choices.append(f"workers: fewer than {config.workers}")
    if config.offload != "none":
        choices.append("offload: none")
    return (
        f"the memory of the host, not of a GPU, ran out ({_first_line(text) or 'MemoryError'}). "
        f"The peak of this rank was {gigabytes:.1f} GB without its decoding processes. "
        f"What helps: {'; '.join(choices)}"
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]
