"""The table of what becomes of a job after an attempt; pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.causes import RankFailure, root_cause
from cluster.decision import Ending, PastAttempt, SchedulerView, decide, stalled_attempts

RUNNING = SchedulerView()
REQUEUED = SchedulerView(running=False, requeued=True)
PREEMPTED = SchedulerView(running=False, preempted=True)
GRACE = SchedulerView(running=True, preempted=True)
LIMIT = SchedulerView(running=False, time_limit=True)
CANCELLED = SchedulerView(running=False)
VIEWS = (RUNNING, REQUEUED, PREEMPTED, GRACE, LIMIT, CANCELLED)


def ending(code: int, view: SchedulerView = RUNNING, **changes: Any) -> Ending:
    base = Ending(exit_code=code, submission=1, step=10, succeeded=False, scheduler=view)
    return replace(base, **changes)


def failure(code: int, cause: str, at: float = 1.0, rank: int = 0) -> RankFailure:
    return RankFailure(rank=rank, exit_code=code, cause=cause, at=at)


def past(step: int, *, counted: bool = True, submission: int = 1) -> PastAttempt:
    return PastAttempt(submission=submission, step=step, counted=counted)


@pytest.mark.parametrize(
    ("code", "view", "action", "counts"),
    [
        (75, RUNNING, "requeue", True),
        (75, GRACE, "requeue", False),
        (75, PREEMPTED, "requeue", False),
        (75, REQUEUED, "requeue", False),
        (75, LIMIT, "requeue", True),
        (75, CANCELLED, "stop", False),
        (73, RUNNING, "requeue", True),
        (74, RUNNING, "requeue", True),
        (137, RUNNING, "requeue", True),
        (139, RUNNING, "requeue", True),
        (143, RUNNING, "requeue", True),
        (137, PREEMPTED, "requeue", False),
        (137, REQUEUED, "requeue", False),
        (137, LIMIT, "requeue", True),
        (137, CANCELLED, "stop", False),
        (74, REQUEUED, "requeue", False),
        (65, RUNNING, "stop", True),
        (66, RUNNING, "stop", True),
        (70, RUNNING, "stop", True),
        (71, RUNNING, "stop", True),
        (72, RUNNING, "stop", True),
        (76, RUNNING, "stop", True),
        (70, PREEMPTED, "stop", True),
        (1, RUNNING, "stop", True),
        (2, RUNNING, "stop", True),
        (127, RUNNING, "stop", True),
        (0, RUNNING, "stop", False),
    ],
)
def test_each_exit_code_and_scheduler_state_has_one_decision(
    code: int, view: SchedulerView, action: str, counts: bool
) -> None:
    decision = decide(ending(code, view))
    assert (decision.action, decision.self_ended) == (action, counts)
    assert decision.reason


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("code", [0, 1, 70, 75, 137])
def test_a_valid_result_is_success_whatever_else_happened(code: int, view: SchedulerView) -> None:
    decision = decide(ending(code, view, succeeded=True, cancelled_by="ann"))
    assert (decision.action, decision.exit_code, decision.ask) == ("finished", 0, False)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("code", [0, 65, 73, 74, 75, 137, 143])
def test_what_a_person_cancelled_is_never_continued(code: int, view: SchedulerView) -> None:
    by_us = decide(ending(code, view, cancelled_by="ann on login1"))
    assert by_us.action == "stop" and not by_us.ask
    assert "ann on login1" in by_us.reason
    by_ctrl_c = decide(ending(code, view, interrupted=True))
    assert by_ctrl_c.action == "stop" and not by_ctrl_c.ask


@pytest.mark.parametrize("code", [73, 74, 75, 137])
def test_the_scheduler_is_asked_only_where_it_has_not_acted(code: int) -> None:
    asked = {view: decide(ending(code, view)).ask for view in VIEWS}
    assert asked == {
        RUNNING: True,
        GRACE: True,
        PREEMPTED: True,
        LIMIT: True,
        REQUEUED: False,
        CANCELLED: False,
    }


def test_three_attempts_without_a_new_checkpoint_stop_the_stage() -> None:
    history = (past(10), past(10), past(10))
    assert decide(ending(75, history=history[:2])).action == "requeue"
    decision = decide(ending(75, history=history))
    assert decision.action == "stop"
    assert "3 attempts in a row without a new checkpoint (step 10)" in decision.reason


def test_three_crashes_before_the_first_checkpoint_stop_the_stage() -> None:
    assert decide(ending(139, step=0, history=(past(0),))).action == "requeue"
    assert decide(ending(139, step=0, history=(past(0), past(0)))).action == "stop"


def test_a_new_checkpoint_starts_the_count_again() -> None:
    history = (past(5), past(5), past(5), past(10))
    assert stalled_attempts(ending(137, history=history)) == 1
    assert decide(ending(137, history=history)).action == "requeue"


def test_preemptions_neither_count_nor_break_the_row() -> None:
    never = tuple(past(10, counted=False) for _ in range(50))
    assert decide(ending(75, PREEMPTED, history=never)).action == "requeue"
    assert decide(ending(75, REQUEUED, history=never)).action == "requeue"
    assert stalled_attempts(ending(75, history=never)) == 1
    mixed = (past(10), past(10), *never, past(10), *never)
    assert decide(ending(75, history=mixed)).action == "stop"


def test_a_new_submission_starts_the_count_again() -> None:
    history = tuple(past(10, submission=1) for _ in range(5))
    assert stalled_attempts(ending(75, submission=2, history=history)) == 1


def test_a_stage_that_was_started_from_the_beginning_gets_on_though_it_had_been_further() -> None:
    history = (past(1000), *(past(step, submission=2) for step in (10, 20, 30, 40)))
    assert stalled_attempts(ending(75, submission=2, step=50, history=history)) == 0
    assert stalled_attempts(ending(75, submission=2, step=40, history=history)) == 1


def test_the_first_failure_that_is_not_for_want_of_a_peer_is_the_root_cause() -> None:
    failures = (
        failure(74, "communication", at=1.0, rank=0),
        failure(72, "diverged", at=3.0, rank=1),
        failure(70, "user_code", at=2.0, rank=2),
    )
    assert root_cause(137, failures).exit_code == 70
    assert decide(ending(74, failures=failures)).action == "stop"


def test_lost_peers_of_a_killed_rank_do_not_hide_the_kill() -> None:
    failures = (failure(74, "communication"),)
    assert root_cause(137, failures).exit_code == 137
    assert root_cause(1, failures).exit_code == 74
    assert decide(ending(137, failures=failures)).action == "requeue"


def test_where_every_rank_lost_its_peers_srun_killed_none_of_them_for_anything_else() -> None:
    failures = (failure(74, "communication"), failure(74, "communication", rank=1))
    assert root_cause(137, failures, ranks=2).cause == "communication"
    assert root_cause(137, failures, ranks=3).cause == "killed"


def test_a_scheduler_that_does_not_answer_has_cancelled_nothing() -> None:
    silent = decide(ending(75, scheduler=SchedulerView(answered=False)))
    assert (silent.action, silent.cause, silent.ask) == ("requeue", "time_limit", True)


def test_success_without_a_result_does_not_end_as_success() -> None:
    decision = decide(ending(0))
    assert decision.exit_code == 1
    assert "there is no result" in decision.reason


def test_memory_that_slurm_ended_the_ranks_for_stops_the_stage() -> None:
    assert root_cause(253, ()).exit_code == 71
    lost = failure(74, "communication")
    assert decide(ending(253, failures=(lost,))).action == "stop"
    killed = failure(71, "out_of_host_memory", at=2.0, rank=1)
    decision = decide(ending(137, failures=(failure(74, "communication", at=1.0), killed)))
    assert (decision.action, decision.exit_code) == ("stop", 71)


def test_a_hang_that_a_watchdog_recorded_counts_not_the_signal_that_ended_the_rank() -> None:
    hang = failure(73, "hang", at=1.0, rank=2)
    decision = decide(ending(137, failures=(hang, failure(74, "communication", at=2.0))))
    assert (decision.action, decision.exit_code, decision.self_ended) == ("requeue", 73, True)
    history = (past(10), past(10), past(10))
    assert decide(ending(137, failures=(hang,), history=history)).action == "stop"


def test_ranks_killed_on_their_way_out_of_an_agreed_stop_are_no_crash() -> None:
    killed = failure(137, "killed")
    assert root_cause(137, (killed,), agreed=True).exit_code == 75
    assert root_cause(137, (killed,)).exit_code == 137
