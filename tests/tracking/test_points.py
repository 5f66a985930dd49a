"""Whose points are delivered, and when."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.points import (
    Extents,
    Point,
    Selection,
    Shipped,
    came_before,
    mark,
    metric_name,
    points_of,
    select,
)


def _points(attempt: str, steps: Sequence[int], metric: str = "loss") -> list[Point]:
    return [
        Point(metric=metric, value=step, step=step, time_ms=step, attempt=attempt) for step in steps
    ]


def _select(points: Sequence[Point], current: str, **limits: object) -> Selection:
    extents = Extents()
    for point in points:
        extents.add(point)
    shipped: Shipped = limits.pop("shipped", {})  # type: ignore[assignment]
    return select(points, extents, shipped, current=current, **limits)  # type: ignore[arg-type]


def _told(points: Sequence[Point]) -> list[tuple[str, int]]:
    return [(point.attempt, point.step) for point in points]


def test_points_after_the_last_checkpoint_wait_because_they_may_be_rolled_back() -> None:
    selection = _select(_points("s001r000", range(10)), "s001r000", committed=6)
    assert _told(selection.ship) == [("s001r000", step) for step in range(7)]
    assert _told(selection.keep) == [("s001r000", step) for step in (7, 8, 9)]


def test_without_checkpoints_every_point_is_delivered_at_once() -> None:
    selection = _select(_points("s001r000", range(10)), "s001r000")
    assert len(selection.ship) == 10


def test_a_resumed_attempt_replaces_the_steps_it_repeats() -> None:
    points = _points("s001r000", range(10)) + _points("s001r001", range(7, 10))
    selection = _select(points, "s001r001", committed=9, resumed_at=6)
    first = [("s001r000", step) for step in range(7)]
    assert _told(selection.ship) == first + [("s001r001", step) for step in (7, 8, 9)]
    assert selection.keep == ()


def test_points_beyond_what_a_resumed_attempt_has_reached_wait_for_it() -> None:
    points = _points("s001r000", range(10)) + _points("s001r001", [7])
    selection = _select(points, "s001r001", committed=7, resumed_at=6)
    assert ("s001r001", 7) in _told(selection.ship)
    assert _told(selection.keep) == [("s001r000", 8), ("s001r000", 9)]


def test_what_a_finally_failed_stage_did_is_delivered_the_last_attempt_winning() -> None:
    points = _points("s001r000", range(10)) + _points("s001r001", [7, 8])
    selection = _select(points, "s001r001", committed=6, resumed_at=6, final=True)
    expected = dict.fromkeys(range(10), "s001r000") | {7: "s001r001", 8: "s001r001"}
    assert _told(selection.ship) == [(expected[step], step) for step in range(10)]


def test_a_new_checkpoint_does_not_release_the_points_of_an_older_attempt() -> None:
    points = _points("s001r000", range(10))  # the new attempt has not logged anything yet
    selection = _select(points, "s001r001", committed=8, resumed_at=6)
    assert _told(selection.ship) == [("s001r000", step) for step in range(7)]


def test_a_step_that_was_delivered_is_not_delivered_again_by_a_later_attempt() -> None:
    shipped: Shipped = {}
    mark(shipped, _points("s001r000", range(5)))
    # The checkpoint of step 4 was damaged, so the new attempt goes on from step 2.
    selection = _select(_points("s001r001", range(3, 8)), "s001r001", shipped=shipped)
    assert _told(selection.ship) == [("s001r001", step) for step in (5, 6, 7)]


def test_another_metric_at_the_same_steps_is_not_replaced() -> None:
    points = _points("s001r000", range(5), "warmup/loss") + _points("s001r001", range(5))
    selection = _select(points, "s001r001", final=True)
    assert len(selection.ship) == 10


def test_attempts_are_ordered_by_number() -> None:
    assert came_before("s001r999", "s001r1000")
    assert came_before("s009r003", "s010r000")
    assert not came_before("s001r001", "s001r001")


def test_names_that_mlflow_refuses_are_rewritten() -> None:
    assert metric_name("R@10") == "R_at_10"
    assert metric_name("train/loss (mean)") == "train/loss _mean_"
    assert len(metric_name("x" * 400)) == 250


def test_values_that_are_no_numbers_are_passed_over_and_nan_is_kept() -> None:
    metrics = {"loss": math.nan, "note": "hello", "none": None, "acc": 1}
    line = {"step": 3, "time": 2.5, "attempt": "s001r000", "metrics": metrics}
    points = points_of(7, line)
    assert [point.metric for point in points] == ["acc", "loss"]
    assert math.isnan(points[1].value)
    assert points[0].time_ms == 2500
    assert points[0].start == 7


@given(
    lives=st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 4), st.booleans()), min_size=1, max_size=6
    ),
    visits=st.integers(1, 5),
)
def test_delivery_in_pieces_gives_each_step_once_as_the_last_attempt_that_reached_it(
    lives: list[tuple[int, int, bool]], visits: int
) -> None:
    """Attempts run some steps, commit every few and are killed; the outbox looks now and then."""
    shipped: Shipped = {}
    delivered: list[Point] = []
    pending: tuple[Point, ...] = ()
    extents, everything, committed = Extents(), list[Point](), -1
    for number, (length, every, looks) in enumerate(lives):
        attempt, resumed_at = f"s001r{number:03d}", committed
        for step in range(committed + 1, committed + 1 + length):
            (point,) = _points(attempt, [step])
            everything.append(point)
            pending = (*pending, point)
            extents.add(point)
            committed = step if step % every == 0 else committed
            if looks and step % visits == 0:
                chosen = select(
                    pending,
                    extents,
                    shipped,
                    current=attempt,
                    committed=committed,
                    resumed_at=resumed_at,
                )
                pending = chosen.keep
                mark(shipped, chosen.ship)
                delivered.extend(chosen.ship)
    chosen = select(pending, extents, shipped, current=everything[-1].attempt, final=True)
    delivered.extend(chosen.ship)
    winners = {point.step: point.attempt for point in everything}  # later attempts come later
    assert sorted(_told(delivered), key=lambda one: one[1]) == [
        (attempt, step) for step, attempt in sorted(winners.items())
    ]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**6), odds=st.sampled_from([(0.2, 0.0), (0.0, 0.3)]))
def test_a_database_made_anew_gets_exactly_the_points_that_the_lost_one_had(
    seed: int, odds: tuple[float, float]
) -> None:
    """Attempts die, go on from the newest or an older checkpoint, or end for good and are resumed.

    `odds` are of an older checkpoint and of an end for good; see `points._stood` on both at once.
    """
    dice = random.Random(seed)
    extents, shipped, pending = Extents(), Shipped(), list[Point]()
    every, had = list[Point](), list[Point]()
    committed, first, final, name = -1.0, 0, False, ""
    for number in range(dice.randint(1, 5)):
        name = f"s001r{number:03d}"
        resumed_at, last = committed, first + dice.randint(0, 12)
        for step in range(first, last + 1):
            point = _replayed(name, step, number)
            extents.add(point)
            pending.append(point)
            every.append(point)
            if dice.random() < 0.2:
                committed = step
            if dice.random() < 0.3:
                sent = select(
                    pending,
                    extents,
                    shipped,
                    current=name,
                    committed=committed,
                    resumed_at=resumed_at,
                )
                mark(shipped, sent.ship)
                had.extend(sent.ship)
                pending = list(sent.keep)
        final = dice.random() < odds[1]
        sent = select(pending, extents, shipped, current=name, committed=committed, final=final)
        mark(shipped, sent.ship)
        had.extend(sent.ship)
        pending = list(sent.keep)
        first = (
            dice.randint(0, int(committed) + 1) if dice.random() < odds[0] else int(committed) + 1
        )
    again = select(
        every, extents, Shipped(), current=name, committed=committed, final=final, earlier=shipped
    )
    assert {(one.attempt, one.step) for one in again.ship} == {
        (one.attempt, one.step) for one in had
    }


def _replayed(attempt: str, step: int, number: int) -> Point:
    return Point(metric="loss", value=1.0, step=step, time_ms=number * 100 + step, attempt=attempt)
