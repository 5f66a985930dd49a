"""How a stage's next attempt comes about, and with what changes: the same job, requeued."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

_SCONTROL_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What the next attempt needs otherwise than this one.

    Attributes:
        exclude: names of nodes that it must not get.
        mem_gb: memory a node; None leaves it.
    """

    exclude: tuple[str, ...] = ()
    mem_gb: float | None = None


def go_on(job_id: str, changes: Changes | None = None) -> str | None:
    """Ask for another attempt of this job; what SLURM said where it refused, else None."""
    done = scontrol("requeue", job_id)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit {done.returncode}"


def give_up(job_id: str) -> None:
    """There will be no other attempt: take back what was queued for one."""


def scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scontrol; a failure to start it or a late answer is a return code of 1."""
    command = ["scontrol", *arguments]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SCONTROL_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
