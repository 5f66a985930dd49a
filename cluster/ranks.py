"""Rank, world size and rendezvous of this process, from SLURM's environment or PyTorch's names."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TORCH_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_STEP_NAMES = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID")
_PORT_BASE = 20000
_PORT_COUNT = 12000  # ends at 31999, below Linux' ephemeral ports, which start at 32768


class RankError(RuntimeError):
    """The environment says something of ranks, but not all that is needed."""


@dataclass(frozen=True, kw_only=True)
class RankEnv:
    """One process among `world_size`; `local_*` count within its node."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int

    def export(self) -> dict[str, str]:
        """The variables that PyTorch and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def rank_environment(environ: Mapping[str, str]) -> RankEnv:
    """Read this process's place.

    PyTorch's names win, so that a launcher inside an allocation is respected; then a SLURM step;
    with neither, the process is alone.

    Raises:
        RankError: only a part of the variables is set; the message names the missing ones.
    """
    if any(name in environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return _from_torch(environ)
    if "SLURM_PROCID" in environ or int(environ.get("SLURM_NTASKS", "1")) > 1:
        return _from_slurm(environ)
    return RankEnv(
        rank=0,
        world_size=1,
        local_rank=0,
        local_world_size=1,
        master_addr="127.0.0.1",
        master_port=rendezvous_port(os.getpid(), 0),
    )


def restart_count(environ: Mapping[str, str]) -> int:
    """Which attempt of its submission this is: what SLURM, our local executor or torchrun counts,
    behind the attempts of the jobs that this one is the successor of."""
    local = environ.get("ORCHESTRATE_RESTART_COUNT")
    if local:  # the local executor passes nothing of SLURM's on, but may run inside a job
        return int(local)
    names = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    own = next((int(environ[name]) for name in names if environ.get(name)), 0)
    return restart_base(environ) + own


def restart_base(environ: Mapping[str, str]) -> int:
    """The number of the first attempt of this job; 0 unless it is another one's successor."""
    return int(environ.get("ORCHESTRATE_RESTART_BASE") or 0)


def check_world_size(ranks: RankEnv, resources: Mapping[str, Any]) -> None:
    """Hold the environment against what the submission asked for; `resources` may be empty.

    Raises:
        RankError: there are more or fewer ranks than that.
    """
    if {"nodes", "tasks_per_node"} <= resources.keys():
        wanted = int(resources["nodes"]) * int(resources["tasks_per_node"])
        if wanted != ranks.world_size:
            raise RankError(
                f"the environment has a world of {ranks.world_size} ranks (WORLD_SIZE or"
                f" SLURM_NTASKS), the submission asked for {wanted}: resources.nodes"
                f" {resources['nodes']} x tasks_per_node {resources['tasks_per_node']}; start"
                f" {wanted} processes, or submit with other resources"
            )


def cpus_of_task(environ: Mapping[str, str], resources: Mapping[str, Any]) -> int:
    """CPUs of one rank, for its threads: by SLURM, else by the submission, else one."""
    return int(environ.get("SLURM_CPUS_PER_TASK") or resources.get("cpus_per_task") or 1)


def placement(ranks: RankEnv, environ: Mapping[str, str]) -> str:
    """Where this rank is and what it may use, in one line for its log."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"rank {ranks.rank} of {ranks.world_size} on {socket.gethostname()}"
        f" (local {ranks.local_rank} of {ranks.local_world_size}),"
        f" {cpus} CPUs, {environ.get('OMP_NUM_THREADS', 'all')} threads,"
        f" GPUs {environ.get('CUDA_VISIBLE_DEVICES', 'as the node has them')},"
        f" rendezvous {ranks.master_addr}:{ranks.master_port}"
    )


def rendezvous_port(job_id: int, restart: int) -> int:
    """A port all ranks agree on without talking: differs by job and by restart of a job.

    Two jobs on one node must not meet, and a restart must not find its predecessor's socket.
    """
    return _PORT_BASE + (7 * job_id + restart) % _PORT_COUNT


def _from_torch(environ: Mapping[str, str]) -> RankEnv:
    _require(environ, _TORCH_NAMES, "start one process a rank with torchrun, srun or orchestrate")
    world_size = _number(environ, "WORLD_SIZE")
    return _checked(
        RankEnv(
            rank=_number(environ, "RANK"),
            world_size=world_size,
            local_rank=_number(environ, "LOCAL_RANK"),
            local_world_size=int(environ.get("LOCAL_WORLD_SIZE", world_size)),
            master_addr=environ["MASTER_ADDR"],
            master_port=_number(environ, "MASTER_PORT"),
        )
    )


def _from_slurm(environ: Mapping[str, str]) -> RankEnv:
    _require(environ, _STEP_NAMES, "start the ranks with srun")
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise RankError("SLURM_JOB_NODELIST is not set: start the ranks with srun")
    restart = int(environ.get("SLURM_RESTART_COUNT") or 0)
    return _checked(
        RankEnv(
            rank=_number(environ, "SLURM_PROCID"),
            world_size=_number(environ, "SLURM_NTASKS"),
            local_rank=_number(environ, "SLURM_LOCALID"),
            local_world_size=_tasks_here(environ),
            master_addr=expand_hosts(nodes)[0],
            master_port=rendezvous_port(_number(environ, "SLURM_JOB_ID"), restart),
        )
    )


def _tasks_here(environ: Mapping[str, str]) -> int:
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if not text:
        return _number(environ, "SLURM_NTASKS")
    counts = expand_counts(text)
    node = int(environ.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else counts[-1]


def _require(environ: Mapping[str, str], names: tuple[str, ...], remedy: str) -> None:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        present = [name for name in names if environ.get(name)]
        raise RankError(
            f"incomplete rank environment: {', '.join(missing)} not set"
            f" (set: {', '.join(present) or 'none'}): {remedy}"
        )


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise RankError(f"{name}={environ[name]!r} is not a whole number") from None


def _checked(ranks: RankEnv) -> RankEnv:
    if not 0 <= ranks.rank < ranks.world_size:
        raise RankError(f"rank {ranks.rank} does not lie in a world of {ranks.world_size}")
    if not 0 <= ranks.local_rank < ranks.local_world_size:
        raise RankError(
            f"local rank {ranks.local_rank} does not lie in {ranks.local_world_size} local ranks"
        )
    return ranks


def expand_counts(text: str) -> list[int]:
    """SLURM's per-node counts: `2(x3),1` is [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise RankError(f"cannot read the task counts {text!r}")
        counts += [int(match.group(1))] * int(match.group(2) or 1)
    return counts


def expand_hosts(text: str) -> list[str]:
    """SLURM's host list: `a[1-2,05]-ib,b` is a1-ib, a2-ib, a05-ib, b.

    Raises:
        RankError: neither this parser nor `scontrol show hostnames` understands it.
    """
    try:
        hosts = [host for group in _split_groups(text) for host in _expand_group(group)]
    except ValueError:
        hosts = []
    return hosts or _ask_scontrol(text)


def _split_groups(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    groups, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if depth not in (0, 1):
            break
        if char == "," and depth == 0:
            groups.append(text[start:i])
            start = i + 1
    if depth:
        raise ValueError(f"unbalanced brackets in {text!r}")
    return [*groups, text[start:]]


def _expand_group(group: str) -> list[str]:
    hosts = [""]
    for literal, ranges in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", group):
        tails = [literal] if literal else _expand_ranges(ranges)
        hosts = [host + tail for host in hosts for tail in tails]
    return hosts if hosts != [""] else []


def _expand_ranges(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        last = int(high) if dash else int(low)
        found += [str(number).zfill(len(low)) for number in range(int(low), last + 1)]
    return found


def _ask_scontrol(text: str) -> list[str]:
    command = ["scontrol", "show", "hostnames", text]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RankError(f"cannot read the host list {text!r}: {error}") from error
    hosts = done.stdout.split()
    if done.returncode != 0 or not hosts:
        raise RankError(f"cannot read the host list {text!r}: {done.stderr.strip()}")
    return hosts
