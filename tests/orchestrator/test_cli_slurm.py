"""The program on a real SLURM: it returns at once, waits without owning, follows, cancels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm_cluster import PrivateSlurm

pytestmark = pytest.mark.slurm

REPOSITORY = Path(__file__).parents[2]
RECIPE = """\
name: tiny
cluster: {{executor: slurm, resources: {{cpus_per_task: 1, hours: 0.2}}}}
tracking: {{enabled: false}}
stages:
  videos:
    kind: index
    workers: 1
    data: {{format: synthetic, size: 32, frames: 20, train: {train}, test: 8}}
"""


class Shell:
    """A login shell of the private cluster, in a folder that its nodes see."""

    def __init__(self, slurm: PrivateSlurm, folder: Path) -> None:
        self.environment = {
            **slurm.env,
            "ORCHESTRATE_STORE": str(folder / "store"),
            "OMP_NUM_THREADS": "1",
        }
        self.folder = folder

    def recipe(self, train: int) -> str:
        path = self.folder / "tiny.yaml"
        path.write_text(RECIPE.format(train=train))
        return str(path)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *words],
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def status(self) -> dict[str, dict[str, str]]:
        value = json.loads(self.run("status", "--json")[1])
        return {"run": value["run"], **{stage["name"]: stage for stage in value["stages"]}}


@pytest.fixture
def shell(slurm_here: PrivateSlurm, slurm_shared: Path) -> Shell:
    return Shell(slurm_here, slurm_shared)


def processes_of_session(session: int) -> list[int]:
    """Living processes whose session is the one that a started program opened."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_submit_returns_at_once_leaves_nothing_behind_and_the_run_succeeds(shell: Shell) -> None:
    process = shell.start("submit", shell.recipe(8))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "status: orchestrate status tiny-" in out
    assert processes_of_session(process.pid) == []
    assert shell.status()["videos"]["status"] in ("waiting", "running", "succeeded")
    code, out, _ = shell.run("logs", "latest:videos", "-f")
    assert code == 0
    assert "succeeded" in out
    code, out, _ = shell.run("status", "--watch")
    assert code == 0
    assert shell.status()["run"]["status"] == "succeeded"


def test_ctrl_c_while_waiting_leaves_the_job_alone_and_cancel_ends_it(shell: Shell) -> None:
    process = shell.start("submit", shell.recipe(20000), "--wait")
    assert process.stdout is not None
    while "videos: running" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("nothing was cancelled") == 1
    assert shell.status()["videos"]["status"] == "running"
    assert shell.run("cancel", "latest:videos")[1].endswith("cancelled videos\n")
    deadline = time.monotonic() + 60
    while shell.status()["videos"]["status"] != "cancelled":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert f"by {os.environ.get('USER', 'root')} on " in shell.status()["videos"]["reason"]


def test_a_job_the_scheduler_does_not_start_yet_is_waiting_and_says_why(
    shell: Shell, slurm_here: PrivateSlurm
) -> None:
    recipe = shell.recipe(8)
    assert shell.run("submit", recipe, "+cluster.resources.extra.begin=now+1hour")[0] == 0
    stage = shell.status()["videos"]
    assert stage["status"] == "waiting"
    assert "starts at the earliest at " in stage["reason"]
    assert stage["start_at"] > time.time() + 3000
    assert "(BeginTime)" in shell.run("why", "latest:videos")[1]
    assert shell.run("cancel", "latest")[0] == 0
    assert slurm_here.live() == set()


CHAIN = """\
name: chain
cluster: {executor: slurm, resources: {cpus_per_task: 1, hours: 0.2}}
tracking: {enabled: false}
data:
  many: {format: synthetic, size: 32, frames: 20, train: 20000, test: 8, classes: 4}
stages:
  pretrain:
    kind: pretrain
    data: ${data.many}
    method: {name: dpc, pred_steps: 2, augment: none}
    backbone: {name: r2d3d_tiny}
    clip: {blocks: 4, frames: 5, stride: 1, size: 32}
    max_steps: 4
    batch_size: 16
    micro_batch: 4
"""
VIDEOS = "index-synthetic"


def test_a_parent_that_died_takes_its_child_along_and_resume_continues_both_with_changes(
    shell: Shell, slurm_here: PrivateSlurm
) -> None:
    """From the terminal: ended with scancel, explained, resumed with other resources, cancelled."""
    recipe = shell.folder / "chain.yaml"
    recipe.write_text(CHAIN)
    code, _, err = shell.run("submit", str(recipe))
    assert code == 0, err
    first = shell.status()
    slurm_here.run("scancel", first[VIDEOS]["job_id"])
    slurm_here.wait_for(lambda: slurm_here.live() == set(), 60)
    stages = shell.status()
    assert (stages[VIDEOS]["status"], stages["pretrain"]["status"]) == ("lost", "blocked")
    code, out, _ = shell.run("why", "latest:pretrain")
    assert "waits:   index-synthetic (lost)" in out
    code, _, err = shell.run("resume", "latest", "--stage", "pretrain", "--nodes", "3")
    assert code == 2
    assert "--nodes may be 1, 2, 4" in err
    assert slurm_here.live() == set()
    code, out, _ = shell.run("resume", "latest", "--stage", "pretrain", "--nodes", "2")
    assert code == 0
    again = shell.status()
    assert again[VIDEOS]["job_id"] != first[VIDEOS]["job_id"]
    child = slurm_here.job(again["pretrain"]["job_id"])
    assert child["NumNodes"].startswith("2")
    assert f"afterok:{again[VIDEOS]['job_id']}" in child["Dependency"]
    assert shell.run("cancel", "latest")[1].endswith("cancelled pretrain, index-synthetic\n")
    slurm_here.wait_for(lambda: slurm_here.live() == set(), 60)
    assert shell.status()["run"]["status"] == "cancelled"
