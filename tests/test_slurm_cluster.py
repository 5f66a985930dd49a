"""The private cluster itself: fast up, gone with the test that started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm_cluster import REPOSITORY, PrivateSlurm, missing_for_accounting

pytestmark = pytest.mark.slurm

OWNER = """
import json, sys, time
from tests.slurm_cluster import PrivateSlurm
cluster = PrivateSlurm()
cluster.start()
cluster.sbatch("-N2", "--output=/dev/null", "--wrap=srun sleep 600")
cluster.wait_for(lambda: cluster.squeue()[0]["State"] == "RUNNING", 20)
time.sleep(0.5)
pids = sorted(pid for node in cluster.nodes for pid in cluster._processes(node))
print(json.dumps({"root": str(cluster.root), "pids": pids}), flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_cluster_dies_with_the_process_that_started_it(slurm: PrivateSlurm) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    line = json.loads(owner.stdout.readline())
    root, pids = Path(line["root"]), line["pids"]
    assert len(pids) >= 7  # two slurmd, three step daemons, two tasks at least
    assert root.is_dir() and all(alive(pid) for pid in pids)
    owner.kill()
    owner.communicate()
    deadline = time.monotonic() + 10
    while root.exists() or any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "something of the cluster is left"
        time.sleep(0.05)


def test_two_clusters_live_side_by_side_and_start_in_a_second_or_two(slurm: PrivateSlurm) -> None:
    begun = time.monotonic()
    with PrivateSlurm(num_nodes=3, cpus=4, gpus=0) as other:
        assert time.monotonic() - begun < 5
        assert other.node_states() == {"n1": "idle", "n2": "idle", "n3": "idle"}
        assert set(slurm.node_states()) == {"n1", "n2"}
        root = other.root
    assert not root.exists()


def test_a_node_that_was_killed_can_be_started_again(slurm: PrivateSlurm) -> None:
    slurm.kill_node("n2")
    slurm.heal()
    assert slurm.node_states() == {"n1": "idle", "n2": "idle"}
    assert os.environ.get("SLURM_CONF") is None


def test_a_cluster_can_be_one_that_cancels_warns_forgets_and_keeps_accounts(
    slurm: PrivateSlurm,
) -> None:
    if missing := missing_for_accounting():
        pytest.skip(f"accounting needs: apt-get install {' '.join(missing)}")
    wanted = {
        "PreemptMode": "CANCEL",
        "SlurmctldParameters": "preempt_send_user_signal",
        "JobRequeue": "0",
        "MinJobAge": "2 sec",
        "KillWait": "7 sec",
        "AccountingStorageType": "accounting_storage/slurmdbd",
    }
    with PrivateSlurm(
        preempt_mode="CANCEL",
        grace_seconds=5,
        user_signal=True,
        job_requeue=False,
        min_job_age=2,
        kill_wait=7,
        accounting=True,
    ) as other:
        text = other.run("scontrol", "show", "config").stdout
        shown = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        seen = {key.strip(): value.strip() for key, value in shown.items()}
        assert {key: seen[key] for key in wanted} == wanted
        assert "GraceTime=5" in other.run("scontrol", "show", "partition", "main").stdout
        job = other.sbatch("--output=/dev/null", "--wrap=exit 3")
        ask = ("sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode")
        other.wait_for(lambda: other.run(*ask).stdout.strip() == "FAILED|3:0", 60)
        other.wait_for(lambda: other.job(job) == {}, 120)


def test_a_controller_that_is_restarted_knows_its_jobs(slurm: PrivateSlurm) -> None:
    job = slurm.sbatch("--output=/dev/null", "--wrap=sleep 600")
    slurm.wait_for(lambda: slurm.job(job).get("JobState") == "RUNNING", 20)
    slurm.stop_controller()
    slurm.start_controller()
    assert slurm.job(job)["JobState"] == "RUNNING"
    slurm.heal()
