"""Parsers of squeue and scontrol, on lines recorded from SLURM 22.05.8 and from a current one.

Each golden file names its source in the first line.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.contract import Phase
from cluster.queue import (
    PHASES,
    expand_tasks,
    own_job_id,
    parse_scontrol_config,
    parse_scontrol_job,
    parse_squeue,
    phase,
)

GOLDEN = Path(__file__).parent / "golden"

SQUEUE = """\
1|FAILED|NonZeroExitCode|0|1795176154|1795176154|768|a b|c|
2|FAILED|JobLaunchFailure|0|1795176154|1795176154|9|wrap|
3|PENDING|DependencyNeverSatisfied|0|1795176154|N/A|0|wrap|
4|PENDING|BeginTime|1|1795176155|1795176276|0|wrap|
5|RUNNING|None|2|1795176156|1795176156|0|wrap|
6|COMPLETED|None|0|1795176156|1795176156|0|wrap|
7|COMPLETING|None|0|1795176156|1795176156|0|wrap|
"""
SCONTROL = (
    "JobId=1 JobName=p.again UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=1 Nice=0"
    " Account=(null) JobState=COMPLETING Reason=None Dependency=(null) Requeue=1 Restarts=1"
    " AllocNode:Sid=localhost:2893 ReqB:S:C:T=0:0:*:* PreemptTime=None"
    " Comment=a test JobState=RUNNING PreemptTime=1 StdOut=/tmp/a b'q/1_0_log.out Power= \n"
)


def test_squeue_lines_are_read() -> None:
    jobs = {job.job_id: job for job in parse_squeue(SQUEUE)}
    phases = {number: job.state.phase for number, job in jobs.items()}
    assert phases == {
        "1": Phase.GONE,
        "2": Phase.GONE,
        "3": Phase.PENDING,
        "4": Phase.PENDING,
        "5": Phase.RUNNING,
        "6": Phase.GONE,
        "7": Phase.RUNNING,
    }
    assert jobs["1"].name == "a b|c"
    assert jobs["1"].state.exit_code == 3
    assert jobs["2"].state.exit_code == 137
    assert jobs["3"].state.reason == "DependencyNeverSatisfied"
    assert (jobs["4"].state.reason, jobs["4"].state.restarts) == ("BeginTime", 1)
    assert jobs["5"].state.exit_code is None
    assert (jobs["6"].state.reason, jobs["6"].state.exit_code) == ("COMPLETED", 0)
    assert jobs["1"].submitted_at == 1795176154
    assert (jobs["3"].state.start_at, jobs["4"].state.start_at) == (None, 1795176276.0)


ARRAY = """\
1_2|PENDING|BeginTime|1|1795268877|1795268877|0|s.sh|
1_0|RUNNING|None|0|1795268874|1795268874|0|s.sh|
1_3|COMPLETED|None|0|1795268874|1795268874|0|s.sh|
5|CANCELLED|DependencyNeverSatisfied|0|1795268880|1795268880|0|dep2|
"""


def test_the_tasks_of_an_array_are_jobs_of_their_own() -> None:
    jobs = {job.job_id: job for job in parse_squeue(ARRAY)}
    assert jobs["1_2"].state.phase is Phase.PENDING and jobs["1_2"].state.restarts == 1
    assert jobs["1_0"].state.phase is Phase.RUNNING
    assert jobs["1_3"].state.exit_code == 0
    assert jobs["5"].state.phase is Phase.GONE


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("7_[0-3]", [0, 1, 2, 3]),
        ("7_[1,3]", [1, 3]),
        ("7_[1-13:2]", [1, 3, 5, 7, 9, 11, 13]),
        ("7_[0-3,7,9%2]", [0, 1, 2, 3, 7, 9]),
        ("7_[0-99:33%4]", [0, 33, 66, 99]),
        ("7_[5]", [5]),
    ],
)
def test_tasks_that_wait_in_one_line_are_told_apart(text: str, tasks: list[int]) -> None:
    """Forms printed by SLURM 22.05.8."""
    assert expand_tasks(text) == [f"7_{task}" for task in tasks]
    line = f"{text}|PENDING|BeginTime|0|1795268874|N/A|0|many|\n"
    assert [job.job_id for job in parse_squeue(line)] == expand_tasks(text)


@pytest.mark.parametrize("text", ["7_[0-3,7,...]", "7_[0-3", "7_[a]", "7_", "x", "7+0"])
def test_a_job_id_of_another_form_is_an_error_and_not_a_guess(text: str) -> None:
    with pytest.raises(ValueError, match="unknown form"):
        expand_tasks(text)


def test_a_task_of_an_array_is_known_by_the_array_and_its_number() -> None:
    task = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert own_job_id(task) == "7_3"
    assert own_job_id({"SLURM_JOB_ID": "7"}) == "7"
    assert own_job_id({}) is None


def test_an_empty_queue_is_no_job() -> None:
    assert parse_squeue("") == [] and parse_squeue("\n") == []


def test_a_line_of_another_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 fields"):
        parse_squeue("1|RUNNING|None|\n")


def test_an_unknown_state_is_an_error_and_not_a_guess() -> None:
    with pytest.raises(ValueError, match="HIBERNATING"):
        phase("HIBERNATING")


@pytest.mark.parametrize("state", sorted(PHASES))
def test_every_state_has_one_phase(state: str) -> None:
    assert phase(state) is PHASES[state]


def test_a_cancelled_job_may_name_who_did_it() -> None:
    assert phase("CANCELLED by 1000") is Phase.GONE
    assert phase("CANCELLED+") is Phase.GONE


def test_scontrol_words_are_read_and_a_comment_cannot_pretend() -> None:
    job = parse_scontrol_job(SCONTROL)
    assert (job["JobState"], job["Restarts"], job["PreemptTime"]) == ("COMPLETING", "1", "None")
    assert job["Comment"] == "a test"
    assert job["StdOut"] == "/tmp/a b'q/1_0_log.out"  # noqa: S108
    assert job["AllocNode:Sid"] == "localhost:2893"
    assert job["Power"] == ""


def test_scontrol_config_is_read() -> None:
    text = (
        "Configuration data as of 2026\nClusterName             = private1\nKillWait   = 30 sec\n"
    )
    config = parse_scontrol_config(text)
    assert config["ClusterName"] == "private1" and config["KillWait"] == "30 sec"


def _golden(name: str) -> str:
    return (GOLDEN / name).read_text().split("\n", 1)[1]


def test_a_recorded_queue_is_read() -> None:
    jobs = {job.job_id: job.state for job in parse_squeue(_golden("squeue_22.05.txt"))}
    ended = {number: state.exit_code for number, state in jobs.items()}
    assert ended == {"7": 0, "3": 0, "5": 143, "6": 0, "1": 3, "2": 137, "4": None}
    assert (jobs["4"].phase, jobs["4"].restarts) == (Phase.RUNNING, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scontrol_job_22.05.txt", ("1", "FAILED", "NonZeroExitCode", "0", "3:0", "None")),
        ("scontrol_job_2026.txt", ("6750802", "RUNNING", "None", "0", "0:0", "None")),
    ],
)
def test_a_recorded_job_is_read_whatever_the_version_and_form(
    name: str, expected: tuple[str, ...]
) -> None:
    """On one line as we ask for it, and on several."""
    job = parse_scontrol_job(_golden(name))
    keys = ("JobId", "JobState", "Reason", "Restarts", "ExitCode", "PreemptTime")
    assert tuple(job[key] for key in keys) == expected
