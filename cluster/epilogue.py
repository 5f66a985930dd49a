"""The torch-free end of every attempt, run by the batch script: records the exit, decides, acts."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.contract import ExitCode
from cluster.decision import (
    MAX_STALLED_ATTEMPTS,
    Decision,
    Ending,
    PastAttempt,
    RankFailure,
    SchedulerView,
    decide,
)
from cluster.progress import committed_step
from cluster.queue import own_job_id, parse_scontrol_job
from cluster.transport import Changes, give_up, go_on, scontrol

_SCHEMA_VERSION = 1
_ATTEMPT = re.compile(r"s(\d+)r(\d+)")
_SCONTROL_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Which attempt of which stage just ended; `job_id` is None without SLURM."""

    stage: Path
    submission: int
    restart: int
    job_id: str | None

    @property
    def folder(self) -> Path:
        """Where the attempt's records lie."""
        return self.stage / "attempts" / f"s{self.submission:03d}r{self.restart:03d}"


def main(argv: Sequence[str] | None = None) -> int:
    """Record and decide; returns the exit code: 0 finished, 75 goes on, else the cause's."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="python -m cluster.epilogue")
    parser.add_argument("stage_dir", type=Path)
    parser.add_argument("--submission", type=int, required=True)
    parser.add_argument("--exit-code", type=int, required=True)
    parser.add_argument("--interrupted", action="store_true", help="a person stopped the executor")
    parser.add_argument("--signalled", action="store_true", help="TERM came, the ranks still run")
    options = parser.parse_args(argv)
    attempt = _attempt(options.stage_dir.absolute(), options.submission, os.environ)
    ending = _ending(attempt, options.exit_code, options.interrupted)
    if options.signalled and ending.scheduler.running:
        return ExitCode.SUCCESS  # nobody has ended the job: what its ranks make of it decides
    decision = _act(attempt, ending, decide(ending))
    how = "was told to end" if options.signalled else f"ended with exit code {ending.exit_code}"
    print(
        f"orchestrate: attempt {attempt.folder.name} {how} at step {ending.step}:"
        f" {decision.action}: {decision.reason}",
        flush=True,
    )
    return exit_code(decision)


def _act(attempt: Attempt, ending: Ending, decision: Decision) -> Decision:
    """Record the decision and ask for the requeue it needs; the decision that holds then."""
    earlier = _read(attempt.folder / "exit.json") or {}
    if earlier.get("requeue_asked"):
        decision = _keep_requeue(decision, earlier)
    _record(attempt, ending, decision, asked=bool(earlier.get("requeue_asked")))
    if not decision.ask or attempt.job_id is None:
        if attempt.job_id is not None and decision.action != "requeue":
            give_up(attempt.job_id)
        return decision
    refusal = go_on(attempt.job_id, Changes())
    if refusal is None:
        _record(attempt, ending, decision, asked=True)
    elif decision.action == "requeue":
        reason = f"{decision.reason}; the scheduler refused to requeue: {refusal}"
        decision = Decision(action="stop", reason=reason, exit_code=decision.exit_code)
        _record(attempt, ending, decision)
    return decision


def _keep_requeue(decision: Decision, earlier: Mapping[str, Any]) -> Decision:
    """The requeue was asked for when the signal came: the job comes back, whatever is known now."""
    if decision.action == "finished":
        return replace(decision, ask=False)
    return Decision(
        action="requeue",
        reason=str(earlier.get("reason", decision.reason)),
        exit_code=decision.exit_code,
        self_ended=bool(earlier.get("self_ended")),
    )


def exit_code(decision: Decision) -> int:
    """75 means `goes on` and nothing else, so a stop never exits with it, nor with 0."""
    if decision.action == "finished":
        return ExitCode.SUCCESS
    if decision.action == "requeue":
        return ExitCode.PREEMPTED
    stopped = decision.exit_code in (ExitCode.SUCCESS, ExitCode.PREEMPTED)
    return 1 if stopped else decision.exit_code


def _attempt(stage: Path, submission: int, environ: Mapping[str, str]) -> Attempt:
    """The local executor counts restarts in a variable of its own and passes nothing of SLURM's."""
    local = environ.get("ORCHESTRATE_RESTART_COUNT")
    restart = local if local is not None else environ.get("SLURM_RESTART_COUNT") or "0"
    job_id = own_job_id(environ) if local is None else None
    return Attempt(stage=stage, submission=submission, restart=int(restart), job_id=job_id)


def _ending(attempt: Attempt, code: int, interrupted: bool) -> Ending:
    cancel = _read(attempt.stage / "cancel.json")
    claim = _read(attempt.stage / f"submission-{attempt.submission}.intent.json") or {}
    policy = claim.get("policy") or {}
    return Ending(
        exit_code=code,
        submission=attempt.submission,
        step=committed_step(attempt.stage),
        succeeded=_succeeded(attempt.stage),
        scheduler=_scheduler_view(attempt),
        agreed=(_read(attempt.folder / "end.json") or {}).get("outcome") == "preempted",
        failures=_failures(attempt.folder),
        history=_history(attempt),
        cancelled_by=None if cancel is None else f"{cancel.get('user')} on {cancel.get('host')}",
        interrupted=interrupted,
        max_stalled=int(policy.get("max_restarts_without_progress", MAX_STALLED_ATTEMPTS)),
    )


def _read(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none that can be read: the epilogue decides without it."""
    try:
        return fsio.read_json_or_none(path)
    except (OSError, ValueError) as error:
        print(f"orchestrate: {error}", file=sys.stderr)
        return None


def _succeeded(stage: Path) -> bool:
    spec, result = _read(stage / "stage.json"), _read(stage / "result.json")
    return spec is not None and result is not None and result.get("key") == spec.get("key")


def _failures(folder: Path) -> tuple[RankFailure, ...]:
    records = [_read(path) for path in sorted(folder.glob("failure-rank*.json"))]
    return tuple(
        RankFailure(
            rank=int(record["rank"]),
            exit_code=int(record["exit_code"]),
            cause=str(record["cause"]),
            at=float(record["at"]),
        )
        for record in records
        if record is not None and {"rank", "exit_code", "cause", "at"} <= record.keys()
    )


def _history(attempt: Attempt) -> tuple[PastAttempt, ...]:
    """Earlier attempts with an exit.json; a node failure leaves none."""
    past = []
    for folder in sorted(attempt.folder.parent.glob("s*r*")):
        match = _ATTEMPT.fullmatch(folder.name)
        record = _read(folder / "exit.json")
        if match is None or record is None or folder.name >= attempt.folder.name:
            continue
        past.append(
            PastAttempt(
                submission=int(match.group(1)),
                step=int(record.get("step", 0)),
                self_ended=bool(record.get("self_ended", False)),
            )
        )
    return tuple(past)


def _record(attempt: Attempt, ending: Ending, decision: Decision, *, asked: bool = False) -> None:
    """Write exit.json. A full disk must not change the decision, so it is only reported."""
    try:
        fsio.make_dir(attempt.folder)
        fsio.write_json(
            attempt.folder / "exit.json",
            {
                "schema_version": _SCHEMA_VERSION,
                "exit_code": decision.exit_code,
                "job_exit_code": ending.exit_code,
                "decision": decision.action,
                "reason": decision.reason,
                "self_ended": decision.self_ended,
                "requeue_asked": asked,
                "step": ending.step,
                "finished_at": time.time(),
            },
        )
    except OSError as error:
        print(f"orchestrate: cannot record the end of the attempt: {error}", file=sys.stderr)


def _scheduler_view(attempt: Attempt) -> SchedulerView:
    if attempt.job_id is None:
        return SchedulerView()
    for _ in range(_SCONTROL_TRIES):
        done = scontrol("-o", "show", "job", attempt.job_id)
        if done.returncode == 0:
            return scheduler_view(parse_scontrol_job(done.stdout), attempt.restart)
        time.sleep(1.0)
    # Without an answer a cancel cannot be told from a crash; a requeue would be refused anyway.
    print(f"orchestrate: scontrol show job: {done.stderr.strip()}", file=sys.stderr)
    return SchedulerView(running=False)


def scheduler_view(job: Mapping[str, str], restart: int) -> SchedulerView:
    """Read `scontrol show job` from inside the job's own batch script.

    While the script still runs, every ended job is COMPLETING, whatever ended it. What differs:
    after a requeue by the scheduler `Restarts` is ahead of this attempt's own count; a preemption
    that cancels sets PreemptTime; the time limit is the reason; a cancelled job shows none of them.
    """
    return SchedulerView(
        running=job.get("JobState") == "RUNNING",
        requeued=int(job.get("Restarts", "0")) > restart,
        preempted=job.get("PreemptTime", "None") not in ("None", "N/A", "Unknown", "0", ""),
        time_limit=job.get("Reason") == "TimeLimit",
    )


if __name__ == "__main__":
    sys.exit(main())
