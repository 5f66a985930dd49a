"""What a job that must not be requeued does before its ranks: leave, step back, or be followed."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.contract import ExitCode, JobHandle, SchedulerError
from cluster.decision import MAX_STALLED_ATTEMPTS
from cluster.evidence import read, scheduler_view
from cluster.history import read_history
from cluster.inside import Origin, job_fields, origin_of
from cluster.patience import Patience, answered
from cluster.progress import committed_step
from cluster.successor import own_record, queue, successors, superseded, waiting_or_running

_INTENT = re.compile(r"submission-(\d+)\.intent\.json")
_SCHEMA_VERSION = 1
_STEPS_BACK, _LOOKS_AGAIN = "an upstream stage goes on", "its input is not there yet"
# A controller that is restarted or fails over is away for minutes; meanwhile the nodes idle.
_PATIENCE = Patience(seconds=300.0)


def main(argv: Sequence[str] | None = None, *, patience: Patience = _PATIENCE) -> int:
    """Before the ranks: leave, step back behind upstream jobs that go on, or queue a successor."""
    parser = argparse.ArgumentParser(prog="python -m cluster.prologue")
    parser.add_argument("stage_dir", type=Path)
    parser.add_argument("--submission", type=int, required=True)
    options = parser.parse_args(argv)
    origin = origin_of(options.stage_dir.absolute(), options.submission, os.environ)
    if origin is None:
        return ExitCode.SUCCESS
    reason = _reason_to_leave(origin, patience)
    if reason is not None:
        print(f"orchestrate: job {origin.job_id} leaves: {reason}", flush=True)
        return ExitCode.SUPERSEDED
    try:
        waiting = answered(lambda: upstream_at_work(origin.stage), patience)
    except SchedulerError as error:
        _say(f"whether the stages before this one go on is not known: {error}")
        return _step_back(origin, (), patience)
    if waiting:
        return _step_back(origin, waiting, patience)
    problem = _queue(origin, "goes on if this job fails", (), patience)
    if problem is not None:
        _say(f"no successor is queued: {problem}")
    return ExitCode.SUCCESS


def _say(text: str) -> None:
    print(f"orchestrate: {text}", flush=True)


def _step_back(origin: Origin, waiting: Sequence[str], patience: Patience) -> int:
    """Let another job try again, when the upstream jobs have ended or at once: the ranks of this
    one would only find that their input is missing, which is the end of the stage."""
    if waiting:
        problem = _queue(origin, _STEPS_BACK, waiting, patience)
        if problem is None:
            _say(f"waits again, for {', '.join(waiting)}")
            return ExitCode.SUPERSEDED
        _say(f"no job waits for {', '.join(waiting)}: {problem}")
    problem = _queue(origin, _LOOKS_AGAIN, (), patience)
    if problem is None:
        _say("another job looks for the input again")
    else:
        _say(f"no job looks for the input again: {problem}; `orchestrate resume` goes on")
    return ExitCode.SUPERSEDED


def _queue(origin: Origin, why: str, after: Sequence[str], patience: Patience) -> str | None:
    """Queue the job of the next attempt; what SLURM said where it refused or never answered."""

    def once() -> None:
        problem = queue(origin, why=why, after=after)
        if problem is not None:
            raise SchedulerError(problem)

    try:
        return answered(once, patience)
    except SchedulerError as error:
        return str(error)


def _reason_to_leave(origin: Origin, patience: Patience) -> str | None:
    """Why this job must not work, by what the jobs before it have recorded."""
    newest = max(_numbers(origin.stage), default=0)
    if newest > origin.submission:
        return f"submission {newest} owns the stage now"
    if (origin.stage / "cancel.json").exists():
        return "the stage was cancelled"
    other = superseded(origin.stage, origin.submission, origin.environ)
    if other is not None:
        return f"job {other} goes on with the stage"
    own = own_record(origin)
    if own is None or origin.number != origin.base:
        return None
    if own.taken_back:
        return "it was taken back"
    if own.why == _STEPS_BACK:
        return None
    left_by_itself = own.why == _LOOKS_AGAIN
    ended = None if left_by_itself else _end_of_the_one_before(origin, patience)
    return ended or _leads_nowhere(origin)


def _end_of_the_one_before(origin: Origin, patience: Patience) -> str | None:
    """Why the job before this one is not to be continued, where it could not take this one back."""
    before = origin.number - 1
    folder = _attempt(origin, before)
    ended = fsio.read_json_or_none(folder / "exit.json")
    if ended is not None:
        stopped = ended.get("decision") == "stop"
        return f"the attempt before it stopped: {ended.get('reason')}" if stopped else None
    job = _job_before(origin)
    if job is None:
        return None
    known = _shown(job.job_id, patience) or _remembered(job)
    if known is None:
        # Of the two, that its node was lost is common, and that a person has killed it, script and
        # all, and not by `orchestrate cancel`, is rare: a pipeline must not wait for anybody.
        _say(f"how job {job.job_id} ended is not known any more; goes on from its checkpoint")
        return None
    cancelled = known.get("JobState", "").startswith("CANCELLED")
    if not cancelled or scheduler_view(known, 0).preempted:
        return None
    return f"job {job.job_id} was cancelled through the scheduler"


def _job_before(origin: Origin) -> JobHandle | None:
    """The job of the attempt before this one."""
    record = fsio.read_json_or_none(origin.stage / f"submission-{origin.submission}.json") or {}
    first = record.get("handle")
    later = [s for s in successors(origin.stage, origin.submission) if s.number < origin.number]
    if later:
        job_id, at, margin = later[-1].job_id, later[-1].submitted_at, later[-1].margin_seconds
    elif first and first["executor"] == "slurm":
        job_id, at = str(first["job_id"]), float(first.get("submitted_at", 0.0))
        margin = float(first.get("margin_seconds", 2.0))
    else:
        return None
    return JobHandle(
        executor="slurm", cluster="", job_id=job_id, submitted_at=at, margin_seconds=margin
    )


def _shown(job_id: str, patience: Patience) -> dict[str, str] | None:
    """What the controller says of a job; None where it has forgotten it or does not answer."""

    def once() -> dict[str, str] | None:
        known = job_fields(job_id)
        if known is None:
            waiting_or_running("--jobs", job_id)  # tells silence from not knowing it
        return known

    try:
        return answered(once, patience)
    except SchedulerError:
        return None


def _remembered(job: JobHandle) -> dict[str, str] | None:
    """What accounting says of a job, in the words of the controller."""
    rows = read_history([job]).attempts.get(job)
    return {"JobState": rows[-1].state} if rows else None


def _leads_nowhere(origin: Origin) -> str | None:
    """Why another attempt makes no sense: those before it were lost with their scripts.

    Nothing of theirs could decide that, so this is where a row of them ends. One more than may end
    by themselves are let go on: the first may have committed what is there. Where the scheduler has
    lost or preempted one, that does not count.
    """
    claim = fsio.read_json_or_none(origin.stage / f"submission-{origin.submission}.intent.json")
    policy = (claim or {}).get("policy") or {}
    most = int(policy.get("max_restarts_without_progress", MAX_STALLED_ATTEMPTS))
    lost = _lost_in_a_row(origin)
    if lost <= most:
        return None
    reason = (
        f"{lost} jobs in a row ended before their scripts could record it, and left no new"
        f" checkpoint: see the logs of {origin.stage.name}; `orchestrate resume` tries again"
    )
    _record_stop(origin, reason)
    return reason


def _lost_in_a_row(origin: Origin) -> int:
    """How many jobs before this one left no record of their own and nothing new."""
    jobs = {one.number: one for one in successors(origin.stage, origin.submission)}
    ids = dict(enumerate(_first_job(origin.stage, origin.submission)))
    ids |= {number: one.job_id for number, one in jobs.items()}
    step, lost = committed_step(origin.stage), 0
    for number in range(origin.number - 1, -1, -1):
        record = read(_attempt(origin, number) / "exit.json")
        if record is not None and ("recorded_by" not in record or int(record["step"]) < step):
            break
        after = jobs.get(number + 1)
        if after is not None and after.why == _STEPS_BACK:
            continue
        lost += 0 if _was_free(record, ids.get(number)) else 1
    return lost


def _was_free(record: dict[str, Any] | None, job_id: str | None) -> bool:
    """Whether the scheduler, and not the job, is the cause of an end without a record."""
    if record is not None:
        return record.get("policy") == "free"
    known = (job_fields(job_id) if job_id else None) or {}
    taken = known.get("JobState", "").startswith(("PREEMPTED", "NODE_FAIL"))
    return taken or scheduler_view(known, 0).preempted


def _record_stop(origin: Origin, reason: str) -> None:
    """Write exit.json of this attempt, which has no ranks: `status` and `why` show it."""
    record: dict[str, Any] = {
        "schema_version": _SCHEMA_VERSION,
        "exit_code": None,
        "job_exit_code": None,
        "decision": "stop",
        "reason": reason,
        "cause": "unknown",
        "policy": "stop",
        "exclude": [],
        "mem_gb": None,
        "self_ended": False,
        "requeue_asked": False,
        "step": committed_step(origin.stage),
        "finished_at": time.time(),
    }
    try:
        folder = fsio.make_dir(_attempt(origin, origin.number))
        fsio.create_json(folder / "exit.json", record)
    except OSError as error:
        _say(f"cannot record why it leaves: {error}")


def _attempt(origin: Origin, number: int) -> Path:
    return origin.stage / "attempts" / f"s{origin.submission:03d}r{number:03d}"


def _numbers(stage: Path) -> Iterable[int]:
    return (int(m[1]) for path in stage.glob("submission-*") if (m := _INTENT.fullmatch(path.name)))


def _first_job(stage: Path, submission: int) -> list[str]:
    record = fsio.read_json_or_none(stage / f"submission-{submission}.json") or {}
    handle = record.get("handle")
    return [str(handle["job_id"])] if handle and handle["executor"] == "slurm" else []


def upstream_at_work(stage: Path) -> list[str]:
    """Jobs that wait or run for stages which this one takes inputs from and have no result yet.

    It waits for the end of their jobs, however they end, since one that is replaced has failed in
    SLURM's eyes; so it may be started when such a stage goes on in another job.

    Raises:
        SchedulerError: there are such stages, and squeue does not tell of their jobs.
    """
    spec = fsio.read_json_or_none(stage / "stage.json") or {}
    entries = [entry for slot in (spec.get("inputs") or {}).values() for entry in slot]
    jobs: set[str] = set()
    for entry in entries:
        if "stage" in entry:
            jobs.update(_open_jobs(stage.parent / entry["stage"], str(entry["key"])))
    if not jobs:
        return []
    alive = waiting_or_running("--jobs", ",".join(sorted({job.partition("_")[0] for job in jobs})))
    return sorted(job.job_id for job in alive if job.job_id in jobs)


def _open_jobs(upstream: Path, key: str) -> list[str]:
    """The newest jobs of a stage that may still work for a result."""
    result = fsio.read_json_or_none(upstream / "result.json") or {}
    n = max(_numbers(upstream), default=0)
    if result.get("key") == key or not n or (upstream / "cancel.json").exists():
        return []
    later = [one.job_id for one in successors(upstream, n) if not one.taken_back]
    return [*_first_job(upstream, n), *later][-2:]


if __name__ == "__main__":
    sys.exit(main())
