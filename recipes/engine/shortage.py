"""Why a training waits for its data, and what to do about it; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

TOLERATED = 0.05  # share of a step's time
_ALWAYS_BUSY = 0.9  # share of the time that processes which read have something to do
_OVERLOADED = 1.5  # processes for each processor
_MOSTLY_COMPUTING = 0.6  # share of their working time in which a processor works for them


@dataclass(frozen=True, kw_only=True)
class Supply:
    """What was measured over some steps.

    Attributes:
        wait_share: of the time, waiting for data.
        transfer_share: of the time, copying batches to the device.
        workers: processes a rank that read; 0 if the rank itself does.
        cores: processor cores a rank may use.
        busy_share: of the processes' time, with something to read.
        computing_share: of that, with a processor at work for them.
        prepared_share: of the videos, re-encoded ones.
        node_load: processes of the whole node that want a processor, for each it has.
    """

    wait_share: float
    transfer_share: float = 0.0
    workers: int
    cores: int
    busy_share: float = 0.0
    computing_share: float = 0.0
    prepared_share: float = 0.0
    node_load: float = 0.0


def shortage(supply: Supply) -> str | None:
    """Which resource is short and what helps, in one line; None where nothing is."""
    if supply.wait_share > TOLERATED:
        share = f"{supply.wait_share:.0%} of the time is spent waiting for data: "
        return share + _reason(supply)
    if supply.transfer_share > TOLERATED:
        return (
            f"{supply.transfer_share:.0%} of the time is spent copying batches to the device: its "
            "link is short. Clips travel as bytes from page-locked memory already; use a node "
            "whose GPUs have a link each (nvidia-smi topo -m), or smaller clips"
        )
    return None


def _reason(supply: Supply) -> str:
    if supply.workers == 0:
        return (
            "the rank reads the videos itself (workers: 0). Set workers to the cores it has "
            f"besides, up to {max(1, supply.cores - 1)}"
        )
    who = f"the {supply.workers} reading processes of a rank"
    if supply.busy_share < _ALWAYS_BUSY:
        return (
            f"not for {who}, which had work only {supply.busy_share:.0%} of the time, but for the "
            "rank that takes batches over from them. It lacks processor time: raise "
            "resources.cpus_per_task, or lower OMP_NUM_THREADS or workers"
        )
    computing = f"a processor worked for them {supply.computing_share:.0%} of that time"
    if supply.computing_share >= _MOSTLY_COMPUTING:
        return f"{who} are always busy and {computing}, so decoding is short. {_decode(supply)}"
    if supply.workers >= supply.cores:
        return (
            f"{who} are always busy, but {computing}, and they share {supply.cores} cores with "
            f"training: cores are short. Raise resources.cpus_per_task to {_wanted(supply) + 1}"
            f"{_prepare(supply)}"
        )
    if supply.node_load > _OVERLOADED:
        return (
            f"{who} are always busy, but {computing}, and on their node {supply.node_load:.1f} "
            "processes want each core: look for what else runs there (top), and that "
            f"resources.cpus_per_task covers workers and training{_prepare(supply)}"
        )
    return (
        f"{who} are always busy, but {computing}: they wait for their files. Put the videos on "
        "faster storage (the node's own disk, or a parallel file system with large stripes), or "
        f"hide the waiting behind more of them: workers: {_wanted(supply)}{_prepare(supply)}"
    )


def _decode(supply: Supply) -> str:
    wanted = _wanted(supply)
    if wanted < supply.cores:
        return f"Raise workers to {wanted}; the rank has {supply.cores} cores{_prepare(supply)}"
    return (
        f"Raise workers to {wanted} and resources.cpus_per_task to {wanted + 1}{_prepare(supply)}"
    )


def _wanted(supply: Supply) -> int:
    """Processes that would keep up: what is read in the time of a step must be without the wait."""
    return max(supply.workers + 1, math.ceil(supply.workers / max(0.1, 1 - supply.wait_share)))


def _prepare(supply: Supply) -> str:
    """Small videos with many key frames take a fifth of the work; see docs/data.md."""
    if supply.prepared_share > 0.5:
        return ""
    return (
        ", or have all videos re-encoded once (data.prepare.files: all), which makes reading 4 to "
        "7 times cheaper"
    )
