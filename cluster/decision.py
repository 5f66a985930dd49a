"""Pure: what becomes of a job after one attempt: finished, requeued, or stopped, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.contract import ExitCode

MAX_STALLED_ATTEMPTS = 3

_STOPPING = {
    ExitCode.CONFIGURATION: "the configuration cannot run",
    ExitCode.INPUT: "an input is missing or damaged",
    ExitCode.USER_CODE: "the stage's code raised an error",
    ExitCode.OUT_OF_MEMORY: "out of memory",
    ExitCode.DIVERGED: "the loss is not finite",
    ExitCode.SUPERSEDED: "a newer submission owns the stage",
}
_RETRIED = {
    ExitCode.HANG: "a rank made no progress",
    ExitCode.COMMUNICATION: "a rank lost its peers, its device or its files",
    ExitCode.PREEMPTED: "asked to stop ahead of the time limit",
}
_FIRST_SIGNAL_CODE = 128  # a shell reports death by signal n as 128 + n
_SLURM_OUT_OF_MEMORY = 128 + 125  # SIG_OOM of slurm_protocol_defs.h: state OUT_OF_MEMORY, 0:125
_WITHOUT_RESULT = 1


@dataclass(frozen=True, kw_only=True)
class SchedulerView:
    """What the scheduler says while the batch script still runs.

    Attributes:
        running: the job is simply running; nobody has acted on it.
        requeued: the scheduler has already put it back into the queue by itself.
        preempted: it was preempted without being requeued (PreemptMode=CANCEL).
        time_limit: it reached its time limit.
    """

    running: bool = True
    requeued: bool = False
    preempted: bool = False
    time_limit: bool = False


@dataclass(frozen=True, kw_only=True)
class RankFailure:
    """What one rank recorded of its failure; `at` is unix seconds."""

    rank: int
    exit_code: int
    cause: str
    at: float


@dataclass(frozen=True, kw_only=True)
class PastAttempt:
    """An earlier attempt with a record: the committed step it left, and whether it counts."""

    submission: int
    step: int
    self_ended: bool


@dataclass(frozen=True, kw_only=True)
class Ending:
    """All that is known when one attempt's ranks are gone.

    Attributes:
        exit_code: of srun or the local executor: 128 + n where a signal ended a rank.
        agreed: rank 0 recorded that all ranks agreed to stop and saved.
        step: newest committed checkpoint step; 0 without one.
        history: earlier attempts of the stage, oldest first, those without a record left out.
        cancelled_by: who cancelled the stage; None if nobody did.
        interrupted: a person stopped the local executor.
        max_stalled: attempts in a row without a new checkpoint after which the stage stops.
    """

    exit_code: int
    submission: int
    step: int
    succeeded: bool
    scheduler: SchedulerView
    agreed: bool = False
    failures: tuple[RankFailure, ...] = ()
    history: tuple[PastAttempt, ...] = ()
    cancelled_by: str | None = None
    interrupted: bool = False
    max_stalled: int = MAX_STALLED_ATTEMPTS


@dataclass(frozen=True, kw_only=True)
class Decision:
    """`exit_code` is the root cause's; `self_ended` attempts count towards giving up.

    `ask` tells whether the scheduler has to be asked for a requeue.
    """

    action: Literal["finished", "requeue", "stop"]
    reason: str
    exit_code: int
    self_ended: bool = False
    ask: bool = False


def decide(ending: Ending) -> Decision:
    """What to do with the job now."""
    code = root_cause(ending.exit_code, ending.failures, agreed=ending.agreed)
    view = ending.scheduler
    if ending.succeeded:
        # A job that finished after it was told to end still counts as failed for its dependents:
        # it runs once more, finds its result and ends at once, with success.
        ask = not (view.running or view.requeued) and (view.preempted or view.time_limit)
        ask = ask and ending.cancelled_by is None
        return Decision(action="finished", reason="the result is there", exit_code=0, ask=ask)
    if ending.cancelled_by is not None:
        return _stop(code, f"cancelled by {ending.cancelled_by}")
    if ending.interrupted:
        return _stop(code, "interrupted")
    if view.requeued:
        reason = "the scheduler has requeued it (preemption, node failure or by hand)"
        return Decision(action="requeue", reason=reason, exit_code=code)
    if not (view.running or view.preempted or view.time_limit):
        return _stop(code, "cancelled through the scheduler")
    if code == ExitCode.SUCCESS:
        return _stop(_WITHOUT_RESULT, "all ranks ended without an error, but there is no result")
    if code in _STOPPING:
        return _stop(code, _STOPPING[code], self_ended=True)
    if view.preempted:
        return Decision(action="requeue", reason="preempted", exit_code=code, ask=True)
    return _retry(ending, code)


def _retry(ending: Ending, code: int) -> Decision:
    """Continue after an end of the job's own making, unless it leads nowhere."""
    if ending.scheduler.time_limit:
        reason = "the time limit came before all ranks had saved"
    elif code in _RETRIED:
        reason = _RETRIED[code]
    elif code > _FIRST_SIGNAL_CODE:
        reason = f"a rank was killed by signal {code - _FIRST_SIGNAL_CODE}"
    else:
        return _stop(code, f"exit code {code}", self_ended=True)
    stalled = stalled_attempts(ending)
    if stalled >= ending.max_stalled:
        reason = f"{reason}; {stalled} attempts in a row without a new checkpoint"
        return _stop(code, f"{reason} (step {ending.step})", self_ended=True)
    return Decision(action="requeue", reason=reason, exit_code=code, self_ended=True, ask=True)


def _stop(code: int, reason: str, *, self_ended: bool = False) -> Decision:
    return Decision(action="stop", reason=reason, exit_code=code, self_ended=self_ended)


def root_cause(exit_code: int, failures: Sequence[RankFailure], *, agreed: bool = False) -> int:
    """The exit code to decide on: of the first rank that failed by itself, not for want of a peer.

    Without such a record the job's own code stands: a rank killed by a signal leaves none, and the
    others' lost connections are its consequence. Where all had agreed to stop, the first to leave
    makes srun end the others, some of which die of it on their way out: that is no crash.
    """
    consequences = {"communication", "killed"} if agreed else {"communication"}
    causes = [failure for failure in failures if failure.cause not in consequences]
    if causes:
        return min(causes, key=lambda failure: failure.at).exit_code
    if agreed and exit_code != ExitCode.SUCCESS:
        return ExitCode.PREEMPTED
    if exit_code == _SLURM_OUT_OF_MEMORY:
        return ExitCode.OUT_OF_MEMORY
    if failures and exit_code < _FIRST_SIGNAL_CODE:
        return ExitCode.COMMUNICATION
    return exit_code


def stalled_attempts(ending: Ending) -> int:
    """Self-ended attempts of this submission since the committed step last grew, this one included.

    Preemptions and node failures do not count, and do not break the row either.
    """
    now = PastAttempt(submission=ending.submission, step=ending.step, self_ended=True)
    stalled = newest = 0
    for attempt in (*ending.history, now):
        if attempt.step > newest:
            stalled, newest = 0, attempt.step
        elif attempt.self_ended and attempt.submission == ending.submission:
            stalled += 1
    return stalled
