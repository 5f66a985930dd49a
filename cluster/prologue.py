"""What a job that must not be requeued does before its ranks: leave, step back, or be followed."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster import fsio
from cluster.contract import ExitCode
from cluster.inside import Origin, job_fields, origin_of
from cluster.successor import own_record, queue, successors, superseded, waiting_or_running

_INTENT = re.compile(r"submission-(\d+)\.intent\.json")
_NOT_PREEMPTED = ("None", "N/A", "Unknown", "0", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Before the ranks: leave, step back behind upstream jobs that go on, or queue a successor."""
    parser = argparse.ArgumentParser(prog="python -m cluster.prologue")
    parser.add_argument("stage_dir", type=Path)
    parser.add_argument("--submission", type=int, required=True)
    options = parser.parse_args(argv)
    origin = origin_of(options.stage_dir.absolute(), options.submission, os.environ)
    if origin is None:
        return ExitCode.SUCCESS
    reason = _reason_to_leave(origin)
    if reason is not None:
        print(f"orchestrate: job {origin.job_id} leaves: {reason}", flush=True)
        return ExitCode.SUPERSEDED
    waiting = upstream_at_work(origin.stage)
    if waiting:
        problem = queue(origin, why="an upstream stage goes on", after=waiting)
        if problem is None:
            print(f"orchestrate: waits again, for {', '.join(waiting)}", flush=True)
            return ExitCode.SUPERSEDED
    else:
        problem = queue(origin, why="goes on if this job fails")
    if problem is not None:
        print(f"orchestrate: no successor is queued: {problem}", flush=True)
    return ExitCode.SUCCESS


def _reason_to_leave(origin: Origin) -> str | None:
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
    return _end_of_the_one_before(origin)


def _end_of_the_one_before(origin: Origin) -> str | None:
    """Why the job before this one is not to be continued, where it could not take this one back."""
    before = origin.number - 1
    folder = origin.stage / "attempts" / f"s{origin.submission:03d}r{before:03d}"
    ended = fsio.read_json_or_none(folder / "exit.json")
    if ended is not None:
        stopped = ended.get("decision") == "stop"
        return f"the attempt before it stopped: {ended.get('reason')}" if stopped else None
    jobs = [s.job_id for s in successors(origin.stage, origin.submission) if s.number <= before]
    jobs = jobs or _first_job(origin.stage, origin.submission)
    known = job_fields(jobs[-1]) if jobs else None
    if known is None or not known.get("JobState", "").startswith("CANCELLED"):
        return None
    preempted = known.get("PreemptTime", "None") not in _NOT_PREEMPTED
    return None if preempted else f"job {jobs[-1]} was cancelled through the scheduler"


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
