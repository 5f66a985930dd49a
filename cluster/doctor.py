"""What this cluster offers and what of its settings matters to jobs that are stopped and go on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.contract import SchedulerError
from cluster.queue import parse_scontrol_config

_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class SlurmFacts:
    """Settings of a SLURM controller; None where it does not say.

    Attributes:
        preempt_mode: `OFF`, `REQUEUE`, `CANCEL`, ...; a partition may differ.
        kill_wait_seconds: from TERM to KILL: what a checkpoint must fit into.
        job_requeue: whether jobs may be requeued by default; ours ask for it themselves.
        min_job_age_seconds: how long an ended job stays known to squeue.
        user_signal: whether preemption with a grace time sends the job's own signal first.
    """

    version: str
    cluster: str
    preempt_mode: str
    kill_wait_seconds: int | None
    job_requeue: bool | None
    min_job_age_seconds: int | None
    user_signal: bool


def has_gpus(executor_name: str) -> bool:
    """Whether jobs of that executor can get GPUs.

    On a machine without SLURM's commands a `slurm` recipe is only planned or shown, and nobody can
    be asked: it is then taken at its word, so the answer is yes.

    Raises:
        SchedulerError: SLURM is installed and does not answer.
    """
    if executor_name != "slurm":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        return visible not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))
    if shutil.which("sinfo") is None:
        return True
    return "gpu" in _ask("sinfo", "--noheader", "--format=%G").lower()


def slurm_facts() -> SlurmFacts:
    """Read `scontrol show config`. Raises SchedulerError."""
    config = parse_scontrol_config(_ask("scontrol", "show", "config"))
    flags = config.get("SlurmctldParameters", "") + "," + config.get("PreemptParameters", "")
    requeue = _first_number(config.get("JobRequeue", ""))
    return SlurmFacts(
        version=config.get("SLURM_VERSION", "unknown"),
        cluster=config.get("ClusterName", "unknown"),
        preempt_mode=config.get("PreemptMode", "unknown"),
        kill_wait_seconds=_first_number(config.get("KillWait", "")),
        job_requeue=None if requeue is None else bool(requeue),
        min_job_age_seconds=_first_number(config.get("MinJobAge", "")),
        user_signal="send_user_signal" in flags,
    )


def _first_number(text: str) -> int | None:
    match = re.match(r"\s*(\d+)", text)
    return int(match.group(1)) if match else None


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise SchedulerError(
            f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout
