"""What hits a running pretraining: each fault is done to the job as its cause would do it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.matrix.cells import Cell
from tests.slurm_cluster import PrivateSlurm
from tests.slurm_processes import all_pids, environment

LAST_RANK = 3


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How a fault comes about.

    Attributes:
        hit: does it, given cluster, cell and job id.
        step_seconds: pause behind every step of the first attempt, so that the fault hits the
            middle of it even where SLURM takes its time to notice.
        at_step: of 24: the first step behind which it hits.
        by_limit: whether it is the time limit, which is short then, and long steps to meet it.
        attempts: how many there must be at least; one where nothing ought to be lost.
        stage: which of the pipeline is hit.
        cancels: whether it is a user's own cancel, after which nothing goes on.
    """

    hit: Callable[[PrivateSlurm, Cell, str], None]
    step_seconds: float = 0.6
    at_step: int = 10
    by_limit: bool = False
    attempts: int = 2
    stage: str = "pretrain"
    cancels: bool = False


def _requeue(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    cluster.run("scontrol", "requeue", job_id)


def _preempt(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    cluster.preempt(2)


def _preempt_twice(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    """The second time as soon as the job, or the one that follows it, runs again."""
    cluster.preempt(2)
    name = cluster.job(job_id)["JobName"]
    cluster.wait_for(lambda: _state(cluster, name) != "RUNNING", 120)
    cluster.wait_for(lambda: _state(cluster, name) == "RUNNING", 240)
    cluster.preempt(2)


def _state(cluster: PrivateSlurm, name: str) -> str:
    mine = [job["State"] for job in cluster.squeue() if job["Name"] == name]
    return "RUNNING" if "RUNNING" in mine else "".join(mine[:1])


def _cancel(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    cluster.run("scancel", job_id)


def _signal(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    number = "TERM" if cell.accounting else "USR2"
    cluster.run("scancel", f"--signal={number}", job_id)


def _wait(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    """The limit comes by itself."""


def _kill_rank(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    os.kill(rank_pid(cluster, job_id, LAST_RANK), signal.SIGKILL)


def rank_pid(cluster: PrivateSlurm, job_id: str, rank: int) -> int:
    """The process that srun started for a rank: the oldest with its variables."""
    marks = {
        f"SLURM_JOB_ID={job_id}".encode(),
        f"SLURM_PROCID={rank}".encode(),
        f"SLURM_CONF={cluster.conf}".encode(),
    }
    return min(pid for pid in all_pids() if marks <= environment(pid))


def _nodes(cluster: PrivateSlurm, job_id: str) -> tuple[str, str]:
    """The node of the batch script and the other one."""
    job = cluster.job(job_id)
    names = cluster.run("scontrol", "show", "hostnames", job["NodeList"]).stdout.split()
    (other,) = set(names) - {job["BatchHost"]}
    return job["BatchHost"], other


def _kill_slurmd(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    batch, other = _nodes(cluster, job_id)
    cluster.kill_slurmd(other if cell.accounting else batch)


def _node_down(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    batch, other = _nodes(cluster, job_id)
    cluster.set_node(other if cell.accounting else batch, "down")


def _restart_controller(cluster: PrivateSlurm, cell: Cell, job_id: str) -> None:
    """In the middle of the attempt, and gone for longer than a step."""
    cluster.stop_controller()
    time.sleep(3)
    cluster.start_controller()


FAULTS: Mapping[str, Fault] = {
    "scontrol requeue": Fault(hit=_requeue),
    "preempting job": Fault(hit=_preempt),
    "scancel -s": Fault(hit=_signal),
    "time limit": Fault(hit=_wait, by_limit=True, at_step=0),
    "SIGKILL of a rank": Fault(hit=_kill_rank),
    # Its ranks live on until SLURM gives the node up, SlurmdTimeout and a timer later.
    "slurmd killed": Fault(hit=_kill_slurmd, step_seconds=4.0),
    "node set down": Fault(hit=_node_down),
    "slurmctld restarted": Fault(hit=_restart_controller, attempts=1),
    "preempted twice": Fault(hit=_preempt_twice, attempts=3, step_seconds=1.0),
    "preempted in finetuning": Fault(hit=_preempt, stage="finetune", at_step=1, step_seconds=1.0),
    "scancel": Fault(hit=_cancel, attempts=1, cancels=True),
}
