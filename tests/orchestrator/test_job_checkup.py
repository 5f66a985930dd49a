"""`doctor --job` on a private SLURM: real ranks over gloo, a queue that does not move, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.site import read_profile
from tests.slurm_cluster import PrivateSlurm

pytestmark = pytest.mark.slurm

REPOSITORY = Path(__file__).parents[2]
LATER = "+cluster.resources.extra.begin=now+1hour"


def start(slurm: PrivateSlurm, *words: str) -> Any:
    store = ("--store", str(slurm.shared / "doctor-store"))
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "orchestrator.cli",
            "doctor",
            "--job",
            "--gpus",
            "0",
            *words,
            *store,
        ],
        cwd=REPOSITORY,
        env={**slurm.env, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def ended(slurm: PrivateSlurm) -> Iterator[dict[str, tuple[int, str, str]]]:
    """Three at once: one that looks, one whose job does not start in time, one interrupted."""
    processes = {
        "looks": start(slurm, "--json", "cluster.resources.cpus_per_task=1"),
        "waits": start(slurm, LATER, "--patience", "0.1"),
        "interrupted": start(slurm, LATER),
    }
    interrupted = processes["interrupted"]
    slurm.wait_for(lambda: len(_waiting(slurm)) == 2 or interrupted.poll() is not None, 120)
    interrupted.send_signal(signal.SIGINT)
    outputs = {name: process.communicate(timeout=300) for name, process in processes.items()}
    yield {name: (processes[name].returncode, *outputs[name]) for name in processes}
    slurm.heal()


def _waiting(slurm: PrivateSlurm) -> list[str]:
    """The jobs that were told to begin later; cancelled ones no longer wait."""
    jobs = [job for job in slurm.squeue() if job["State"] == "PENDING"]
    return [job["JobID"] for job in jobs if job["Reason"] == "BeginTime"]


def test_two_nodes_are_looked_at_by_real_ranks(ended: dict[str, tuple[int, str, str]]) -> None:
    code, out, err = ended["looks"]
    assert code == 0, out + err
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert "2 nodes x 1 task, on n1, n2" in checks["job"]["found"]
    assert checks["all-reduce"]["found"].startswith("gloo, 2 ranks, ")
    assert checks["exclusive files"]["found"] == "20 claims by 2 ranks, 20 won"
    assert checks["signals"]["found"] == "SIGUSR2 arrived"
    assert checks["node packages"]["state"] == "ok" and "torch" in checks["node packages"]["found"]
    for name in ("node scontrol", "node sbatch", "shared files", "clocks", "node locks"):
        assert checks[name]["state"] == "ok", checks[name]


def test_what_it_found_is_kept_for_submissions(
    ended: dict[str, tuple[int, str, str]], slurm: PrivateSlurm
) -> None:
    store = slurm.shared / "doctor-store"
    (path,) = (store / "sites").glob("*.json")
    profile = read_profile(store, path.stem)
    assert profile is not None and profile.nodes == ("n1", "n2")
    assert (profile.scontrol_on_nodes, profile.sbatch_on_nodes) == (True, True)


def test_a_job_that_does_not_start_in_time_is_taken_back(
    ended: dict[str, tuple[int, str, str]],
) -> None:
    code, out, _ = ended["waits"]
    assert code == 3
    assert "still waited (BeginTime)" in out and "--patience" in out


def test_ctrl_c_takes_the_job_back(
    ended: dict[str, tuple[int, str, str]], slurm: PrivateSlurm
) -> None:
    assert ended["interrupted"][0] == 130
    slurm.wait_for(lambda: _waiting(slurm) == [], 30)


def test_gpus_that_a_cluster_does_not_have_are_refused_at_once(
    slurm_without_gpus: PrivateSlurm,
) -> None:
    """Both spellings and one node are tried before; what was said to the first is told."""
    process = start(slurm_without_gpus, "--gpus", "1")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 3
    assert "Invalid generic resource" in out
    assert slurm_without_gpus.live() == set()
