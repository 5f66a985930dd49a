"""What one rank or node of `doctor --job` looks at: each a function that tells what it found.

Only the standard library is imported at the head; what a look needs beyond is its finding.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.ranks import RankEnv

NUM_CLAIMS = 20
_ANSWER_SECONDS = 90.0  # a stage waits 60 s for a file that another node has written
_COLLECTIVE_SECONDS = 120  # the first import of torch over a network takes long
_COMMAND_SECONDS = 20
_MLFLOW_SECONDS = 10.0  # the first question to a server that slept
# Anywhere that answers and needs no name server; nothing is sent.
_OUTSIDE = ("1.1.1.1", 443)
_OUTSIDE_SECONDS = 3.0
_CGROUPS = Path("/sys/fs/cgroup")
_NUM_ROUNDS = 5
_FLOATS = {"cuda": 1 << 24, "cpu": 1 << 20}  # 64 MiB is what a gradient bucket has, 4 MiB for gloo


def python() -> dict[str, Any]:
    """The interpreter and its machine."""
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "kernel": platform.release(),
    }


def cpus() -> dict[str, Any]:
    """What SLURM gave a task, and what the kernel lets it use."""
    asked = os.environ.get("SLURM_CPUS_PER_TASK")
    return {
        "asked": int(asked) if asked else None,
        "allowed": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def shared(folder: Path, rank: int) -> dict[str, Any]:
    """Write a file that the submitting machine answers with another one.

    It holds that machine's clock at a time between our two: so far apart the clocks are at least,
    where it does not lie between them.
    """
    sent = time.time()
    fsio.write_json(folder / f"hello-{rank}.json", {"at": sent})
    answer, deadline = folder / f"answer-{rank}.json", time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < deadline:
        found = fsio.read_json_or_none(answer)
        received = time.time()
        if found is not None:
            ahead = max(sent - found["at"], found["at"] - received, 0.0)
            return {"answered_after": round(received - sent, 3), "clock_differs": round(ahead, 3)}
        time.sleep(0.1)
    raise TimeoutError(f"no answer within {_ANSWER_SECONDS:.0f} s")


def claims(folder: Path, rank: int) -> dict[str, Any]:
    """Try to be the one that creates each of some files, as submitters and jobs claim stages."""
    numbers = range(NUM_CLAIMS)
    won = [n for n in numbers if fsio.create_json(folder / f"claim-{n}.json", {"rank": rank})]
    return {"won": won}


def lock(path: Path) -> dict[str, Any]:
    """Lock a file as libraries do that cache compiled code; some file systems refuse."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return {"locks": True}


def scratch() -> dict[str, Any]:
    """Room for temporary files and for what data workers share."""
    place = tempfile.gettempdir()
    shm = Path("/dev/shm")  # noqa: S108 - asked for its size only
    return {
        "folder": place,
        "free_gb": round(shutil.disk_usage(place).free / 1e9, 1),
        "shm_gb": round(shutil.disk_usage(shm).free / 1e9, 1) if shm.is_dir() else 0.0,
    }


def limits() -> dict[str, Any]:
    """Soft and hard limits of a process, -1 for none, and the memory this job may use."""
    kinds = {
        "files": resource.RLIMIT_NOFILE,
        "locked_bytes": resource.RLIMIT_MEMLOCK,
        "processes": resource.RLIMIT_NPROC,
    }
    found: dict[str, Any] = {name: resource.getrlimit(kind) for name, kind in kinds.items()}
    return {**found, "memory_bytes": memory_limit()}


def memory_limit(membership: str | None = None, root: Path = _CGROUPS) -> int | None:
    """The least limit of this process's control groups in bytes; None where there is none.

    Args:
        membership: content of /proc/<pid>/cgroup; default this process's.
        root: where the control groups are mounted.
    """
    if membership is None:
        membership = Path("/proc/self/cgroup").read_text(encoding="ascii", errors="replace")
    found: list[int] = []
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        version_1 = "memory" in controllers.split(",")
        if controllers and not version_1:
            continue
        top = root / "memory" if version_1 else root
        name = "memory.limit_in_bytes" if version_1 else "memory.max"
        folder = top / group.lstrip("/")
        while folder.is_relative_to(top):
            with contextlib.suppress(OSError, ValueError):
                found.append(int((folder / name).read_text(encoding="ascii")))
            folder = folder.parent
    # Version 1 has no word for `none`: it then shows a number no machine has.
    return min((number for number in found if number < 1 << 60), default=None)


def scheduler() -> dict[str, Any]:
    """Whether SLURM's commands work from here; None where this is no SLURM job."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return {"scontrol": None, "sbatch": None}
    partition = os.environ.get("SLURM_JOB_PARTITION")
    words = ["--partition", partition] if partition else []
    account = os.environ.get("SLURM_JOB_ACCOUNT")
    words += ["--account", account] if account else []
    scontrol = _trouble("scontrol", "-o", "show", "job", job)
    sbatch = _trouble("sbatch", "--test-only", *words, "--time=1", "--wrap=true")
    return {
        "scontrol": not scontrol,
        "scontrol_says": scontrol,
        "sbatch": not sbatch,
        "sbatch_says": sbatch,
    }


def _trouble(*command: str) -> str:
    """What went wrong with a command; empty where it worked."""
    # What this job was given would otherwise be taken for what the new one asks.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SBATCH_"))
    }
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def mlflow(uri: str) -> dict[str, Any]:
    """Ask the tracking server something real: its `/health` answers also where it refuses work."""
    if not uri.startswith(("http://", "https://")):
        raise ValueError(f"{uri} is no address of a server: nodes cannot share a file of that kind")
    address = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        with urllib.request.urlopen(address, timeout=_MLFLOW_SECONDS) as answer:  # noqa: S310
            return {"status": answer.status}
    except urllib.error.HTTPError as refused:
        return {"status": refused.code, "says": refused.read(200).decode(errors="replace")}


def internet() -> dict[str, Any]:
    """Whether an address outside can be reached; nothing of ours needs it."""
    try:
        socket.create_connection(_OUTSIDE, timeout=_OUTSIDE_SECONDS).close()
    except OSError:
        return {"reached": False}
    return {"reached": True}


def gpus(ask: Mapping[str, Any]) -> dict[str, Any]:
    """What torch sees, against what the variables say."""
    import torch

    count = torch.cuda.device_count() if ask["gpus_per_node"] else 0
    return {
        "asked": ask["gpus_per_node"],
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "seen": count,
        "names": [torch.cuda.get_device_name(n) for n in range(count)],
    }


def collective(ask: Mapping[str, Any], place: RankEnv) -> dict[str, Any]:
    """Add numbers up over all ranks, then time it: NCCL between GPUs, gloo between CPUs."""
    import torch
    import torch.distributed as dist

    # Libraries may wait without end, where Python no longer gets to run a handler.
    signal.alarm(_COLLECTIVE_SECONDS + 30)
    cuda = ask["gpus_per_node"] > 0 and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    device = torch.device("cuda" if cuda else "cpu")
    begun = time.monotonic()
    timeout = datetime.timedelta(seconds=_COLLECTIVE_SECONDS)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout)
    try:
        numbers = torch.full((_FLOATS[device.type],), float(place.rank + 1), device=device)
        dist.all_reduce(numbers)
        right = bool((numbers == place.world_size * (place.world_size + 1) / 2).all())
        ready = time.monotonic() - begun
        seconds = _time_rounds(lambda: dist.all_reduce(numbers), cuda=cuda)
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
        signal.alarm(0)
    # Bytes that each rank has to send, after nccl-tests' `busbw`.
    sent = 2 * (place.world_size - 1) / place.world_size * numbers.numel() * numbers.element_size()
    return {
        "backend": "nccl" if cuda else "gloo",
        "right": right,
        "world_size": place.world_size,
        "ready_seconds": round(ready, 2),
        "gb_per_second": round(sent / seconds / 1e9, 3),
    }


def _time_rounds(function: Callable[[], object], *, cuda: bool) -> float:
    """Mean seconds of a call."""
    import torch

    begun = time.monotonic()
    for _ in range(_NUM_ROUNDS):
        function()
    if cuda:
        torch.cuda.synchronize()
    return (time.monotonic() - begun) / _NUM_ROUNDS


def imports(modules: Mapping[str, str]) -> dict[str, Any]:
    """Version of each package, and seconds until its module was imported."""
    found: dict[str, Any] = {}
    for package, module in modules.items():
        begun = time.monotonic()
        try:
            version = importlib.metadata.version(package)
            importlib.import_module(module)
        except Exception as error:
            found[package] = {"error": f"{type(error).__name__}: {str(error).strip()}"[:300]}
        else:
            found[package] = {"version": version, "after": round(time.monotonic() - begun, 2)}
    return {"packages": found}
