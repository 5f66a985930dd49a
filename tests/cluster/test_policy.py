"""What is done about each cause, which node is blamed, and how many are left out; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.causes import (
    CAUSES,
    FINAL,
    RULES,
    Cause,
    RankFailure,
    Root,
    cause_of_code,
    root_cause,
    rules_of,
)
from cluster.decision import Decision, Ending, Memory, PastAttempt, SchedulerView, decide
from cluster.exclusion import Placement, admit, culprits
from cluster.leaving_out import is_choosy

REQUEUED = SchedulerView(running=False, requeued=True)
DOCUMENT = Path(__file__).parents[2] / "docs" / "retries.md"
NODES = Placement(nodes=("n1", "n2"), world_size=4)

# An ending for each cause, and what becomes of it where the recipe says nothing.
ENDINGS: dict[Cause, tuple[dict[str, Any], str, str]] = {
    "preempted": ({"scheduler": SchedulerView(running=False, preempted=True)}, "requeue", "free"),
    "time_limit": ({"exit_code": 75}, "requeue", "counted"),
    "node_failure": ({"scheduler": replace(REQUEUED, lost_nodes=("n2",))}, "requeue", "free"),
    "device": ({"failures": [(74, "device")]}, "requeue", "counted"),
    "hang": ({"failures": [(73, "hang")]}, "requeue", "counted"),
    "communication": ({"exit_code": 74}, "requeue", "counted"),
    "out_of_memory": ({"failures": [(71, "out_of_memory")]}, "stop", "stop"),
    "out_of_host_memory": ({"failures": [(71, "out_of_host_memory")]}, "stop", "stop"),
    "diverged": ({"exit_code": 72}, "stop", "stop"),
    "configuration": ({"exit_code": 65}, "stop", "stop"),
    "input": ({"exit_code": 66}, "stop", "stop"),
    "user_code": ({"exit_code": 70}, "stop", "stop"),
    "killed": ({"exit_code": 137}, "requeue", "counted"),
    "cancelled": ({"scheduler": SchedulerView(running=False)}, "stop", "stop"),
    "superseded": ({"exit_code": 76}, "stop", "stop"),
    "unknown": ({"exit_code": 3}, "stop", "stop"),
}


def failure(code: int, cause: str, rank: int = 2, **changes: Any) -> RankFailure:
    return RankFailure(rank=rank, exit_code=code, cause=cause, at=1.0, **changes)


def ending(**changes: Any) -> Ending:
    changes["failures"] = tuple(failure(*one) for one in changes.get("failures", ()))
    base = Ending(
        exit_code=137,
        submission=1,
        step=10,
        succeeded=False,
        scheduler=SchedulerView(),
        placement=NODES,
    )
    return replace(base, **changes)


def decided(cause: Cause, said: Mapping[Cause, Any] | None = None, **changes: Any) -> Decision:
    about = {**ENDINGS[cause][0], **changes}
    return decide(ending(**about, rules=rules_of({"causes": said or {}})))


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_a_policy_that_the_decision_follows(cause: Cause) -> None:
    _, action, policy = ENDINGS[cause]
    decision = decided(cause)
    assert (decision.cause, decision.action, decision.policy) == (cause, action, policy)
    assert RULES[cause].words and decision.reason
    assert decision.ask is (action == "requeue" and cause != "node_failure")


@pytest.mark.parametrize("cause", [cause for cause in CAUSES if cause not in FINAL])
@pytest.mark.parametrize("retry", ["free", "counted", "stop"])
def test_a_recipe_can_say_otherwise_for_each_cause(cause: Cause, retry: str) -> None:
    stalled = tuple(PastAttempt(submission=1, step=10, counted=True) for _ in range(3))
    said = {cause: {"retry": retry, "more_memory": False}}
    assert decided(cause, said).action == ("stop" if retry == "stop" else "requeue")
    in_vain = decided(cause, said, history=stalled)
    assert in_vain.action == ("requeue" if retry == "free" else "stop")
    assert in_vain.policy == retry


@pytest.mark.parametrize("cause", sorted(FINAL))
def test_what_people_said_is_not_up_for_a_policy(cause: Cause) -> None:
    assert rules_of({"causes": {cause: {"retry": "free"}}})[cause] == RULES[cause]


def test_what_a_policy_leaves_out_stays_as_the_table_has_it() -> None:
    said = {"hang": {"retry": "free", "exclude_node": None}, "of_another_version": {}}
    assert rules_of({"causes": said})["hang"] == replace(RULES["hang"], retry="free")
    assert rules_of({}) == dict(RULES)


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("retry", ["free", "counted"])
def test_a_cancel_wins_over_every_cause_and_policy(cause: Cause, retry: str) -> None:
    said = {cause: {"retry": retry}}
    decision = decided(cause, said, cancelled_by="ann on login1")
    assert (decision.action, decision.cause, decision.ask) == ("stop", "cancelled", False)
    assert (decision.exclude, decision.mem_gb) == ((), None)


def test_a_requeue_that_the_scheduler_made_is_taken_back_where_the_stage_stops() -> None:
    assert decide(ending(scheduler=REQUEUED, cancelled_by="ann")).withdraw
    said = {"preempted": {"retry": "stop"}}
    assert decide(ending(scheduler=REQUEUED, rules=rules_of({"causes": said}))).withdraw
    assert not decide(ending(scheduler=REQUEUED)).withdraw
    assert not decide(ending(cancelled_by="ann")).withdraw
    assert not decide(ending(scheduler=REQUEUED, cancelled_by="ann", succeeded=True)).withdraw


def test_preemptions_and_node_failures_never_stop_a_stage() -> None:
    stalled = tuple(PastAttempt(submission=1, step=10, counted=True) for _ in range(9))
    free: tuple[Cause, ...] = ("preempted", "node_failure")
    for cause in free:
        assert decided(cause, history=stalled).action == "requeue"
    counted: tuple[Cause, ...] = ("time_limit", "hang", "communication", "device", "killed")
    for cause in counted:
        stopped = decided(cause, history=stalled)
        assert (stopped.action, stopped.policy, stopped.exclude) == ("stop", "counted", ())
        assert "without a new checkpoint (step 10)" in stopped.reason


def test_host_memory_is_raised_twice_where_an_amount_was_asked_for() -> None:
    first = decided("out_of_host_memory", memory=Memory(gb=32))
    assert (first.action, first.policy, first.mem_gb) == ("requeue", "counted", 48.0)
    assert "48 GB a node next" in first.reason
    second = decided("out_of_host_memory", memory=Memory(gb=48, raises=1))
    assert (second.action, second.mem_gb) == ("requeue", 72.0)
    third = decided("out_of_host_memory", memory=Memory(gb=72, raises=2))
    assert (third.action, third.policy, third.mem_gb) == ("stop", "stop", None)
    assert "72 GB a node, after 2 raises" in third.reason


def test_memory_is_not_raised_where_the_recipe_wants_none_of_it() -> None:
    memory = Memory(gb=32)
    again = decided("out_of_host_memory", {"out_of_host_memory": {"more_memory": False}})
    assert (again.action, again.mem_gb) == ("requeue", None)
    said: dict[Cause, Any] = {"out_of_host_memory": {"retry": "stop"}}
    assert decided("out_of_host_memory", said, memory=memory).action == "stop"
    assert decided("out_of_memory", memory=memory).mem_gb is None


@pytest.mark.parametrize("cause", ["hang", "device"])
def test_the_node_of_the_rank_that_failed_is_excluded(cause: Cause) -> None:
    assert decided(cause).exclude == ("n2",)
    assert decided(cause, {cause: {"exclude_node": False}}).exclude == ()
    assert decided("user_code", {"user_code": {"retry": "counted"}}).exclude == ()
    said: dict[str, Any] = {"retry": "counted", "exclude_node": True}
    failed = [(70, "user_code", 1)]
    assert decided("user_code", {"user_code": said}, failures=failed).exclude == ("n1",)


def test_nodes_that_the_scheduler_lost_are_excluded_and_do_not_count() -> None:
    decision = decided("node_failure")
    assert decision.exclude == ("n2",) and not decision.self_ended
    assert "n2 failed" in decision.reason
    lost = SchedulerView(lost_nodes=("n2",))
    for about in ({"exit_code": 137}, {"exit_code": 74}):
        decision = decide(ending(scheduler=lost, **about))
        assert (decision.cause, decision.policy) == ("node_failure", "free")
        assert decision.exclude == ("n2",) and decision.ask
    assert decide(ending(scheduler=lost, failures=[(70, "user_code")])).cause == "user_code"


def lost_peers(*ranks: int, message: str = "") -> list[RankFailure]:
    return [failure(74, "communication", rank, message=message) for rank in ranks]


def blamed(failures: list[RankFailure], placement: Placement = NODES) -> tuple[str, ...]:
    root = root_cause(74, failures)
    return culprits("communication", root, failures, placement)


def test_the_node_that_left_no_word_is_the_one_the_others_lost() -> None:
    assert blamed(lost_peers(0, 1)) == ("n2",)
    assert blamed(lost_peers(2)) == ("n1",)
    assert blamed(lost_peers(0, 1, 3)) == ()
    assert blamed([]) == ()
    three = Placement(nodes=("a", "b", "c"), world_size=3)
    assert blamed(lost_peers(0), three) == ()
    assert blamed(lost_peers(0, 2), three) == ("b",)


def test_a_node_that_falls_silent_while_the_job_is_killed_is_a_lost_peer() -> None:
    """srun reports the signal by which the ranks of that node ended, as if they had been killed."""
    decision = decide(replace(ending(exit_code=137), failures=tuple(lost_peers(0, 1))))
    assert (decision.cause, decision.exclude) == ("communication", ("n2",))
    assert "n2 fell silent" in decision.reason
    watched = [*lost_peers(0, 1), failure(137, "killed", rank=2)]
    assert decide(replace(ending(exit_code=137), failures=tuple(watched))).cause == "killed"
    assert decide(replace(ending(exit_code=137), failures=tuple(lost_peers(0)))).exclude == ("n2",)
    assert decide(ending(exit_code=137)).cause == "killed"


def test_the_node_that_all_others_complain_of_is_blamed() -> None:
    """As NCCL and PyTorch's store name a peer; an address that is no node's name says nothing."""
    to_n2 = "Connection closed by remote peer n2<47861>"
    both = [*lost_peers(0, 1, message=to_n2), *lost_peers(2, 3, message="Broken pipe")]
    assert blamed(both) == ("n2",)
    each_other = [*lost_peers(0, message=to_n2), *lost_peers(2, message="trying (n1, 29500)")]
    assert blamed([*each_other, *lost_peers(1, 3)]) == ()
    assert blamed(lost_peers(0, 1, 2, 3, message="Connect to 10.0.0.4<56849> failed")) == ()
    others = "peer n22.cluster and xn2, n2-ib"
    assert blamed(lost_peers(0, 1, 2, 3, message=others)) == ()


def test_a_rank_is_on_the_node_its_host_names_else_where_its_number_lies() -> None:
    assert NODES.node_of(0, "n2") == "n2"
    assert NODES.node_of(0, "n2.cluster.example") == "n2"
    assert NODES.node_of(3, "another-name") == "n2"
    assert NODES.node_of(1) == "n1"
    assert NODES.node_of(4) is None
    assert replace(NODES, in_blocks=False).node_of(3) is None
    assert replace(NODES, world_size=3).node_of(1) is None
    assert Placement().node_of(0, "n1") is None


def test_without_slurm_no_node_is_blamed() -> None:
    failures = [failure(73, "hang")]
    root = Root(exit_code=73, cause="hang", failure=failures[0])
    assert culprits("hang", root, failures, Placement()) == ()


@pytest.mark.parametrize(
    ("excluded", "by_recipe", "partition", "job", "allowed"),
    [
        ((), (), 40, 2, ("a", "b")),
        (("a",), (), 40, 2, ("b",)),
        ((), (), 4, 1, ("a",)),
        (("x",), (), 4, 1, ()),
        (("x",), ("x",), 4, 1, ("a",)),
        ((), (), 2, 2, ()),
        ((), (), 2, 1, ("a",)),
        (tuple("stuvwxyz"), (), 400, 2, ()),
        (tuple("stuvwxy"), (), 400, 2, ("a",)),
        (tuple("stuvwxyz"), tuple("stuvwxyz"), 400, 2, ("a", "b")),
        (("x", "y"), ("x", "y"), 6, 3, ("a",)),
        ((), (), None, 1, ()),
    ],
)
def test_a_run_leaves_out_a_quarter_of_its_partition_at_most_and_never_what_the_job_needs(
    excluded: tuple[str, ...],
    by_recipe: tuple[str, ...],
    partition: int | None,
    job: int,
    allowed: tuple[str, ...],
) -> None:
    admitted, why = admit(
        ["a", "b"],
        excluded=excluded,
        by_recipe=by_recipe,
        partition_nodes=partition,
        job_nodes=job,
    )
    assert admitted == allowed
    refused = {"a", "b"} - set(allowed) - set(excluded)
    assert bool(why) is bool(refused) and all(node in why for node in refused)


@pytest.mark.parametrize(
    ("code", "cause"), [(65, "configuration"), (75, "time_limit"), (139, "killed"), (1, "unknown")]
)
def test_an_exit_code_alone_tells_a_cause(code: int, cause: Cause) -> None:
    assert cause_of_code(code) == cause


def test_a_cause_that_this_version_does_not_know_is_taken_by_its_exit_code() -> None:
    assert root_cause(137, [failure(72, "of_another_version")]).cause == "diverged"


def test_the_documented_table_is_the_one_that_holds() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (\w+) \| (yes)? ?\|$", DOCUMENT.read_text(), re.M)
    assert [row[0] for row in rows] == list(CAUSES)
    for cause, retry, excluded in rows:
        assert (RULES[cause].retry, RULES[cause].exclude_node) == (retry, bool(excluded))


@pytest.mark.parametrize(
    ("fields", "choosy"),
    [
        ({"Features": "(null)", "ReqNodeList": "(null)", "TresPerNode": "gres:gpu:2"}, False),
        ({"TresPerNode": "gres:gpu:h200:2"}, True),
        ({"Features": "h200&ib"}, True),
    ],
)
def test_a_waiting_job_that_asks_for_a_kind_of_node_keeps_them_all(
    fields: dict[str, str], choosy: bool
) -> None:
    """How many there are of that kind the size of the partition does not tell."""
    assert is_choosy(fields) is choosy
