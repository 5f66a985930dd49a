"""The program where a stage goes on in another job: waited for, shown and cancelled as one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.orchestrator.test_cli_slurm import Shell
from tests.slurm_cluster import PrivateSlurm

pytestmark = pytest.mark.slurm


@pytest.fixture
def shell(slurm_here: PrivateSlurm, slurm_shared: Path) -> Shell:
    return Shell(slurm_here, slurm_shared)


def _running(shell: Shell) -> str:
    """The job at work, when its ranks have begun."""
    stage = shell.status()["videos"]
    return stage["job_id"] if stage["status"] == "running" and stage["attempts"] else ""


def test_a_stage_that_goes_on_in_another_job_is_one_stage_for_every_command(
    shell: Shell, slurm_here: PrivateSlurm
) -> None:
    recipe = shell.recipe(40_000)
    chosen = "+cluster.transport=successor"
    planned = json.loads(shell.run("plan", recipe, chosen, "--json")[1])
    assert planned["run"]["transport"] == {
        "name": "successor",
        "why": "cluster.transport=successor",
    }
    waiting = shell.start("submit", recipe, chosen, "--wait")
    assert waiting.stdout is not None
    while "videos: running" not in waiting.stdout.readline():
        assert waiting.poll() is None, waiting.communicate()
    slurm_here.wait_for(lambda: _running(shell) != "", 120)
    first = _running(shell)
    (start,) = shell.folder.glob("store/stages/index-*/attempts/s001r000/start.json")
    os.kill(json.loads(start.read_text())["pid"], signal.SIGKILL)
    slurm_here.wait_for(lambda: _running(shell) not in ("", first), 120)
    second = _running(shell)
    assert int(second) > int(first)
    assert waiting.poll() is None
    code, out, err = shell.run("cancel", "latest", "--yes")
    assert code == 0, err + out
    slurm_here.wait_for(lambda: slurm_here.live() == set(), 60)
    assert shell.status()["videos"]["status"] == "cancelled"
    out, err = waiting.communicate(timeout=120)
    assert "cancelled" in out, err
    logs = shell.run("logs", "latest:videos")[1]
    assert "rank 0 of 1" in logs
    names = {path.name for path in shell.folder.glob("store/stages/index-*/logs/*_0_log.out")}
    assert {f"{first}_0_log.out", f"{second}_0_log.out"} <= names
