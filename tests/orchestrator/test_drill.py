"""Faults that a user causes on purpose: the stage comes back, and the report says what it cost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import fsio
from cluster.contract import Executor, JobHandle, JobRequest, Phase, Resources, SchedulerError
from cluster.executors import EXECUTORS
from cluster.slurm import SlurmExecutor
from orchestrator.cli import app
from orchestrator.drill import Fault, Target, find_target
from orchestrator.drill_watch import follow
from orchestrator.handover import Order, hand_over
from orchestrator.naming import UnknownName
from orchestrator.store import Store
from tests.orchestrator.fabricated import FabricatedRun, FakeExecutor
from tests.slurm_cluster import PrivateSlurm

REPOSITORY = Path(__file__).parents[2]
RUN = "drilled-01234567"
FAULTS = ("preempt", "timeout", "kill-node", "hang")
PATIENCE = 150.0  # seconds; a drill takes ten


def submit(root: Path, executor: Executor, names: Sequence[str], resources: Resources) -> None:
    """A run whose stages are `drilled_stage`, recorded and submitted as any other."""
    store = Store(root)
    tracking = {"enabled": False}
    run = {"run_id": RUN, "code": {"path": str(REPOSITORY)}, "tracking": tracking}
    folder = fsio.make_dir(store.run_dir(RUN))
    about = {"recipe": "drilled", "created_at": 1.0, "executor": executor.name, "argv": []}
    fsio.write_json(folder / "run.json", {**run, **about})
    entries, orders = [], []
    for name in names:
        key = fsio.sha256_text(name)
        stage = store.stage_dir("pretrain", key)
        entry = {"name": name, "kind": "pretrain", "key": key, "upstream": [], "inputs": {}}
        entries.append(entry)
        orders.append(
            Order(
                name=name,
                key=key,
                stage=stage,
                upstream=(),
                resources=replace(resources, requeue=name != "successor"),
                action="run",
                reason="",
                policy={},
                n=1,
                spec={**entry, "config": {}},
            )
        )
    fsio.write_json(folder / "plan.json", {"run_id": RUN, "stages": entries})
    inner = executor.submit

    def stand_in(request: JobRequest) -> JobHandle:
        module = "tests.orchestrator.drilled_stage"
        return inner(replace(request, argv=(*request.argv[:-1], module)))

    executor.submit = stand_in  # type: ignore[method-assign]
    hand_over(orders, run, store, executor)


def start_drill(root: Path, fault: str, stage: str, env: Mapping[str, str]) -> Any:
    words = ["drill", f"{RUN}:{stage}", f"--{fault}", "--yes", "--json", "--store", str(root)]
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *words, "--patience", "2"],
        cwd=REPOSITORY,
        env={**env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_of(process: Any) -> dict[str, Any]:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    value: dict[str, Any] = json.loads(out)
    return value


def wait_for_steps(root: Path, names: Sequence[str], attempt: str = "") -> None:
    """Until each stage has done enough that its median step is known to the watchdogs."""
    deadline = time.monotonic() + PATIENCE
    store = Store(root)
    for name in names:
        stage = store.stage_dir("pretrain", fsio.sha256_text(name))
        while True:
            progress = stage.progress() or {"step": 0, "attempt": ""}
            if progress["step"] >= 15 and progress["attempt"] >= attempt:
                break
            assert time.monotonic() < deadline, name
            time.sleep(0.1)


@pytest.fixture(scope="module")
def root(slurm: PrivateSlurm) -> Path:
    return slurm.shared / "drills"


@pytest.fixture(scope="module")
def reports(slurm: PrivateSlurm, root: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """One stage on two nodes for each fault, all hit at the same time."""
    changes = {
        **{name: slurm.env[name] for name in ("PATH", "SLURM_CONF")},
        "ORCHESTRATE_HANG_SECONDS": "5",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setenv(name, value)
        stages = [*FAULTS, "successor"]
        submit(root, SlurmExecutor(), stages, Resources(nodes=2, hours=0.5))
        wait_for_steps(root, stages)
        drills = {fault: start_drill(root, fault, fault, os.environ) for fault in FAULTS}
        drills["successor"] = start_drill(root, "preempt", "successor", os.environ)
        yield {fault: end_of(process) for fault, process in drills.items()}
    slurm.heal()


@pytest.mark.slurm
@pytest.mark.parametrize("fault", FAULTS)
def test_a_stage_comes_back_and_the_report_says_what_was_lost(
    reports: dict[str, dict[str, Any]], fault: str
) -> None:
    report = reports[fault]
    assert report["came_back"] and report["verdict"] == "goes on"
    assert (report["attempt"], report["next_attempt"]) == ("s001r000", "s001r001")
    assert report["decision"] == "requeue" and report["reason"].endswith("(a drill)")
    assert 0 < report["ended_after"] < report["began_after"] < report["lost"]
    assert report["saved"] > 0 and report["steps_repeated"] == max(
        0, report["step"] - report["saved"]
    )


@pytest.mark.slurm
def test_what_was_done_is_told_as_a_command(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["preempt"]["did"] == f"scontrol requeue {reports['preempt']['job']}"
    assert reports["timeout"]["did"] == f"scancel --signal=USR2 {reports['timeout']['job']}"
    assert reports["kill-node"]["did"].startswith("kill -KILL ")
    assert reports["kill-node"]["did"].endswith(" on n2")
    pids = reports["hang"]["did"].removeprefix("kill -STOP ").removesuffix(" on n2")
    assert pids.isdigit()


@pytest.mark.slurm
def test_a_job_that_leaves_a_successor_is_told_as_it_cannot_be_requeued(
    reports: dict[str, dict[str, Any]],
) -> None:
    report = reports["successor"]
    assert report["did"] == f"scancel --signal=TERM {report['job']}"
    assert report["came_back"] and report["next_attempt"] == "s001r001"
    assert report["next_job"] != report["job"]
    assert report["steps_repeated"] == 0


@pytest.mark.slurm
def test_stages_that_are_told_to_stop_lose_no_step(reports: dict[str, dict[str, Any]]) -> None:
    assert [reports[fault]["steps_repeated"] for fault in ("preempt", "timeout")] == [0, 0]


@pytest.mark.slurm
def test_only_the_ranks_of_one_node_are_killed(
    reports: dict[str, dict[str, Any]], root: Path
) -> None:
    """The batch script lived on, else nobody had written how the attempt ended.

    Nor is the node avoided from now on, as it would be had it failed by itself.
    """
    stage = Store(root).stage_dir("pretrain", fsio.sha256_text("kill-node"))
    ended = fsio.read_json(stage.attempts / "s001r000" / "exit.json")
    assert (ended["exit_code"], ended["exclude"], ended["self_ended"]) == (137, [], False)


@pytest.mark.slurm
def test_a_hang_is_found_by_the_watchdogs(reports: dict[str, dict[str, Any]], root: Path) -> None:
    stage = Store(root).stage_dir("pretrain", fsio.sha256_text("hang"))
    verdict = fsio.read_json(stage.attempts / "s001r000" / "hang.json")
    assert verdict["rank"] == 1
    assert fsio.read_json(stage.attempts / "s001r000" / "exit.json")["exit_code"] == 73


@pytest.mark.slurm
def test_without_yes_and_without_a_terminal_nothing_is_done(
    reports: dict[str, dict[str, Any]], root: Path, slurm_here: PrivateSlurm
) -> None:
    """The stages still run behind the other drills, and go on doing so."""
    words = ["drill", f"{RUN}:preempt", "--kill-node", "--store", str(root)]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        cwd=REPOSITORY,
        env=os.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "kill every process of the ranks on n2." in done.stderr
    assert "nothing was done: say --yes to do it" in done.stderr


_OWNER = """\
import sys
from pathlib import Path
from cluster.contract import Resources
from cluster.local import LocalExecutor
from tests.orchestrator.test_drill import RUN, submit
from orchestrator.record import stage_folder
from orchestrator.naming import UnknownName
from orchestrator.store import Store
root = Path(sys.argv[1])
executor = LocalExecutor(kill_seconds=2, stop_seconds=20)
submit(root, executor, ["here"], Resources(tasks_per_node=2))
handle = stage_folder(RUN, "here", Store(root)).latest_submission().handle
executor.wait([handle])
"""


@contextlib.contextmanager
def owner(root: Path, env: Mapping[str, str]) -> Iterator[None]:
    """A process that runs the stage on this machine, as `submit` with the local executor does."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(root)], cwd=REPOSITORY, env={**env}
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_drills_work_on_this_machine_without_a_scheduler(tmp_path: Path) -> None:
    env = {**os.environ, "ORCHESTRATE_HANG_SECONDS": "5"}
    with owner(tmp_path, env):
        for restart, fault in enumerate(("kill-node", "hang")):
            wait_for_steps(tmp_path, ["here"], f"s001r{restart:03d}")
            report = end_of(start_drill(tmp_path, fault, "here", env))
            assert report["came_back"]
            assert report["attempt"] == f"s001r{restart:03d}"
            assert report["did"].startswith("kill -")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "which fault? Name one of --preempt, --timeout, --kill-node, --hang"),
        (["--hang", "--timeout"], "which fault?"),
        (["--hang", "--yes"], "demo-0123abcd:pretrain does not run; no stage of it does"),
    ],
)
def test_a_drill_needs_one_fault_and_a_stage_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    FabricatedRun(tmp_path)
    monkeypatch.setitem(EXECUTORS, "fake", "tests.orchestrator.fabricated:FakeExecutor")
    words = ["drill", "demo:pretrain", *words, "--store", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_only_stages_whose_job_runs_are_offered(tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path)
    jobs = [run.submitted(name) for name in ("pretrain", "probe")]
    for name in ("pretrain", "probe"):
        run.started(name)
    executor = FakeExecutor(phases={jobs[0]: Phase.GONE, jobs[1]: Phase.RUNNING})
    with pytest.raises(UnknownName, match=r"report does not run; known: probe$"):
        find_target(run.run_id, "report", run.store, executor)


def test_a_scheduler_that_is_away_does_not_end_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, executor, said = FabricatedRun(tmp_path), FakeExecutor(), list[str]()
    run.submitted("pretrain")
    run.started("pretrain")

    def away(handles: Sequence[JobHandle]) -> None:
        raise SchedulerError("Unable to contact slurm controller")

    monkeypatch.setattr(executor, "query", away)
    target = Target(
        run_id=run.run_id,
        stage="pretrain",
        folder=run.stage("pretrain").path,
        executor="slurm",
        job="1",
        raw_job="1",
        attempt="s001r000",
        hosts=("n14",),
        world_size=1,
        step=3,
        saved=0,
    )
    report = follow(
        Fault.HANG, "kill", target, run.store, executor, said.append, patience_seconds=0
    )
    assert report.verdict.startswith("not past step 3")
    assert "the scheduler does not answer" in said[0]
