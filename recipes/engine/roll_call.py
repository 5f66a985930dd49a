"""Who takes part in a training: every rank's host, device and CPUs, looked at before it starts."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import torch
from torch._C._distributed_c10d import Store


@dataclass(frozen=True, kw_only=True)
class Present:
    """One rank: where it runs and on what; `uuid` names a GPU beyond its number, "" for a CPU.

    `cpus` it may run on, `cpus_asked` by SLURM's --cpus-per-task, 0 where nobody asked.
    """

    rank: int
    host: str
    device: str
    uuid: str
    cpus: int
    cpus_asked: int
    threads: int


def present(rank: int, device: torch.device) -> Present:
    """This rank."""
    name, uuid = "cpu", ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, uuid = properties.name, str(getattr(properties, "uuid", ""))
    return Present(
        rank=rank,
        host=socket.gethostname(),
        device=name,
        uuid=uuid,
        cpus=len(os.sched_getaffinity(0)),
        cpus_asked=int(os.environ.get("SLURM_CPUS_PER_TASK") or 0),
        threads=torch.get_num_threads(),
    )


def exchange(store: Store, own: Present, world_size: int) -> list[Present]:
    """All ranks, on every rank; a collective over the store, before there is a process group.

    NCCL would say of two ranks on one GPU only that they have the same bus number.
    """
    store.set(f"present/{own.rank}", json.dumps(asdict(own)))
    if own.rank == 0:
        found = [json.loads(store.get(f"present/{rank}")) for rank in range(world_size)]
        store.set("present/all", json.dumps(found))
    return [Present(**entry) for entry in json.loads(store.get("present/all"))]


def shared_gpus(ranks: Sequence[Present]) -> list[str]:
    """A sentence for every GPU that more than one rank would use."""
    users: dict[tuple[str, str], list[int]] = {}
    for entry in ranks:
        if entry.uuid:
            users.setdefault((entry.host, entry.uuid), []).append(entry.rank)
    return [
        f"ranks {', '.join(map(str, found))} on {host} have one GPU, {uuid}, between them: ask for "
        "as many GPUs a node as tasks"
        for (host, uuid), found in users.items()
        if len(found) > 1
    ]


def short_of_cpus(ranks: Sequence[Present]) -> list[str]:
    """A sentence for every rank that may run on fewer CPUs than were asked for it."""
    return [
        f"rank {entry.rank} on {entry.host} may run on {entry.cpus} CPUs, {entry.cpus_asked} were "
        "asked for: is srun called without --cpus-per-task?"
        for entry in ranks
        if entry.cpus < entry.cpus_asked
    ]


def other_world_size(world_size: int, environ: Mapping[str, str]) -> str | None:
    """What is wrong where SLURM started another number of ranks than the training has.

    `torchrun` inside an allocation starts ranks of its own, so there it means nothing.
    """
    tasks = environ.get("SLURM_NTASKS")
    if not tasks or "SLURM_PROCID" not in environ or "TORCHELASTIC_RUN_ID" in environ:
        return None
    if int(tasks) == world_size:
        return None
    return (
        f"SLURM started {tasks} tasks (SLURM_NTASKS) and the training has {world_size} ranks "
        "(WORLD_SIZE): start one process a rank, with srun or with torchrun, not with both"
    )


def description(ranks: Sequence[Present], backend: str) -> Iterator[str]:
    """For the log: the number of ranks, and a line for every host."""
    yield f"{len(ranks)} rank{'s' if len(ranks) > 1 else ''} over {backend}"
    for host, group in groupby(ranks, key=lambda entry: entry.host):
        entries = list(group)
        devices = ", ".join(sorted({entry.device for entry in entries}))
        cpus = "-".join(map(str, sorted({entry.cpus for entry in entries})))
        threads = "-".join(map(str, sorted({entry.threads for entry in entries})))
        first, last = entries[0].rank, entries[-1].rank
        numbers = f"rank {first}" if first == last else f"ranks {first}-{last}"
        yield f"  {host}: {numbers}, {devices}, {cpus} CPUs and {threads} threads a rank"
