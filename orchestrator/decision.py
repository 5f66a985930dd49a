"""The one table that turns what files and scheduler say of a stage into its status; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from cluster.contract import Phase

Last = Literal["none", "started", "preempted", "failed"]


class Status(StrEnum):
    """What a stage is doing, in the words that `status` prints."""

    PLANNED = "planned"
    WAITING = "waiting"
    RUNNING = "running"
    REQUEUED = "requeued"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    BLOCKED = "blocked"
    LOST = "lost"
    CANCELLED = "cancelled"


ACTIVE = frozenset({Status.WAITING, Status.RUNNING, Status.REQUEUED})
STOPS_DEPENDENTS = frozenset({Status.FAILED, Status.CANCELLED, Status.BLOCKED, Status.LOST})


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that decides a stage's status.

    `last` is how the newest attempt of the newest submission stands; `stopped` whether it ended of
    its own making and the epilogue decided against another one (what a person or the scheduler
    stopped is not a failure); `phase` is None where the scheduler could not be asked.
    """

    result: bool = False
    cancelled: bool = False
    submitted: bool = False
    last: Last = "none"
    stopped: bool = False
    phase: Phase | None = Phase.GONE
    never_starts: bool = False


_WORST_FIRST = (Status.FAILED, Status.CANCELLED, Status.LOST, Status.BLOCKED, Status.PLANNED)


def overall(statuses: Iterable[Status]) -> Status:
    """Several stages as one: what is still going on, else the worst that came out."""
    found = set(statuses)
    if found & {Status.RUNNING, Status.REQUEUED}:
        return Status.RUNNING
    if found & ACTIVE:
        return Status.WAITING
    return next((status for status in _WORST_FIRST if status in found), Status.SUCCEEDED)


_TABLE: Mapping[tuple[Last, Phase | None], Status] = {
    ("none", Phase.PENDING): Status.WAITING,
    ("none", Phase.RUNNING): Status.RUNNING,
    ("none", Phase.GONE): Status.LOST,
    ("none", None): Status.WAITING,
    ("started", Phase.PENDING): Status.REQUEUED,
    ("started", Phase.RUNNING): Status.RUNNING,
    ("started", Phase.GONE): Status.LOST,
    ("started", None): Status.RUNNING,
    ("preempted", Phase.PENDING): Status.REQUEUED,
    ("preempted", Phase.RUNNING): Status.RUNNING,
    ("preempted", Phase.GONE): Status.LOST,
    ("preempted", None): Status.REQUEUED,
    ("failed", Phase.PENDING): Status.REQUEUED,
    ("failed", Phase.RUNNING): Status.REQUEUED,
    ("failed", Phase.GONE): Status.FAILED,
    ("failed", None): Status.FAILED,
}


def decide(facts: Facts) -> Status:
    """The decision table, for one stage by itself (see `blocked_by` for its upstream)."""
    if facts.result:
        return Status.SUCCEEDED
    if facts.cancelled and facts.phase not in (Phase.PENDING, Phase.RUNNING):
        return Status.CANCELLED
    if not facts.submitted and facts.last == "none":
        return Status.PLANNED
    if facts.stopped:
        return Status.FAILED
    if facts.never_starts and facts.phase is not Phase.RUNNING and facts.last == "none":
        return Status.BLOCKED
    return _TABLE[facts.last, facts.phase]


def blocked_by(status: Status, last: Last, upstream: Mapping[str, Status]) -> str | None:
    """The upstream stage that keeps one that never started from starting; None if none does."""
    if last != "none" or status not in (
        Status.PLANNED,
        Status.WAITING,
        Status.BLOCKED,
        Status.LOST,
    ):
        return None
    return next((name for name, of in upstream.items() if of in STOPS_DEPENDENTS), None)
