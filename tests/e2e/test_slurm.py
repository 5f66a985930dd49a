"""The main job on a real SLURM: two nodes, two ranks each, and every fault in mid-pretraining."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import CommandLine, make_command_line
from tests.slurm_cluster import PrivateSlurm

pytestmark = [pytest.mark.e2e, pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

CPU = ("cluster=slurm", "cluster.resources.device=cpu", "cluster.resources.cpus_per_task=1")
STEPS = 60
# Only the pretraining, on four ranks over two nodes, long enough to be hit in the middle.
PRETRAIN = (
    "tiny.yaml",
    *CPU,
    "~stages.probe",
    "~stages.probe_random",
    "~stages.finetune",
    "~stages.retrieval",
    "~stages.report",
    "stages.pretrain.micro_batch=2",
    f"stages.pretrain.max_steps={STEPS}",
    "+stages.pretrain.resources={nodes: 2, tasks_per_node: 2, hours: 0.5, signal_seconds: 20}",
)
TERMINAL = {"succeeded", "failed", "blocked", "lost", "cancelled"}


@pytest.fixture(scope="module")
def reference(slurm: PrivateSlurm) -> Iterator[CommandLine]:
    """The same pretraining without any fault."""
    run = _command_line(slurm, "reference")
    run("submit", *PRETRAIN)
    _wait(run, _ended)
    assert run.status()["pretrain"]["status"] == "succeeded", run("logs", "latest:pretrain")
    yield run
    slurm.heal()


def _command_line(slurm: PrivateSlurm, name: str) -> CommandLine:
    folder = slurm.shared / f"{name}-{os.urandom(3).hex()}"
    return make_command_line(folder, slurm.env)


def _with_data_of(reference: CommandLine, slurm: PrivateSlurm, name: str) -> CommandLine:
    """A fresh store that already has the reference's index: the same videos, read once."""
    run = _command_line(slurm, name)
    source = reference.stage_dir("index")
    shutil.copytree(source, run.store / "stages" / source.name)
    return run


def _ended(stages: dict[str, Any]) -> bool:
    return all(stage["status"] in TERMINAL for stage in stages.values())


def _wait(
    run: CommandLine, condition: Callable[[dict[str, Any]], bool], seconds: float = 240
) -> None:
    deadline = time.monotonic() + seconds
    while not condition(stages := run.status()):
        assert time.monotonic() < deadline, json.dumps(stages, indent=1)
        time.sleep(1)


def _wait_for_step(run: CommandLine, step: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in run.store.glob("stages/pretrain-*/progress.json"):
            if json.loads(path.read_text())["step"] >= step:
                return
        time.sleep(0.05)
    raise AssertionError(
        f"no step {step} within {seconds} s:\n{run('status')}\n{run('logs', 'latest:pretrain')}"
    )


def _encoder(run: CommandLine) -> bytes:
    return (run.stage_dir("pretrain") / "outputs" / "encoder.safetensors").read_bytes()


def _kill_rank(slurm: PrivateSlurm, run: CommandLine) -> None:
    """Nothing to do: the rank kills itself at step 25, see `environment`."""


def _requeue(slurm: PrivateSlurm, run: CommandLine) -> None:
    slurm.run("scontrol", "requeue", run.status()["pretrain"]["job_id"])


def _preempt(slurm: PrivateSlurm, run: CommandLine) -> None:
    slurm.preempt()


def _warn_of_time_limit(slurm: PrivateSlurm, run: CommandLine) -> None:
    slurm.run("scancel", "--signal=USR2", run.status()["pretrain"]["job_id"])


@pytest.mark.parametrize(
    ("fault", "environment"),
    [
        (_kill_rank, {"ORCHESTRATE_FAULT": "step:25", "ORCHESTRATE_FAULT_RANK": "3"}),
        (_requeue, {}),
        (_preempt, {}),
        (_warn_of_time_limit, {}),
    ],
    ids=["kill -9 of a rank", "scontrol requeue", "preempting job", "time limit warning"],
)
def test_a_fault_in_mid_pretraining_leads_to_the_same_weights(
    slurm: PrivateSlurm,
    reference: CommandLine,
    fault: Callable[[PrivateSlurm, CommandLine], None],
    environment: dict[str, str],
) -> None:
    run = _with_data_of(reference, slurm, "fault")
    run("submit", *PRETRAIN, **environment)
    _wait_for_step(run, 12)
    fault(slurm, run)
    _wait(run, _ended)
    stage = run.status()["pretrain"]
    assert stage["status"] == "succeeded", run("logs", "latest:pretrain")
    attempts = [
        json.loads(path.read_text())
        for path in sorted(run.stage_dir("pretrain").glob("attempts/*/exit.json"))
    ]
    assert len(attempts) == 2
    assert 0 < attempts[0]["step"] < STEPS
    assert attempts[0]["decision"] == "requeue"
    if fault is _kill_rank:
        (failure,) = run.stage_dir("pretrain").glob("attempts/s001r000/failure-rank3.json")
        assert json.loads(failure.read_text())["cause"] == "killed"
    assert _encoder(run) == _encoder(reference)


def test_a_real_time_limit_is_survived(slurm: PrivateSlurm, reference: CommandLine) -> None:
    """One minute of limit for more than a minute of work: the job continues in a second one."""
    run = _with_data_of(reference, slurm, "limit")
    limits = (
        "stages.pretrain.resources.hours=0.0166",
        "stages.pretrain.resources.signal_seconds=5",
    )
    run("submit", *PRETRAIN, *limits, ORCHESTRATE_FAULT="slow:1500")
    _wait(run, _ended, seconds=400)
    assert run.status()["pretrain"]["status"] == "succeeded", run("logs", "latest:pretrain")
    ends = sorted(run.stage_dir("pretrain").glob("attempts/*/exit.json"))
    assert len(ends) >= 2
    assert 0 < json.loads(ends[0].read_text())["step"] < STEPS
    assert _encoder(run) == _encoder(reference)


def test_submit_returns_and_leaves_nothing_alive(slurm: PrivateSlurm) -> None:
    run = _command_line(slurm, "quick")
    output = run("submit", *PRETRAIN)
    assert "pretrain" in output
    mine = str(run.store).encode()
    assert len(slurm.live()) == 2
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        line = process.read_bytes()
        assert not (mine in line and b"orchestrator.cli" in line), line
    run("cancel", "latest")
    _wait(run, _ended)
    assert run.status()["pretrain"]["status"] == "cancelled"


def test_a_cancelled_run_stays_cancelled_and_resume_finishes_it(
    slurm: PrivateSlurm, reference: CommandLine
) -> None:
    run = _with_data_of(reference, slurm, "cancel")
    run("submit", *PRETRAIN)
    _wait_for_step(run, 12)
    run("cancel", "latest")
    _wait(run, _ended)
    assert run.status()["pretrain"]["status"] == "cancelled"
    run("resume", "latest")
    _wait(run, _ended)
    assert run.status()["pretrain"]["status"] == "succeeded", run("logs", "latest:pretrain")
    assert _encoder(run) == _encoder(reference)


def test_a_failed_stage_blocks_what_follows_and_nothing_stays_pending(
    slurm: PrivateSlurm,
) -> None:
    run = _command_line(slurm, "failed")
    run("submit", "tiny.yaml", *CPU, "stages.pretrain.optimizer.lr=1e30")
    _wait(run, _ended)
    stages = run.status()
    assert stages["pretrain"]["status"] == "failed"
    assert stages["probe"]["status"] == stages["report"]["status"] == "blocked"
    assert stages["probe_random"]["status"] == "succeeded"
    assert "not finite" in stages["pretrain"]["reason"]
    slurm.wait_for(lambda: not slurm.live(), 30)


def test_four_submits_at_once_make_one_set_of_jobs(slurm: PrivateSlurm) -> None:
    run = _command_line(slurm, "race")
    before = slurm.live()
    processes = [run.start("submit", *PRETRAIN) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(outputs)
    assert len(slurm.live() - before) == 2
    assert len(list(run.store.glob("stages/*/submission-*.json"))) == 4  # two claims, two records
    run("cancel", "latest")
    _wait(run, _ended)
