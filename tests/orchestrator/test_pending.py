"""Why a job waits, in words, for the reasons that people meet."""

from __future__ import annotations

import pytest

from orchestrator.pending import hopeless, what_to_change, why_pending

NOW = 1_795_176_000.0


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "other jobs come first (Priority)"),
        ("Resources", "waits for free nodes (Resources)"),
        ("QOSMaxJobsPerUserLimit", "you have as much running as the QOS allows"),
        ("QOSGrpGRES", "what the QOS may use for all its users together is in use"),
        ("AssocMaxJobsLimit", "you have as much running as your account allows"),
        ("QOSMaxWallDurationPerJobLimit", "asks for more than the QOS allows one job"),
        ("ReqNodeNotAvail,_UnavailableNodes:n[1-2]", "is down, drained or reserved"),
        ("JobHeldUser", "`scontrol release` lets it go"),
        ("DependencyNeverSatisfied", "a job it waits for did not succeed"),
    ],
)
def test_a_reason_is_told_in_words_and_named(reason: str, words: str) -> None:
    text = why_pending(reason, now=NOW)
    assert words in text
    assert f"({reason.split(',')[0]}" in text


def test_names_of_nodes_are_kept() -> None:
    text = why_pending("ReqNodeNotAvail,_UnavailableNodes:n[1-2]", now=NOW)
    assert text.endswith("(ReqNodeNotAvail, UnavailableNodes:n[1-2])")


def test_a_reason_that_is_not_known_is_passed_on() -> None:
    assert why_pending("SomethingNew_4", now=NOW) == "scheduler: SomethingNew_4"


def test_the_expected_start_is_told_and_a_past_one_is_not() -> None:
    assert ", expected to start at " in why_pending("Priority", NOW + 3600, NOW)
    assert "expected" not in why_pending("Priority", NOW - 10, NOW)
    text = why_pending("BeginTime", NOW + 120, NOW)
    assert text.startswith("starts at the earliest at ") and text.endswith(" (BeginTime)")


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("PartitionTimeLimit", (("--hours", "HOURS"), "")),
        ("QOSMaxWallDurationPerJobLimit", (("--hours", "HOURS"), "")),
        ("QOSMaxNodePerJobLimit", (("--nodes", "NODES"), "")),
        ("QOSMaxMemoryPerJob", (("--mem-gb", "GB"), "")),
        ("BadConstraints", (("--partition", "NAME"), "")),
        ("InvalidAccount", ((), "account")),
        ("QOSNotAllowed", ((), "qos")),
        ("DependencyNeverSatisfied", ((), "")),
        ("launch_failed_requeued_held", ((), "")),
        ("job_requeued_in_held_state", ((), "")),
    ],
)
def test_what_will_never_start_is_told_with_what_must_change(
    reason: str, change: tuple[tuple[str, ...], str]
) -> None:
    assert hopeless(reason)
    assert what_to_change(reason) == change


def test_what_only_waits_is_not_given_up() -> None:
    for reason in ("QOSMaxJobsPerUserLimit", "Resources", "PartitionNodeLimit", "JobHeldUser"):
        assert not hopeless(reason)
    assert why_pending("launch_failed_requeued_held").startswith("could not be started and is held")
