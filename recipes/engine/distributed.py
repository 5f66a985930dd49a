"""The process group of a stage and the few collectives it needs; each works on one rank as well."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import HashStore, Store
from torch.distributed.rendezvous import rendezvous

from recipes.contract import ConfigurationError, StageContext, StageError
from recipes.engine import roll_call

log = logging.getLogger(__name__)

# The last resort: the watchdogs find a hang in minutes and can name the rank, a collective cannot.
# It must outlast their longest limit, that of a first step with its compilation (20 min).
TIMEOUT_SECONDS = 1800.0


class DeviceError(StageError):
    """The node lacks the device it promised: the node's fault, so another one may do (74)."""

    exit_code = 74


def device(ctx: StageContext) -> torch.device:
    """This rank's device.

    Raises:
        DeviceError: CUDA was asked for and is not there; never a silent fall-back to the CPU.
    """
    if ctx.device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # SLURM may show a task its own GPU only, which then has number 0.
    index = ctx.local_rank if count > 1 else 0
    if count <= index:
        raise DeviceError(
            f"rank {ctx.rank} needs CUDA device {index} and sees {count}: the node has no usable "
            f"GPU for it (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')})"
        )
    return torch.device("cuda", index)


def init(ctx: StageContext, timeout_seconds: float = TIMEOUT_SECONDS) -> torch.device:
    """Join the process group (NCCL on CUDA, Gloo on CPU) and return this rank's device.

    Ranks meet at MASTER_ADDR:MASTER_PORT; a single one needs no network at all. Rank 0 prints who
    takes part. Calling it again does nothing.

    Raises:
        DeviceError: no GPU for this rank, or one that another rank has too.
        ConfigurationError: SLURM or an earlier call have another number of ranks.
    """
    here = device(ctx)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if distributed.is_initialized():
        if world_size() != ctx.world_size:
            raise ConfigurationError(
                f"the process group has {world_size()} ranks and this stage {ctx.world_size}"
            )
        return here
    problem = roll_call.other_world_size(ctx.world_size, os.environ)
    if problem:
        raise ConfigurationError(problem)
    _join(ctx, here, timedelta(seconds=timeout_seconds))
    return here


def _join(ctx: StageContext, here: torch.device, timeout: timedelta) -> None:
    backend = "nccl" if here.type == "cuda" else "gloo"
    store: Store = HashStore()
    if ctx.world_size > 1:
        store, _, _ = next(rendezvous("env://", ctx.rank, ctx.world_size, timeout=timeout))
    store.set_timeout(timeout)
    ranks = roll_call.exchange(store, roll_call.present(ctx.rank, here), ctx.world_size)
    shared = roll_call.shared_gpus(ranks)
    if shared:
        raise DeviceError("; ".join(shared))
    if ctx.rank == 0:
        print("\n".join(roll_call.description(ranks, backend)), flush=True)
        for sentence in roll_call.short_of_cpus(ranks):
            log.warning(sentence)
    distributed.init_process_group(
        backend,
        store=store,
        rank=ctx.rank,
        world_size=ctx.world_size,
        timeout=timeout,
        # NCCL connects now and not at the first collective, and knows the device it belongs to.
        device_id=here if here.type == "cuda" else None,
    )


def rank() -> int:
    """This process's rank; 0 outside a process group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 outside a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the rank that writes results."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        distributed.barrier()


def agree(flag: bool) -> bool:
    """Whether any rank raised the flag; all ranks get the same answer."""
    return any_of([flag])[0]


def any_of(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether any rank raised it; one collective for all of them."""
    if world_size() == 1:
        return list(flags)
    values = torch.tensor([float(flag) for flag in flags], device=_collective_device())
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return [value > 0 for value in values.tolist()]


def from_main(numbers: Sequence[int]) -> list[int]:
    """What rank 0 passed; the others pass as many of anything."""
    if world_size() == 1:
        return list(numbers)
    values = torch.tensor(list(numbers), dtype=torch.int64, device=_collective_device())
    distributed.broadcast(values, src=0)
    return [int(value) for value in values.tolist()]


def sum_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor of equal shape over all ranks, without gradient, as a new tensor."""
    total = value.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """All ranks' rows below each other, in the order of ranks, on every rank.

    Args:
        rows: (R, ...) with any number of rows, R = 0 included; the rest of the shape and the type
            are equal on all ranks.

    Returns:
        (sum of R, ...) on the device of `rows`.
    """
    if world_size() == 1:
        return rows
    here = rows.to(_collective_device())
    counts = [torch.zeros(1, dtype=torch.int64, device=here.device) for _ in range(world_size())]
    distributed.all_gather(counts, torch.tensor([len(here)], device=here.device))
    longest = max(int(count) for count in counts)
    padded = here.new_zeros((longest, *here.shape[1:]))
    padded[: len(here)] = here
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    kept = [part[: int(count)] for part, count in zip(parts, counts, strict=True)]
    return torch.cat(kept).to(rows.device)


def _collective_device() -> torch.device:
    """Where tensors must lie for the backend."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
