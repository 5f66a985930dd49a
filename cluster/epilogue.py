"""The torch-free end of every attempt, run by the batch script: records the exit, decides, acts."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.contract import ExitCode, SchedulerError
from cluster.decision import Decision, Ending, decide
from cluster.evidence import (
    Attempt,
    Seen,
    ask,
    gather,
    history,
    lost_nodes,
    partition_size,
    read,
)
from cluster.exclusion import admit
from cluster.inside import Changes, Origin, origin_of
from cluster.leaving_out import leave_out
from cluster.patience import Patience, Trouble, trouble_of
from cluster.queue import own_job_id
from cluster.ranks import restart_base, restart_count
from cluster.successor import recorded, refusal_of, replace_by, superseded
from cluster.transport import change_in_place, give_up, go_on

_SCHEMA_VERSION = 1
_PATIENCE = Patience(seconds=300.0)


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
    if superseded(attempt.stage, attempt.submission, os.environ) is not None:
        return ExitCode.SUPERSEDED  # the folder of this attempt is that of the job that goes on
    seen = gather(attempt, options.exit_code, options.interrupted, hurried=options.signalled)
    view = seen.ending.scheduler
    if options.signalled and (view.running or not view.answered):
        return ExitCode.SUCCESS  # nobody has ended the job: what its ranks make of it decides
    origin = None
    if attempt.job_id is not None:
        origin = origin_of(attempt.stage, attempt.submission, os.environ)
    if options.signalled and origin is not None:
        seen = _in_a_hurry(attempt, origin, seen)
    wanted = _rehearsed(attempt, decide(seen.ending))
    if wanted.cause == "superseded" and superseded(attempt.stage, attempt.submission, os.environ):
        return exit_code(wanted)  # the attempt of that number is one of the job that goes on
    decision = _act(attempt, origin, seen, _possible(origin, seen, wanted))
    code = seen.ending.exit_code
    how = "was told to end" if options.signalled else f"ended with exit code {code}"
    print(
        f"orchestrate: attempt {attempt.folder.name} {how} at step {seen.ending.step}:"
        f" {decision.action}: {decision.reason}",
        flush=True,
    )
    if origin is not None and decision.exclude:
        leave_out(origin, decision.exclude)
    return exit_code(decision)


def _in_a_hurry(attempt: Attempt, origin: Origin, seen: Seen) -> Seen:
    """Record the decision and ask for the requeue at once; what is known of the nodes after that.

    A requeue that is refused here is asked for again, with all that it needs. One that needs more
    memory waits for the answer whether there is so much.
    """
    decision = _rehearsed(attempt, decide(seen.ending))
    earlier = read(attempt.folder / "exit.json") or {}
    if not earlier.get("requeue_asked") and decision.mem_gb is None:
        first = replace(decision, exclude=())
        _record(attempt, seen.ending, first)
        if first.ask and go_on(origin) is None:
            _record(attempt, seen.ending, first, asked=True)
    ending = seen.ending
    if decision.action != "requeue" or ending.scheduler.preempted or ending.scheduler.time_limit:
        return seen
    view = replace(ending.scheduler, lost_nodes=lost_nodes(ending.placement.nodes))
    return replace(seen, ending=replace(ending, scheduler=view))


def _rehearsed(attempt: Attempt, decision: Decision) -> Decision:
    """What a person did on purpose (`orchestrate drill`) says nothing of a node or of the stage."""
    if read(attempt.folder / "drill.json") is None:
        return decision
    policy = "free" if decision.policy == "counted" else decision.policy
    reason = f"{decision.reason} (a drill)"
    return replace(decision, exclude=(), self_ended=False, policy=policy, reason=reason)


def _possible(origin: Origin | None, seen: Seen, decision: Decision) -> Decision:
    """The decision as far as this cluster can do it: only so many nodes are left out, and a stage
    that needs more memory than any node has stops."""
    if origin is None:
        return replace(decision, exclude=())
    if decision.mem_gb is not None:
        refused = refusal_of(origin, Changes(mem_gb=decision.mem_gb))
        if refused is not None and trouble_of(SchedulerError(refused)) is Trouble.REFUSED:
            reason = f"{decision.reason}, which the scheduler refuses: {refused}"
            decision = replace(decision, action="stop", reason=reason, ask=False, mem_gb=None)
    if not decision.exclude:
        return decision
    partition = seen.job.get("Partition") or origin.environ.get("SLURM_JOB_PARTITION")
    allowed, why_not = admit(
        decision.exclude,
        excluded=seen.excluded,
        by_recipe=seen.excluded_by_recipe,
        partition_nodes=partition_size(partition),
        job_nodes=int(seen.asked.get("nodes", 1)),
    )
    said = [f"without {', '.join(allowed)} from now on"] if allowed else []
    said += [why_not] if why_not else []
    return replace(decision, exclude=allowed, reason="; ".join([decision.reason, *said]))


def _act(attempt: Attempt, origin: Origin | None, seen: Seen, decision: Decision) -> Decision:
    """Record the decision and ask for the requeue it needs; the decision that holds then."""
    earlier = read(attempt.folder / "exit.json") or {}
    asked = bool(earlier.get("requeue_asked"))
    if asked and seen.ending.cancelled_by is not None:
        decision = replace(decision, withdraw=True)
    elif asked:
        decision = _keep_requeue(decision, earlier)
    _record(attempt, seen.ending, decision, asked=asked)
    if origin is None:
        return decision
    if decision.withdraw:
        ask("scancel", origin.job_id)
    if not decision.ask:
        if decision.action == "requeue":
            _change(origin, _changes(attempt, seen, decision))
        elif decision.action == "stop" or not asked:
            # One that was asked for ends with success, as what waits for this job needs.
            give_up(origin, failed=decision.action == "stop")
        return decision
    refusal = _insist(origin, _changes(attempt, seen, decision))
    if refusal is None:
        _record(attempt, seen.ending, decision, asked=True)
    elif decision.action == "requeue":
        reason = f"{decision.reason}; the scheduler refused to requeue: {refusal}"
        decision = replace(decision, action="stop", reason=reason, self_ended=False)
        _record(attempt, seen.ending, decision)
    return decision


def _insist(origin: Origin, changes: Changes) -> str | None:
    """See to another attempt, also where the controller is away for minutes; why it is refused."""
    deadline = time.monotonic() + _PATIENCE.seconds
    for pause in _PATIENCE.pauses():
        refusal = go_on(origin, changes)
        away = refusal is not None and trouble_of(SchedulerError(refusal)) is Trouble.AWAY
        if not away or time.monotonic() + pause > deadline:
            return refusal
        time.sleep(pause)
    raise AssertionError("pauses never end")


def _change(origin: Origin, changes: Changes) -> None:
    """Change what goes on already: the successor that waits, or else this job, requeued."""
    queued = recorded(origin, origin.number + 1)
    if queued is None:
        change_in_place(origin, changes)
    elif changes:
        replace_by(origin, queued, changes)


def _changes(attempt: Attempt, seen: Seen, decision: Decision) -> Changes:
    """All that another attempt needs otherwise than the submission asked for, old and new.

    Where nodes are left out, those that the recipe names are among them: SLURM keeps one list.
    """
    own = [one for one in history(attempt) if one["submission"] == attempt.submission]
    memory = [*(one.get("mem_gb") for one in own), decision.mem_gb]
    raised = [float(gb) for gb in memory if gb]
    past = [node for one in own for node in one.get("exclude") or ()]
    named = seen.excluded_by_recipe
    nodes = tuple(dict.fromkeys([*named, *seen.excluded, *past, *decision.exclude]))
    return Changes(
        exclude=nodes if len(nodes) > len(named) else (),
        mem_gb=raised[-1] if raised else None,
    )


def _keep_requeue(decision: Decision, earlier: Mapping[str, Any]) -> Decision:
    """The requeue was asked for when the signal came: the job comes back, whatever is known now."""
    if decision.action == "finished":
        return replace(decision, ask=False)
    news = bool(decision.exclude) and not earlier.get("exclude")
    return replace(
        decision,
        action="requeue",
        reason=decision.reason if news else str(earlier.get("reason", decision.reason)),
        self_ended=bool(earlier.get("self_ended")),
        ask=False,
        withdraw=False,
        cause=earlier.get("cause"),
        policy=earlier.get("policy"),
        exclude=tuple(earlier.get("exclude") or decision.exclude),
        mem_gb=earlier.get("mem_gb"),
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
    local = environ.get("ORCHESTRATE_RESTART_COUNT") is not None
    return Attempt(
        stage=stage,
        submission=submission,
        restart=restart_count(environ),
        job_id=None if local else own_job_id(environ),
        base=restart_base(environ),
    )


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
                "cause": decision.cause,
                "policy": decision.policy,
                "exclude": list(decision.exclude),
                "mem_gb": decision.mem_gb,
                "self_ended": decision.self_ended,
                "requeue_asked": asked,
                "step": ending.step,
                "finished_at": time.time(),
            },
        )
    except OSError as error:
        print(f"orchestrate: cannot record the end of the attempt: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
