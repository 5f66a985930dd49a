"""How long to wait between two saves; pure.

A save costs training time (the stall) and storage time (the write behind its back). Saves come as
often as both allow, and at the latest when as much work would be lost as the recipe admits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STALL_SHARE = 0.01  # of the time may go into standing still for saves
WRITE_SHARE = 0.1  # of the time may the storage of all be busy with ours
SHORTEST_SECONDS = 60.0  # work of a minute is lost cheaply
_REMEMBERED = 5


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one save took: seconds in which training stood still, and until it was committed."""

    stall_seconds: float
    write_seconds: float


def seconds_between(minutes: float, costs: Sequence[Cost]) -> float:
    """Seconds from one snapshot to the next.

    Args:
        minutes: of work that may be lost. What counts is committed saves, so the write, which a
            kill would waste as well, is taken off; half of it remains in any case.
        costs: of the saves so far, oldest first; the dearest of the last five counts. Without any,
            the first save comes early and tells.
    """
    recent = costs[-_REMEMBERED:]
    stall = max((cost.stall_seconds for cost in recent), default=0.0)
    write = max((cost.write_seconds for cost in recent), default=0.0)
    longest = max(60.0 * minutes - write, 30.0 * minutes)
    return min(longest, max(SHORTEST_SECONDS, stall / STALL_SHARE, write / WRITE_SHARE))
