"""SLURM from inside a job: which attempt it is, and commands that may not work there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.queue import (
    Dependent,
    own_job_id,
    parse_dependents,
    parse_job_fields,
    parse_scontrol_job,
)
from cluster.ranks import restart_base, restart_count

_SECONDS = 20
# How SLURM's commands reach their controller; every other variable of theirs is an option.
SLURM_CLIENT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_DEBUG_FLAGS"})


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What the next attempt needs otherwise than this one.

    Attributes:
        exclude: names of all nodes that it must not get; empty leaves those it has.
        mem_gb: memory a node; None leaves it.
    """

    exclude: tuple[str, ...] = ()
    mem_gb: float | None = None

    def __bool__(self) -> bool:
        return bool(self.exclude) or self.mem_gb is not None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The attempt that is going on, in its own job.

    Attributes:
        number: which attempt of its submission it is, counted over all jobs of the submission.
        base: the number of the first attempt of this job.
        script: the copy of the batch script that runs.
        environ: the variables of the job.
    """

    stage: Path
    submission: int
    number: int
    base: int
    job_id: str
    script: Path | None
    environ: Mapping[str, str]

    @property
    def store(self) -> Path:
        """The store that the stage lies in."""
        return self.stage.parent.parent


def origin_of(stage: Path, submission: int, environ: Mapping[str, str]) -> Origin | None:
    """The attempt this process belongs to; None outside of SLURM."""
    job_id = own_job_id(environ)
    if job_id is None:
        return None
    script = environ.get("ORCHESTRATE_SCRIPT")
    return Origin(
        stage=stage,
        submission=submission,
        number=restart_count(environ),
        base=restart_base(environ),
        job_id=job_id,
        script=Path(script) if script else None,
        environ=environ,
    )


def megabytes(mem_gb: float) -> int:
    """Memory as SLURM takes it, rounded up."""
    return -int(-mem_gb * 1024 // 1)


def job_fields(job_id: str) -> dict[str, str] | None:
    """What SLURM says of a job in the words of `scontrol show job`; None without an answer."""
    fields = ask_for_job(job_id)
    return None if isinstance(fields, str) else fields


def ask_for_job(job_id: str, seconds: float = _SECONDS) -> dict[str, str] | str:
    """What SLURM says of a job in the words of `scontrol show job`, or why it did not answer.

    Where scontrol does not work, squeue tells as much as is needed of an end: JobState, Reason,
    Restarts and PreemptTime. Each of the two may take that many seconds.
    """
    done = command("scontrol", "-o", "show", "job", job_id, seconds=seconds)
    if done.returncode == 0:
        return parse_scontrol_job(done.stdout)
    fields = "State:|,Reason:|,RestartCnt:|,PreemptTime:|"
    words = ("squeue", "--noheader", "--states=all", "--jobs", job_id, "--Format", fields)
    asked = command(*words, seconds=seconds)
    if asked.returncode == 0:
        return parse_job_fields(asked.stdout) or "there is no such job"
    return f"{done.stderr.strip()}; {asked.stderr.strip()}"


def dependents(store: Path | None = None) -> list[Dependent]:
    """Pending jobs of this user that wait for other jobs; empty where squeue does not answer.

    With `store`, only those of its stages: others are not ours to change.
    """
    fields = "JobArrayID:|,Dependency:|,WorkDir:|"
    user = str(os.geteuid())
    asked = command("squeue", "--noheader", "--states=PD", "--user", user, "--Format", fields)
    found = parse_dependents(asked.stdout) if asked.returncode == 0 else []
    return [one for one in found if store is None or Path(one.folder).is_relative_to(store)]


def downstream(waiting: Sequence[Dependent], jobs: Sequence[str]) -> list[Dependent]:
    """Those that wait for one of the jobs, directly or through others; pure."""
    found: list[Dependent] = []
    front = list(jobs)
    while front:
        new = [
            one
            for one in waiting
            if one not in found and one.job_id not in jobs and any(map(one.waits_for, front))
        ]
        found += new
        front = [one.job_id for one in new]
    return found


def wait_also_for(origin: Origin, job_id: str) -> None:
    """Let what waits for this job, however it ends, wait for another one as well.

    Only to spare it a start: a job that starts too early sees that and steps back. So nothing is
    lost where scontrol does not work, or two upstream jobs write at the same moment.
    """
    for one in dependents(origin.store):
        if one.waits_for(origin.job_id, kind="afterany"):
            scontrol("update", f"JobId={one.name}", f"Dependency={one.and_after(job_id)}")


def wait_instead_for(origin: Origin, job_id: str) -> None:
    """Let what waits for the success of this job, which has failed, wait for that of another one.

    Where scontrol does not work, or the whole of an array is waited for, they are cancelled when
    this job ends, and submitted again by `orchestrate resume`.
    """
    for one in dependents(origin.store):
        if ("afterok", origin.job_id) in one.on:
            moved = one.with_success_of(job_id, origin.job_id)
            scontrol("update", f"JobId={one.name}", f"Dependency={moved}")


def scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scontrol; a failure to start it or a late answer is a return code of 1."""
    return command("scontrol", *arguments)


def command(
    *words: str, environ: Mapping[str, str] | None = None, seconds: float = _SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a SLURM client; a failure to start it or a late answer is a return code of 1."""
    known = os.environ if environ is None else environ
    clean = {k: v for k, v in known.items() if not k.startswith(("SQUEUE_", "SCANCEL_"))}
    try:
        return subprocess.run(
            words,
            env={**clean, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))


def without_options(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for an sbatch inside a job: what SLURM has set for that is no option here."""
    return {
        name: value
        for name, value in environ.items()
        if name in SLURM_CLIENT or not name.startswith(("SLURM_", "SBATCH_"))
    }
