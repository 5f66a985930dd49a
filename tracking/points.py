"""Which metric points may be delivered now, and whose count where attempts overlap."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_\-. :/]")
_MAX_NAME = 250  # MLflow refuses longer keys

Shipped = dict[str, dict[str, int]]
"""Attempt id -> metric -> highest step delivered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One value of one metric; `start` is the byte offset of its line."""

    metric: str
    value: float
    step: int
    time_ms: int
    attempt: str
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Points to deliver now, in order, and points to look at again; the rest is settled."""

    ship: tuple[Point, ...]
    keep: tuple[Point, ...]


@dataclass(kw_only=True)
class _Extent:
    """Steps that one attempt has logged."""

    first: int
    last: int

    def add(self, step: int) -> None:
        self.first, self.last = min(self.first, step), max(self.last, step)


@dataclass(kw_only=True)
class Extents:
    """What steps each attempt has reached, over all metrics and by metric."""

    attempts: dict[str, _Extent] = field(default_factory=dict)
    metrics: dict[tuple[str, str], _Extent] = field(default_factory=dict)

    def add(self, point: Point) -> None:
        """Take one point into account."""
        new = _Extent(first=point.step, last=point.step)
        self.attempts.setdefault(point.attempt, new).add(point.step)
        new = _Extent(first=point.step, last=point.step)
        self.metrics.setdefault((point.attempt, point.metric), new).add(point.step)

    def later(self, attempt: str) -> list[str]:
        """Attempts that came after this one and have logged something."""
        return [name for name in self.attempts if came_before(attempt, name)]


def attempt_order(attempt: str) -> tuple[int, ...]:
    """Orders attempt ids, `s<submission>r<restart>`, also beyond three digits."""
    return tuple(int(number) for number in re.findall(r"\d+", attempt))


def came_before(first: str, second: str) -> bool:
    """Whether one attempt is older than another."""
    return attempt_order(first) < attempt_order(second)


def metric_name(name: str) -> str:
    """The name under which MLflow takes a metric: `R@10` becomes `R_at_10`, other signs `_`."""
    return _NOT_ALLOWED.sub("_", name.replace("@", "_at_"))[:_MAX_NAME]


def points_of(start: int, line: Mapping[str, Any]) -> list[Point]:
    """The points of one line of metrics.jsonl; a value that is not a number is passed over."""
    points = []
    for name, value in sorted(line.get("metrics", {}).items()):
        if not isinstance(value, int | float):
            continue
        points.append(
            Point(
                metric=metric_name(name),
                value=float(value),
                step=int(line["step"]),
                time_ms=round(float(line["time"]) * 1000),
                attempt=str(line["attempt"]),
                start=start,
            )
        )
    return points


def select(
    pending: Sequence[Point],
    extents: Extents,
    shipped: Shipped,
    *,
    current: str,
    committed: float = math.inf,
    resumed_at: float = math.inf,
    final: bool = False,
    earlier: Shipped | None = None,
) -> Selection:
    """Sort pending points into those to deliver, those to keep and (the rest) those superseded.

    An attempt that goes on from a checkpoint repeats steps: from its first step to its last its own
    points count and older ones are dropped. Older points beyond its last step wait, because it may
    still get there; if the stage ends first (`final`), they are delivered. What an older attempt
    has delivered cannot be taken back from MLflow, so a step is never delivered a second time.

    Args:
        pending: points in the order of the file.
        extents: the steps reached by every attempt, from the whole file.
        shipped: what was delivered before.
        current: the newest attempt.
        committed: the last step of the newest checkpoint; later steps may still be rolled back.
        resumed_at: the same when the current attempt started, the limit for older attempts.
        final: the stage will not go on, so nothing will be rolled back.
        earlier: what a database had that is gone and is made anew: the same points are chosen.
    """
    ship, keep = [], []
    for point in pending:
        verdict = _verdict(point, extents, shipped, earlier or {})
        limit = committed if point.attempt == current else min(committed, resumed_at)
        if verdict == "drop":
            continue
        if final or verdict == "stands" or (verdict == "ship" and point.step <= limit):
            ship.append(point)
        else:
            keep.append(point)
    if final:
        ship.sort(key=lambda point: (point.step, point.time_ms))
    return Selection(ship=tuple(ship), keep=tuple(keep))


def _verdict(point: Point, extents: Extents, shipped: Shipped, earlier: Shipped) -> str:
    metric, step, mine = point.metric, point.step, point.attempt
    for attempt in {*shipped, *earlier}:
        if came_before(attempt, mine) and (
            _mark(shipped, attempt, metric) >= step
            or (_mark(earlier, attempt, metric) >= step and _stood(earlier, attempt, mine, metric))
        ):
            return "drop"
    known = _mark(earlier, mine, metric) >= step
    verdict = "stands" if known else "ship"
    for attempt in extents.later(mine):
        extent = extents.metrics.get((attempt, metric))
        covered = extent is not None and extent.first <= step <= extent.last
        if covered and not (known and _stood(earlier, mine, attempt, metric)):
            return "drop"
        if not known and step >= extents.attempts[attempt].first:
            verdict = "wait"
    return verdict


def _mark(shipped: Shipped, attempt: str, metric: str) -> int:
    return shipped.get(attempt, {}).get(metric, -1)


def _stood(earlier: Shipped, older: str, newer: str, metric: str) -> bool:
    """Whether the older attempt's points were delivered before the newer one came over them.

    The newer one then delivered only steps beyond them. Had it come first, the older one's mark
    would be that of its tail, delivered when the stage had ended: beyond all of the newer one's.
    One mark cannot tell both apart where a stage went back behind a checkpoint and also ended with
    such a tail; a step may then be taken from the other of the two attempts.
    """
    mark, limit = _mark(earlier, newer, metric), _mark(earlier, older, metric)
    return limit >= 0 and (mark < 0 or mark > limit)


def mark(shipped: Shipped, points: Iterable[Point]) -> None:
    """Note points as delivered."""
    for point in points:
        marks = shipped.setdefault(point.attempt, {})
        marks[point.metric] = max(marks.get(point.metric, -1), point.step)
