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
from tests.cluster.bench import REPOSITORY

HEAVY = ("torch", "numpy", "submitit", "pydantic", "mlflow", "yaml")

FAKE_SCONTROL = """#!/bin/bash
echo "$@" >> "$FAKE_LOG"
case "$1" in
  -o) cat "$FAKE_JOB" ;;
  requeue) [ -z "$FAKE_REFUSE" ] || { echo "presently disabled" >&2; exit 1; } ;;
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
    (tools / "scontrol").write_text(FAKE_SCONTROL)
    (tools / "scontrol").chmod(0o755)
    (tmp_path / "job").write_text(job)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "FAKE_LOG": str(tmp_path / "calls"),
        "FAKE_JOB": str(tmp_path / "job"),
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
