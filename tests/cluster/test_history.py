"""What accounting remembers of jobs: rows of sacct, and a database that is off, gone or hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.contract import JobHandle
from cluster.history import parse_sacct, read_history
from tests.slurm_cluster import PrivateSlurm, missing_for_accounting, missing_programs

GOLDEN = (Path(__file__).parent / "golden" / "sacct_22.05.txt").read_text().split("\n", 1)[1]


def _handle(job_id: str, submitted_at: float) -> JobHandle:
    return JobHandle(executor="slurm", cluster="c", job_id=job_id, submitted_at=submitted_at)


def test_each_start_of_a_job_is_an_attempt() -> None:
    rows = parse_sacct(GOLDEN)
    told = [(row.job_id, row.state, row.exit_code) for row in rows]
    assert told == [
        ("1", "FAILED", 3),
        ("2", "FAILED", 137),
        ("3", "REQUEUED", 0),
        ("4", "NODE_FAIL", 0),
        ("5", "CANCELLED by 0", 0),
        ("4", "RUNNING", None),
        ("3", "CANCELLED by 0", 0),
        ("7", "COMPLETED", 0),
    ]
    assert (rows[0].nodes, rows[0].reason, rows[0].ended_at) == ("n1", "", 1795295399)
    assert (rows[5].reason, rows[5].ended_at) == ("BeginTime", None)
    assert (rows[6].nodes, rows[6].started_at) == ("", None)


def test_a_line_of_another_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 fields"):
        parse_sacct("1|FAILED|None\n")


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What sacct prints; accounting itself is asked in the last test."""
    text = tmp_path / "rows"
    program = tmp_path / "sacct"
    program.write_text(f"#!/bin/sh\ncat {text}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return text


def test_all_starts_of_the_job_are_its_history(answers: Path) -> None:
    answers.write_text(GOLDEN)
    lost, requeued = _handle("4", 1795295399.4), _handle("3", 1795295399.4)
    history = read_history([lost, requeued])
    assert [one.state for one in history.attempts[lost]] == ["NODE_FAIL", "RUNNING"]
    assert [one.state for one in history.attempts[requeued]] == ["REQUEUED", "CANCELLED by 0"]
    assert history.unknown == ""


def test_a_number_that_was_used_again_is_another_job(answers: Path) -> None:
    """Before ours, and after it ended."""
    rows = [("FAILED", 1000), ("REQUEUED", 5000), ("COMPLETED", 5100), ("FAILED", 9000)]
    lines = [f"7|{state}|None|n1|0:0|{at}|{at}|{at + 9}" for state, at in rows]
    answers.write_text("\n".join(lines) + "\n")
    middle, last, never = _handle("7", 5001.0), _handle("7", 9000.0), _handle("7", 7000.0)
    history = read_history([middle, last, never]).attempts
    assert [one.submitted_at for one in history[middle]] == [5000, 5100]
    assert [one.state for one in history[last]] == ["FAILED"]
    assert history[never] == []


def test_no_job_is_no_question() -> None:
    assert read_history([]).attempts == {}


def test_where_there_is_no_sacct_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "sacct: No such file" in read_history([_handle("1", 1.0)]).unknown


@pytest.mark.slurm
def test_a_cluster_without_accounting_says_so_at_once(slurm_here: PrivateSlurm) -> None:
    history = read_history([_handle("1", 1.0)])
    assert history.attempts == {} and "accounting storage is disabled" in history.unknown


@pytest.fixture
def accounted(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateSlurm]:
    if missing_programs() or missing_for_accounting():
        pytest.skip("slurmdbd and a database are needed")
    with PrivateSlurm(accounting=True) as cluster:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        monkeypatch.setenv("PATH", cluster.env["PATH"])
        yield cluster


@pytest.mark.slurm
def test_real_accounting_tells_a_requeued_job_and_a_hung_one_is_not_waited_for(
    accounted: PrivateSlurm,
) -> None:
    job_id = accounted.sbatch("--requeue", "--output=/dev/null", "--wrap=sleep 60")
    job = _handle(job_id, time.time())
    accounted.wait_for(lambda: accounted.job(job_id).get("JobState") == "RUNNING", 60)
    accounted.run("scontrol", "requeue", job_id)
    accounted.wait_for(lambda: accounted.job(job_id).get("Restarts") == "1", 60)
    accounted.wait_for(lambda: accounted.job(job_id).get("JobState") == "PENDING", 60)
    accounted.run("scancel", job_id)

    def states() -> list[str]:
        history = read_history([job], seconds=60)
        assert not history.unknown, history.unknown
        return [one.state.split()[0] for one in history.attempts[job]]

    accounted.wait_for(lambda: states() == ["REQUEUED", "CANCELLED"], 60)  # it lags
    os.kill(accounted._pids["slurmdbd"], signal.SIGSTOP)
    try:
        begun = time.monotonic()
        history = read_history([job], seconds=1)
    finally:
        os.kill(accounted._pids["slurmdbd"], signal.SIGCONT)
    assert history.unknown == "sacct: no answer within 1 s"
    assert time.monotonic() - begun < 30
