"""Jobs that go on where another one ended: queued, recorded, changed and taken back."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster import fsio, inside
from cluster.contract import JobState, Phase
from cluster.inside import Changes, Origin
from cluster.queue import SQUEUE_FORMAT, QueuedJob, own_job_id, parse_squeue
from cluster.ranks import restart_base, restart_count

_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Successor:
    """A job that goes on with a submission: `<stage>/submission-<n>.jobs/<number>.json`.

    Attributes:
        number: of its first attempt, counted over all jobs of the submission.
        submitted_at: unix seconds, by the controller's clock.
        why: what it was queued for.
        exclude: nodes that it does not get, besides those of the recipe.
        mem_gb: memory a node, where it is not that of the recipe.
        taken_back: whether it was cancelled because nothing is left to go on with.
    """

    number: int
    job_id: str
    submitted_at: float
    why: str
    exclude: tuple[str, ...] = ()
    mem_gb: float | None = None
    taken_back: bool = False


def successors(stage: Path, submission: int) -> list[Successor]:
    """The jobs that were queued to go on with a submission, oldest first."""
    folder = stage / f"submission-{submission}.jobs"
    records = [fsio.read_json_or_none(path) for path in folder.glob("*.json")]
    found = [_read(record) for record in records if record is not None]
    return sorted(found, key=lambda one: one.number)


def _read(record: Mapping[str, Any]) -> Successor:
    values = {name: value for name, value in record.items() if name != "schema_version"}
    return Successor(**{**values, "exclude": tuple(values["exclude"])})


def _record(origin: Origin, successor: Successor) -> None:
    folder = fsio.make_dir(origin.stage / f"submission-{origin.submission}.jobs")
    value = {"schema_version": _SCHEMA_VERSION, **asdict(successor)}
    fsio.write_json(folder / f"{successor.number}.json", value)


def recorded(origin: Origin, number: int) -> Successor | None:
    """The job that begins with that attempt, unless it was taken back."""
    jobs = successors(origin.stage, origin.submission)
    return next((one for one in jobs if one.number == number and not one.taken_back), None)


def superseded(stage: Path, submission: int, environ: Mapping[str, str]) -> str | None:
    """The job that goes on with the submission in place of this one, if there is one.

    Two may have been made where an answer of the scheduler was lost, or an administrator has
    requeued one that had a successor.
    """
    own, number = own_job_id(environ), restart_count(environ)
    earlier = [one for one in successors(stage, submission) if one.number <= number]
    if own is None or not earlier:
        return None
    mine = earlier[-1].number == restart_base(environ) and earlier[-1].job_id == own
    return None if mine else earlier[-1].job_id


def own_record(origin: Origin) -> Successor | None:
    """The record of the job that this is; made now if who queued it was killed before that.

    None for the first job of a submission.
    """
    if not origin.base:
        return None
    jobs = successors(origin.stage, origin.submission)
    known = next((one for one in jobs if one.number == origin.base), None)
    if known is None:
        job = _known(origin, origin.job_id)
        known = Successor(
            number=origin.base, job_id=job.job_id, submitted_at=job.submitted_at, why="was queued"
        )
        _record(origin, known)
    return known


# -- queue, change, take back ----------------------------------------------------------------------


def queue(
    origin: Origin, *, why: str, after: Sequence[str] = (), changes: Changes | None = None
) -> str | None:
    """Queue the job of the next attempt and record it; what SLURM said where it refused, else None.

    Args:
        origin: the attempt that it follows.
        why: for its record.
        after: jobs whose end it waits for; by default that the job of this attempt ends without
            success. In SLURM that is every other end: an exit code, preemption, the time limit, a
            lost node, scancel (measured). When the job succeeds, `kill-on-invalid-dep` ends it.
        changes: what it needs otherwise.
    """
    wanted = _together(own_record(origin), changes or Changes())
    kind = f"afterany:{':'.join(after)}" if after else f"afternotok:{origin.job_id}"
    made = _sbatch(origin, f"--dependency={kind}", *_options(origin, wanted))
    if isinstance(made, str):
        return made
    successor = Successor(
        number=origin.number + 1,
        job_id=made.job_id,
        submitted_at=made.submitted_at,
        why=why,
        exclude=wanted.exclude,
        mem_gb=wanted.mem_gb,
    )
    _record(origin, successor)
    inside.wait_also_for(origin, successor.job_id)
    return None


def replace_by(origin: Origin, queued: Successor, changes: Changes) -> None:
    """Queue another job in place of one that waits, because the next attempt needs other things.

    SLURM refuses a job that no nodes are left for; then the one that waits remains.
    """
    wanted = _together(queued, changes)
    if wanted == Changes(exclude=queued.exclude, mem_gb=queued.mem_gb):
        return
    problem = queue(origin, why=queued.why, changes=wanted)
    if problem is None:
        inside.command("scancel", queued.job_id)
    else:
        print(f"orchestrate: goes on without {changes}: {problem}", flush=True)


def take_back(origin: Origin, queued: Successor, unwanted: Sequence[str]) -> None:
    """Cancel a job that waits, and others with it; one that starts all the same will leave."""
    _record(origin, replace(queued, taken_back=True))
    inside.command("scancel", *unwanted)


def refusal_of(origin: Origin, changes: Changes) -> str | None:
    """Why SLURM would not take the job with these changes; None where it would."""
    if origin.script is None:
        return None
    done = _run_sbatch(origin, "--test-only", *_options(origin, changes))
    return None if done.returncode == 0 else done.stderr.strip() or f"exit {done.returncode}"


def _together(earlier: Successor | None, changes: Changes) -> Changes:
    """Changes on top of those that a job was queued with."""
    if earlier is None:
        return changes
    return Changes(
        exclude=changes.exclude or earlier.exclude, mem_gb=changes.mem_gb or earlier.mem_gb
    )


def _options(origin: Origin, changes: Changes) -> list[str]:
    """What sbatch is told besides the script; an option here replaces that of the script."""
    options = []
    task = origin.environ.get("SLURM_ARRAY_TASK_ID")
    if task:
        options.append(f"--array={task}")
    if changes.exclude:
        options.append(f"--exclude={','.join(changes.exclude)}")
    if changes.mem_gb is not None:
        options.append(f"--mem={inside.megabytes(changes.mem_gb)}M")
    return options


def _sbatch(origin: Origin, *options: str) -> QueuedJob | str:
    """Submit the script that runs; the job as the controller tells of it, else what sbatch said."""
    if origin.script is None:
        return "ORCHESTRATE_SCRIPT is not set: this is not the script of a job"
    base = f"--export=ORCHESTRATE_RESTART_BASE={origin.number + 1}"
    done = _run_sbatch(origin, "--parsable", base, *options)
    job_id = done.stdout.strip().partition(";")[0]
    if done.returncode == 0 and job_id:
        return _known(origin, job_id)
    # An sbatch that got no answer may have made the job all the same.
    name = origin.environ.get("SLURM_JOB_NAME", "")
    mine = _order(origin.job_id)
    made = (
        [job for job in waiting_or_running("--name", name) if _order(job.job_id) > mine]
        if name
        else []
    )
    return made[-1] if made else done.stderr.strip() or f"exit {done.returncode}"


def _run_sbatch(origin: Origin, *options: str) -> Any:
    environ = inside.without_options(origin.environ)
    return inside.command("sbatch", *options, str(origin.script), environ=environ)


def _order(job_id: str) -> int:
    return int(job_id.partition("_")[0])


def _known(origin: Origin, job_id: str) -> QueuedJob:
    """A job as the controller tells of it: a time by its clock tells it from others of its id."""
    jobs = waiting_or_running("--jobs", job_id)
    if jobs:
        return jobs[0]
    task = origin.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{job_id}_{task}" if task and "_" not in job_id else job_id
    state = JobState(phase=Phase.PENDING)
    return QueuedJob(job_id=name, name="", submitted_at=time.time(), state=state)


def waiting_or_running(*selection: str) -> list[QueuedJob]:
    """Jobs of this user that wait or run; none where squeue does not answer."""
    user = ("--user", str(os.geteuid()))
    words = ("squeue", "--noheader", "--states=all", *user, "--Format", SQUEUE_FORMAT)
    done = inside.command(*words, *selection)
    jobs = parse_squeue(done.stdout) if done.returncode == 0 else []
    return [job for job in jobs if job.state.phase is not Phase.GONE]
