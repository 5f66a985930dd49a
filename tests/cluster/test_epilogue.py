"""The epilogue as the batch script runs it: a process of its own, in a stage folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster import fsio
from cluster.decision import Decision, SchedulerView
from cluster.epilogue import exit_code
from cluster.evidence import scheduler_view
from cluster.unrecorded import record_lost
from tests.cluster.bench import REPOSITORY

HEAVY = ("torch", "numpy", "submitit", "pydantic", "mlflow", "yaml")

FAKE_SCONTROL = """#!/bin/bash
echo "$@" >> "$FAKE_LOG"
case "$1" in
  -o) if [ -s "$FAKE_AWAY" ]; then
      sed -i 1d "$FAKE_AWAY"
      echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
      exit 1
    fi
    cat "$FAKE_JOB" ;;
  requeue) [ -z "$FAKE_REFUSE" ] || { echo "presently disabled" >&2; exit 1; } ;;
esac
"""
FAKE_SCANCEL = """#!/bin/bash
echo "scancel $@" >> "$FAKE_LOG"
"""
# The job's node n2 does not answer; the partition has eight nodes.
FAKE_SINFO = """#!/bin/bash
case "$*" in
  *--nodes*) printf 'n1 allocated\\nn1 allocated\\nn2 down*\\n' ;;
  *) for i in 1 2 3 4 5 6 7 8; do printf "n$i main*\\nn$i other\\n"; done ;;
esac
"""


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "pretrain-0123456789ab"
    folder.mkdir()
    fsio.write_json(folder / "stage.json", {"key": "a" * 64})
    return folder


def run(stage: Path, code: int, *flags: str, env: dict[str, str] | None = None) -> Any:
    command = [sys.executable, "-m", "cluster.epilogue", str(stage), "--submission", "1"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "ORCHESTRATE"))}
    return subprocess.run(
        [*command, "--exit-code", str(code), *flags],
        env={**clean, **(env or {})},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def fake_slurm(tmp_path: Path, job: str, refuse: bool = False) -> dict[str, str]:
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in {
        "scontrol": FAKE_SCONTROL,
        "scancel": FAKE_SCANCEL,
        "sinfo": FAKE_SINFO,
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "job").write_text(job)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "FAKE_LOG": str(tmp_path / "calls"),
        "FAKE_JOB": str(tmp_path / "job"),
        "FAKE_AWAY": str(tmp_path / "away"),
        "FAKE_REFUSE": "1" if refuse else "",
        "SLURM_JOB_ID": "42",
    }


def record(stage: Path, attempt: str = "s001r000") -> dict[str, Any]:
    return fsio.read_json(stage / "attempts" / attempt / "exit.json")


def commit(stage: Path, step: int) -> None:
    fsio.make_dir(stage / "checkpoints" / f"step_{step:09d}")
    fsio.write_json(stage / "checkpoints" / f"step_{step:09d}" / "manifest.json", {"step": step})


RUNNING_JOB = (
    "JobId=42 JobName=x JobState=RUNNING Reason=None Requeue=1 Restarts=0 PreemptTime=None"
)


def test_a_running_job_that_exits_75_is_requeued(stage: Path, tmp_path: Path) -> None:
    commit(stage, 7)
    done = run(stage, 75, env=fake_slurm(tmp_path, RUNNING_JOB))
    assert done.returncode == 75
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["-o show job 42", "requeue 42"]
    written = record(stage)
    assert (written["decision"], written["step"], written["exit_code"]) == ("requeue", 7, 75)
    assert done.stdout.count("\n") == 1
    assert "attempt s001r000 ended with exit code 75 at step 7: requeue" in done.stdout


def test_a_refused_requeue_is_recorded_as_a_stop(stage: Path, tmp_path: Path) -> None:
    done = run(stage, 75, env=fake_slurm(tmp_path, RUNNING_JOB, refuse=True))
    assert done.returncode == 1
    assert record(stage)["decision"] == "stop"
    assert "presently disabled" in record(stage)["reason"]


def test_a_job_that_was_cancelled_is_not_requeued(stage: Path, tmp_path: Path) -> None:
    job = RUNNING_JOB.replace("RUNNING", "COMPLETING")
    assert run(stage, 75, env=fake_slurm(tmp_path, job)).returncode == 1
    assert (tmp_path / "calls").read_text().splitlines() == ["-o show job 42"]
    assert record(stage)["reason"] == "cancelled through the scheduler"


def test_a_controller_that_is_away_for_a_while_is_waited_for(stage: Path, tmp_path: Path) -> None:
    (tmp_path / "away").write_text("once\ntwice\n")
    assert run(stage, 75, env=fake_slurm(tmp_path, RUNNING_JOB)).returncode == 75
    assert (tmp_path / "calls").read_text().splitlines() == ["-o show job 42"] * 3 + ["requeue 42"]


def test_at_term_the_requeue_is_asked_for_before_anything_about_nodes(
    stage: Path, tmp_path: Path
) -> None:
    job = RUNNING_JOB.replace("RUNNING", "COMPLETING").replace("Reason=None", "Reason=NodeDown")
    claim(stage, resources={"nodes": 2})
    env = {**fake_slurm(tmp_path, f"{job} Partition=main"), "SLURM_JOB_NODELIST": "n[1-2]"}
    sinfo = tmp_path / "bin" / "sinfo"
    sinfo.write_text('#!/bin/bash\necho sinfo >> "$FAKE_LOG"\n' + FAKE_SINFO)
    assert run(stage, 143, "--signalled", env=env).returncode == 75
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[:3] == ["-o show job 42", "requeue 42", "sinfo"]
    assert "update JobId=42 ExcNodeList=n2" in calls
    assert calls.count("requeue 42") == 1
    written = record(stage)
    assert (written["cause"], written["exclude"]) == ("node_failure", ["n2"])
    assert written["requeue_asked"]
    assert "n2 failed; without n2 from now on" in written["reason"]


@pytest.mark.parametrize(
    ("job", "state", "policy"),
    [("41", "TIMEOUT", "counted"), ("41", "NODE_FAIL", "free"), ("42", "TIMEOUT", "free")],
)
def test_a_successor_counts_the_attempt_that_left_no_record_unless_its_node_failed(
    job: str, state: str, policy: str, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same job (42) that runs again was requeued by the scheduler, whatever it says of it."""
    shown = f"JobId={job} JobState={state} Reason=None Restarts=0 PreemptTime=None"
    for name, value in fake_slurm(tmp_path, shown).items():
        monkeypatch.setenv(name, value)
    lost = fsio.make_dir(stage / "attempts" / "s001r000")
    fsio.write_json(lost / "start.json", {"job_id": job})
    record_lost(stage, 1, 1)
    assert record(stage)["policy"] == policy


def test_cancel_json_stops_even_a_running_job(stage: Path, tmp_path: Path) -> None:
    fsio.write_json(stage / "cancel.json", {"user": "ann", "host": "login1", "at": 1})
    assert run(stage, 75, env=fake_slurm(tmp_path, RUNNING_JOB)).returncode == 1
    assert record(stage)["reason"] == "cancelled by ann on login1"
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_a_result_of_this_stage_is_success_and_one_of_another_is_not(stage: Path) -> None:
    fsio.write_json(stage / "result.json", {"key": "b" * 64})
    assert run(stage, 0, env={"ORCHESTRATE_RESTART_COUNT": "0"}).returncode == 1
    fsio.write_json(stage / "result.json", {"key": "a" * 64})
    assert run(stage, 137, env={"ORCHESTRATE_RESTART_COUNT": "0"}).returncode == 0
    assert record(stage)["decision"] == "finished"


def test_the_local_executor_is_told_by_75_and_nothing_asks_slurm(
    stage: Path, tmp_path: Path
) -> None:
    env = {**fake_slurm(tmp_path, RUNNING_JOB), "ORCHESTRATE_RESTART_COUNT": "3"}
    assert run(stage, 75, env=env).returncode == 75
    assert record(stage, "s001r003")["decision"] == "requeue"
    assert not (tmp_path / "calls").exists()


def test_an_interrupted_job_is_not_restarted(stage: Path) -> None:
    assert run(stage, 75, "--interrupted", env={"ORCHESTRATE_RESTART_COUNT": "0"}).returncode == 1
    assert record(stage)["reason"] == "interrupted"


def test_the_third_crash_without_progress_stops(stage: Path) -> None:
    codes = [
        run(stage, 137, env={"ORCHESTRATE_RESTART_COUNT": str(n)}).returncode for n in range(3)
    ]
    assert codes == [75, 75, 137]


def test_the_rank_that_failed_first_decides(stage: Path) -> None:
    attempt = fsio.make_dir(stage / "attempts" / "s001r000")
    for rank, code, cause, at in [(0, 74, "communication", 1.0), (1, 72, "diverged", 2.0)]:
        failure = {"rank": rank, "exit_code": code, "cause": cause, "at": at}
        fsio.write_json(attempt / f"failure-rank{rank}.json", failure)
    assert run(stage, 74, env={"ORCHESTRATE_RESTART_COUNT": "0"}).returncode == 72


def test_damaged_records_do_not_keep_it_from_deciding(stage: Path) -> None:
    attempt = fsio.make_dir(stage / "attempts" / "s001r000")
    (attempt / "failure-rank0.json").write_text("{torn")
    (stage / "cancel.json").write_text("")
    done = run(stage, 137, env={"ORCHESTRATE_RESTART_COUNT": "0"})
    assert done.returncode == 75
    assert "not valid JSON" in done.stderr


def test_a_stage_that_journals_its_files_may_run_into_its_time_limit_for_ever(
    stage: Path, tmp_path: Path
) -> None:
    """Each file that is done is progress: attempts that add some are not attempts in vain."""
    journal = fsio.make_dir(stage / "checkpoints") / "files.jsonl"
    scheduler = fake_slurm(tmp_path, RUNNING_JOB)
    for restart in range(5):
        fsio.append_json_line(journal, {"path": f"{restart}.mp4"})
        env = {**scheduler, "SLURM_RESTART_COUNT": str(restart)}
        assert run(stage, 75, env=env).returncode == 75
        assert record(stage, f"s001r{restart:03d}")["step"] == restart + 1
    codes = [run(stage, 75, env={**scheduler, "SLURM_RESTART_COUNT": str(n)}) for n in range(5, 8)]
    assert [done.returncode for done in codes] == [75, 75, 1]


def claim(stage: Path, **details: Any) -> None:
    fsio.write_json(stage / "submission-1.intent.json", details)


def test_the_record_says_cause_policy_and_changes(stage: Path) -> None:
    assert run(stage, 73, env={"ORCHESTRATE_RESTART_COUNT": "0"}).returncode == 75
    written = record(stage)
    assert (written["cause"], written["policy"]) == ("hang", "counted")
    assert (written["exclude"], written["mem_gb"]) == ([], None)


def test_what_the_recipe_says_of_a_cause_lies_in_the_claim(stage: Path) -> None:
    claim(stage, policy={"causes": {"hang": {"retry": "stop"}, "user_code": {"retry": "free"}}})
    local = {"ORCHESTRATE_RESTART_COUNT": "0"}
    assert run(stage, 73, env=local).returncode == 73
    assert run(stage, 70, env=local).returncode == 75
    assert record(stage)["policy"] == "free"


def test_a_node_that_slurm_lost_is_left_out_by_what_comes_next(stage: Path, tmp_path: Path) -> None:
    claim(stage, resources={"nodes": 2, "exclude": "n7"})
    scheduler = fake_slurm(tmp_path, f"{RUNNING_JOB} Partition=main ExcNodeList=n[7-8]")
    env = {**scheduler, "SLURM_JOB_NODELIST": "n[1-2]"}
    assert run(stage, 137, env=env).returncode == 75
    written = record(stage)
    assert (written["cause"], written["policy"]) == ("node_failure", "free")
    assert written["exclude"] == ["n2"]
    assert "n2 failed; without n2 from now on" in written["reason"]
    update = "update JobId=42 ExcNodeList=n7,n8,n2"
    assert update in (tmp_path / "calls").read_text().splitlines()


def test_later_attempts_keep_the_changes_of_earlier_ones(stage: Path, tmp_path: Path) -> None:
    claim(stage, resources={"nodes": 1, "mem_gb": 8})
    earlier = {"step": 0, "exclude": ["n3"], "mem_gb": 12.0, "policy": "counted"}
    fsio.make_dir(stage / "attempts" / "s001r000")
    fsio.write_json(stage / "attempts" / "s001r000" / "exit.json", earlier)
    scheduler = fake_slurm(tmp_path, RUNNING_JOB.replace("Restarts=0", "Restarts=1"))
    env = {**scheduler, "SLURM_RESTART_COUNT": "1"}
    assert run(stage, 253, env=env).returncode == 75
    written = record(stage, "s001r001")
    assert (written["cause"], written["mem_gb"]) == ("out_of_host_memory", 18.0)
    update = "update JobId=42 ExcNodeList=n3 MinMemoryNode=18432"
    assert update in (tmp_path / "calls").read_text().splitlines()


def test_a_cancel_takes_back_a_requeue_that_was_asked_for_before(
    stage: Path, tmp_path: Path
) -> None:
    """TERM came and the job was requeued at once; the person cancels while the ranks still save."""
    preempted = (
        "JobId=42 JobState=COMPLETING Restarts=0 Reason=None PreemptTime=2026-01-01T00:00:00"
    )
    env = fake_slurm(tmp_path, preempted)
    assert run(stage, 143, "--signalled", env=env).returncode == 75
    assert record(stage)["requeue_asked"]
    fsio.write_json(stage / "cancel.json", {"user": "ann", "host": "login1", "at": 1})
    env = fake_slurm(tmp_path, preempted.replace("Restarts=0", "Restarts=1"))
    assert run(stage, 75, env=env).returncode == 1
    assert (record(stage)["decision"], record(stage)["cause"]) == ("stop", "cancelled")
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "scancel 42"


@pytest.mark.parametrize(
    ("action", "code", "expected"),
    [
        ("finished", 137, 0),
        ("requeue", 137, 75),
        ("stop", 70, 70),
        ("stop", 75, 1),
        ("stop", 0, 1),
        ("stop", 137, 137),
    ],
)
def test_75_means_goes_on_and_nothing_else(action: Any, code: int, expected: int) -> None:
    assert exit_code(Decision(action=action, reason="", exit_code=code)) == expected


@pytest.mark.parametrize(
    ("job", "restart", "expected"),
    [
        # Recorded from scontrol 22.05.8, inside the batch script.
        ({"JobState": "RUNNING", "Restarts": "0", "PreemptTime": "None"}, 0, SchedulerView()),
        (
            {"JobState": "COMPLETING", "Restarts": "1", "Reason": "None"},
            0,
            SchedulerView(running=False, requeued=True),
        ),
        (
            {"JobState": "COMPLETING", "Restarts": "2", "PreemptTime": "1795176429"},
            2,
            SchedulerView(running=False, preempted=True),
        ),
        (
            {"JobState": "COMPLETING", "Restarts": "0", "PreemptTime": "None"},
            0,
            SchedulerView(running=False),
        ),
        (
            {"JobState": "COMPLETING", "Restarts": "0", "Reason": "TimeLimit"},
            0,
            SchedulerView(running=False, time_limit=True),
        ),
    ],
)
def test_scontrol_tells_who_acted(
    job: dict[str, str], restart: int, expected: SchedulerView
) -> None:
    assert scheduler_view(job, restart) == expected


def test_it_starts_fast_and_imports_nothing_heavy() -> None:
    code = f"import sys, cluster.epilogue; print([m for m in {HEAVY} if m in sys.modules])"
    command: Sequence[str] = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
