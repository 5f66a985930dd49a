"""What `doctor` makes of a controller's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.doctor import PartitionFacts, SlurmFacts
from cluster.site import SiteProfile, read_profile, write_profile
from orchestrator.checkup import Check, check_up, scheduler_checks
from orchestrator.store import Store

MAIN = PartitionFacts(
    name="main",
    default=True,
    up=True,
    num_nodes=8,
    preempt_mode="REQUEUE",
    grace_seconds=0,
    max_hours=24.0,
    max_nodes=None,
)
FACTS = SlurmFacts(
    version="23.11.4",
    cluster="site",
    preempt_type="preempt/partition_prio",
    preempt_mode="REQUEUE",
    kill_wait_seconds=30,
    job_requeue=True,
    min_job_age_seconds=300,
    user_signal=False,
    kill_invalid_depend=False,
    max_array_size=1001,
    accounting=True,
    slurmd_timeout_seconds=300,
    requeue_wait_seconds=121,
    partitions=(MAIN,),
)


def told(facts: SlurmFacts, partition: str | None = None) -> dict[str, Check]:
    return {check.name: check for check in scheduler_checks(facts, partition)}


def test_a_site_as_it_should_be_gets_no_advice() -> None:
    checks = told(FACTS)
    assert {check.state for check in checks.values()} == {"ok"}
    assert not any(check.advice for check in checks.values())
    assert checks["partition"].found == "main: 8 nodes, at most 24 h"
    assert checks["preemption"].found == "PreemptMode REQUEUE (partition_prio)"
    assert "waits 121 s" in checks["requeue"].found


def test_preemption_that_cancels_is_worth_a_rehearsal() -> None:
    partition = replace(MAIN, preempt_mode="CANCEL", grace_seconds=60)
    checks = told(replace(FACTS, partitions=(partition,), user_signal=True))
    assert checks["preemption"].state == "warning"
    assert "60 s of grace, told by USR2" in checks["preemption"].found
    assert "drill RUN:STAGE --preempt" in checks["preemption"].advice
    assert checks["time to save"].found == "90 s (GraceTime 60 s + KillWait 30 s)"


def test_a_short_time_to_save_and_a_long_wait_for_dead_nodes_are_told() -> None:
    checks = told(replace(FACTS, kill_wait_seconds=5, slurmd_timeout_seconds=1800))
    assert checks["time to save"].state == "warning"
    assert "checkpoint.minutes" in checks["time to save"].advice
    assert checks["dead nodes"].state == "warning"


@pytest.mark.parametrize(
    ("facts", "named", "state", "words"),
    [
        (replace(FACTS, partitions=()), "gpu", "failed", "there is no gpu"),
        (replace(FACTS, partitions=()), None, "warning", "no default partition"),
        (
            replace(FACTS, partitions=(replace(MAIN, up=False),)),
            None,
            "warning",
            "do not start now",
        ),
    ],
)
def test_a_partition_that_takes_no_jobs_is_told(
    facts: SlurmFacts, named: str | None, state: str, words: str
) -> None:
    check = told(facts, named)["partition"]
    assert check.state == state and words in check.found and check.advice


def test_the_use_of_the_store_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    checks = {check.name: check for check in check_up(Store(tmp_path / "store"))}
    assert (checks["locks"].state, checks["store clock"].state) == ("ok", "ok")
    assert list(tmp_path.iterdir()) == []


def test_a_site_profile_is_read_as_it_was_written_and_by_newer_versions(tmp_path: Path) -> None:
    profile = SiteProfile(cluster="site", checked_at=7.0, nodes=("n1",), scontrol_on_nodes=True)
    write_profile(tmp_path, profile)
    assert read_profile(tmp_path, "site") == profile
    assert read_profile(tmp_path, "other") is None
