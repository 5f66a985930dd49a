"""Pure: what becomes of a job after one attempt: finished, requeued, or stopped, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from cluster.causes import (
    FIRST_SIGNAL_CODE,
    RULES,
    Cause,
    RankFailure,
    Retry,
    Root,
    Rule,
    root_cause,
)
from cluster.contract import ExitCode
from cluster.exclusion import Placement, culprits, silent_node

MAX_STALLED_ATTEMPTS = 3
MEMORY_FACTOR = 1.5
MAX_MEMORY_RAISES = 2  # to 2.25 times what was asked for
# What a stage did itself would come again, whatever was done to its job at the same time.
_OWN_DOING: frozenset[Cause] = frozenset(
    {
        "out_of_memory",
        "out_of_host_memory",
        "diverged",
        "configuration",
        "input",
        "user_code",
        "superseded",
        "cancelled",
    }
)
_WITHOUT_RESULT = 1


@dataclass(frozen=True, kw_only=True)
class SchedulerView:
    """What the scheduler says while the batch script still runs.

    Attributes:
        answered: it said anything; else the job counts as running.
        running: the job is simply running; nobody has acted on it.
        requeued: the scheduler has already put it back into the queue by itself.
        preempted: it was preempted without being requeued (PreemptMode=CANCEL).
        time_limit: it reached its time limit.
        node_failed: SLURM has ended it for a lost node, without requeueing it.
        lost_nodes: nodes of the job that are down or do not answer.
    """

    answered: bool = True
    running: bool = True
    requeued: bool = False
    preempted: bool = False
    time_limit: bool = False
    node_failed: bool = False
    lost_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PastAttempt:
    """An earlier attempt with a record: the committed step it left, and whether it counts."""

    submission: int
    step: int
    counted: bool


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The host's memory a node, in GB, that an attempt had, and how often it was raised for it."""

    gb: float
    raises: int = 0


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
        rules: what is done about each cause.
        placement: where the ranks were.
        memory: None where the job asked for no amount, or nobody can give it more.
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
    rules: Mapping[Cause, Rule] = field(default_factory=lambda: RULES)
    placement: Placement = field(default_factory=Placement)
    memory: Memory | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens now.

    Attributes:
        exit_code: the root cause's.
        self_ended: whether the attempt ended of its own making.
        ask: whether the scheduler has to be asked for a requeue.
        withdraw: whether a requeue that the scheduler made by itself has to be taken back.
        cause: why the attempt ended; None where it finished.
        policy: what the table says about that cause; `counted` attempts lead to giving up.
        exclude: nodes that it was lost to and that another attempt should not get.
        mem_gb: memory a node for another attempt; None leaves it.
    """

    action: Literal["finished", "requeue", "stop"]
    reason: str
    exit_code: int
    self_ended: bool = False
    ask: bool = False
    withdraw: bool = False
    cause: Cause | None = None
    policy: Retry | None = None
    exclude: tuple[str, ...] = ()
    mem_gb: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Why an attempt ended, in the table's terms and in words."""

    cause: Cause
    exit_code: int
    reason: str
    self_ended: bool = True


def decide(ending: Ending) -> Decision:
    """What to do with the job now."""
    view = ending.scheduler
    if ending.succeeded:
        # A job that finished after it was told to end still counts as failed for its dependents:
        # it runs once more, finds its result and ends at once, with success.
        ask = not (view.running or view.requeued) and (view.preempted or view.time_limit)
        ask = ask and ending.cancelled_by is None
        return Decision(action="finished", reason="the result is there", exit_code=0, ask=ask)
    ranks = ending.placement.world_size
    root = root_cause(ending.exit_code, ending.failures, agreed=ending.agreed, ranks=ranks)
    found = _by_a_person(ending, root) or _by_the_scheduler(view, root) or _by_itself(ending, root)
    decision = _apply(ending.rules[found.cause], found, ending)
    if decision.action == "stop":
        return replace(decision, withdraw=view.requeued)
    if ending.rules[found.cause].exclude_node:
        blamed = culprits(found.cause, root, ending.failures, ending.placement, view.lost_nodes)
        decision = replace(decision, exclude=blamed)
    return replace(decision, ask=not view.requeued)


def _by_a_person(ending: Ending, root: Root) -> _Found | None:
    """A cancel wins over whatever else happened, also over a requeue that is made already."""
    who = ending.cancelled_by
    if who is None and not ending.interrupted:
        return None
    reason = "interrupted" if who is None else f"cancelled by {who}"
    return _Found(cause="cancelled", exit_code=root.exit_code, reason=reason, self_ended=False)


def _by_the_scheduler(view: SchedulerView, root: Root) -> _Found | None:
    """What the scheduler did to the job; where it killed all of it, no rank could say a thing."""
    if view.requeued and view.lost_nodes:
        cause: Cause = "node_failure"
        reason = f"{', '.join(view.lost_nodes)} failed, and the scheduler has requeued it"
    elif view.requeued:
        cause = "preempted"
        reason = "the scheduler has requeued it (preemption, node failure or by hand)"
    elif view.node_failed:
        cause, reason = (
            "node_failure",
            f"{', '.join(view.lost_nodes) or 'a node of the job'} failed",
        )
    elif not (view.running or view.preempted or view.time_limit):
        cause, reason = "cancelled", "cancelled through the scheduler"
    elif view.preempted and root.cause not in _OWN_DOING and root.exit_code:
        cause, reason = "preempted", "preempted"
    else:
        return None
    return _Found(cause=cause, exit_code=root.exit_code, reason=reason, self_ended=False)


def _by_itself(ending: Ending, root: Root) -> _Found:
    """The end of a job on which nobody acted, or whose time was over."""
    view, code, cause = ending.scheduler, root.exit_code, root.cause
    if code == ExitCode.SUCCESS:
        reason = "all ranks ended without an error, but there is no result"
        return _Found(cause="unknown", exit_code=_WITHOUT_RESULT, reason=reason, self_ended=False)
    if view.time_limit and cause not in _OWN_DOING:
        reason = "the time limit came before all ranks had saved"
        return _Found(cause="time_limit", exit_code=code, reason=reason)
    if view.lost_nodes and cause in ("communication", "killed"):
        reason = f"{', '.join(view.lost_nodes)} failed"
        return _Found(cause="node_failure", exit_code=code, reason=reason, self_ended=False)
    reason = ending.rules[cause].words + _where(root, ending.placement)
    # The watchdog of a rank that is killed records it; where nobody on a node could, it is gone.
    silent = silent_node(ending.failures, ending.placement) if root.failure is None else None
    if cause == "killed" and silent is not None:
        cause, reason = "communication", f"{silent} fell silent, and the others lost it"
    elif cause == "killed" and code > FIRST_SIGNAL_CODE:
        signal = f" by signal {code - FIRST_SIGNAL_CODE}"
        reason = ending.rules[cause].words + signal + _where(root, ending.placement)
    elif cause == "unknown":
        reason = f"exit code {code}"
    return _Found(cause=cause, exit_code=code, reason=reason, self_ended=cause != "cancelled")


def _where(root: Root, placement: Placement) -> str:
    if root.failure is None:
        return ""
    rank, host = root.failure.rank, root.failure.host
    place = placement.node_of(rank, host) or host
    return f" (rank {rank} on {place})" if place else f" (rank {rank})"


def _apply(rule: Rule, found: _Found, ending: Ending) -> Decision:
    """What the table says, unless it leads nowhere."""
    decision = Decision(
        action="stop",
        reason=found.reason,
        exit_code=found.exit_code,
        self_ended=found.self_ended,
        cause=found.cause,
        policy=rule.retry,
    )
    if rule.retry == "stop":
        return decision
    if rule.more_memory:
        memory = _raised(ending.memory)
        if memory is None:
            return replace(decision, policy="stop", reason=_no_more(decision.reason, ending))
        reason = f"{decision.reason}; {memory:g} GB a node next"
        decision = replace(decision, mem_gb=memory, reason=reason)
    stalled = stalled_attempts(ending)
    if rule.retry == "counted" and stalled >= ending.max_stalled:
        reason = f"{found.reason}; {stalled} attempts in a row without a new checkpoint"
        return replace(decision, reason=f"{reason} (step {ending.step})", mem_gb=None)
    return replace(decision, action="requeue")


def _raised(memory: Memory | None) -> float | None:
    if memory is None or memory.raises >= MAX_MEMORY_RAISES:
        return None
    return round(memory.gb * MEMORY_FACTOR, 1)


def _no_more(reason: str, ending: Ending) -> str:
    if ending.memory is None:
        return reason
    return f"{reason} with {ending.memory.gb:g} GB a node, after {ending.memory.raises} raises"


def stalled_attempts(ending: Ending) -> int:
    """Counted attempts of this submission since the committed step last grew, this one included.

    Preemptions and node failures do not count, and do not break the row either.
    """
    now = PastAttempt(submission=ending.submission, step=ending.step, counted=True)
    stalled = newest = submission = 0
    for attempt in (*ending.history, now):
        if attempt.submission != submission:
            # In between a person may have started the stage from the beginning (`retry --clear`).
            submission, newest = attempt.submission, min(newest, attempt.step)
        if attempt.step > newest:
            stalled, newest = 0, attempt.step
        elif attempt.counted and attempt.submission == ending.submission:
            stalled += 1
    return stalled
