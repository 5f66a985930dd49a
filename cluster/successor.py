"""Jobs that go on where another one ended: queued, recorded, changed and taken back."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster import fsio, inside
from cluster.contract import Phase, SchedulerError
from cluster.inside import Changes, Origin
from cluster.patience import Trouble, trouble_of
from cluster.queue import SQUEUE_FORMAT, QueuedJob, own_job_id, parse_squeue
from cluster.ranks import restart_base, restart_count

_SCHEMA_VERSION = 1
# How far a node's clock may be from the controller's; ids repeat only where that lost its state.
_CLOCK_SECONDS = 30.0
_UNKNOWN_JOB = "Invalid job id"


@dataclass(frozen=True, kw_only=True)
class Successor:
    """A job that goes on with a submission: `<stage>/submission-<n>.jobs/<number>.json`.

    Attributes:
        number: of its first attempt, counted over all jobs of the submission.
        submitted_at: unix seconds, by the controller's clock, true to `margin_seconds`.
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
    margin_seconds: float = 2.0


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
        claim = f"submission-{origin.submission}.intent.json"
        since = float((fsio.read_json_or_none(origin.stage / claim) or {}).get("at", 0.0))
        known = _known(origin, origin.job_id, why="was queued", number=origin.base, since=since)
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
    made = _sbatch(origin, why, f"--dependency={kind}", *_options(origin, wanted))
    if isinstance(made, str):
        return made
    _record(origin, replace(made, exclude=wanted.exclude, mem_gb=wanted.mem_gb))
    inside.wait_also_for(origin, made.job_id)
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
        made = recorded(origin, queued.number)
        if made is not None and made.job_id != queued.job_id:
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


def _sbatch(origin: Origin, why: str, *options: str) -> Successor | str:
    """Submit the script that runs; the job of the next attempt, else what sbatch said."""
    if origin.script is None:
        return "ORCHESTRATE_SCRIPT is not set: this is not the script of a job"
    base = f"--export=ORCHESTRATE_RESTART_BASE={origin.number + 1}"
    since = time.time()
    done = _run_sbatch(origin, "--parsable", base, *options)
    job_id: str | None = done.stdout.strip().partition(";")[0]
    said = done.stderr.strip() or f"exit {done.returncode}"
    if done.returncode != 0 or not job_id:
        away = trouble_of(SchedulerError(said)) is Trouble.AWAY
        job_id = _made_all_the_same(origin) if away else None
    if job_id is None:
        return said
    return _known(origin, job_id, why=why, number=origin.number + 1, since=since)


def _made_all_the_same(origin: Origin) -> str | None:
    """The job that an sbatch made which got no answer: newer than this one, and of no record.

    All tasks of an array have one name, so it must be of the task that this job is.
    """
    name = origin.environ.get("SLURM_JOB_NAME", "")
    task = origin.environ.get("SLURM_ARRAY_TASK_ID", "")
    mine = _order(origin.job_id)
    known = {one.job_id for one in successors(origin.stage, origin.submission)}
    try:
        jobs = waiting_or_running("--name", name) if name else []
    except SchedulerError:
        return None  # should there be one, it sees at its start that it is not the recorded one
    ids = [one.job_id for one in jobs if one.job_id.partition("_")[2] == task]
    return max((i for i in ids if _order(i) > mine and i not in known), key=_order, default=None)


def _run_sbatch(origin: Origin, *options: str) -> Any:
    environ = inside.without_options(origin.environ)
    return inside.command("sbatch", *options, str(origin.script), environ=environ)


def _order(job_id: str) -> int:
    return int(job_id.partition("_")[0])


def _known(origin: Origin, job_id: str, *, why: str, number: int, since: float) -> Successor:
    """The record of a job, by what the controller tells of it.

    A time by its clock tells the job from others of its id. Where nobody answers, all that is known
    is that it was submitted between `since` and now, by the clock of this node.
    """
    task = origin.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{job_id}_{task}" if task and "_" not in job_id else job_id
    half = (time.time() - since) / 2
    try:
        jobs = [job for job in waiting_or_running("--jobs", name) if job.job_id == name]
    except SchedulerError:
        jobs = []
    if jobs:
        at = jobs[0].submitted_at
        return Successor(number=number, job_id=name, submitted_at=at, why=why)
    return Successor(
        number=number,
        job_id=name,
        submitted_at=since + half,
        why=why,
        margin_seconds=half + _CLOCK_SECONDS,
    )


def waiting_or_running(*selection: str) -> list[QueuedJob]:
    """Jobs of this user that wait or run. Raises SchedulerError: squeue does not tell."""
    user = ("--user", str(os.geteuid()))
    words = ("squeue", "--noheader", "--states=all", *user, "--Format", SQUEUE_FORMAT)
    done = inside.command(*words, *selection)
    if done.returncode != 0 and _UNKNOWN_JOB in done.stderr:
        return []
    if done.returncode != 0:
        raise SchedulerError(f"squeue: {done.stderr.strip() or f'exit {done.returncode}'}")
    try:
        jobs = parse_squeue(done.stdout)
    except ValueError as error:
        raise SchedulerError(f"squeue: {error}") from error
    return [job for job in jobs if job.state.phase is not Phase.GONE]
