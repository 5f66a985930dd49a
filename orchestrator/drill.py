"""Rehearses a fault on a running stage, as any user may cause it."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cluster import fsio, strike
from cluster.contract import Executor, Phase, SchedulerError
from cluster.doctor import requeue, send_signal
from cluster.ranks import RankError, expand_hosts
from orchestrator.errors import nearest
from orchestrator.naming import UnknownName
from orchestrator.record import StageRecord, read_records
from orchestrator.store import Store

_STEP_SECONDS = 60  # for a step of ours beside the ranks to begin and end


class Fault(StrEnum):
    """What is rehearsed."""

    PREEMPT = "preempt"
    TIMEOUT = "timeout"
    KILL_NODE = "kill-node"
    HANG = "hang"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A running stage before anything is done to it.

    Attributes:
        attempt: id of the attempt that runs.
        raw_job: SLURM's own number of the job, which for a task of an array is not its name.
        step: the newest step it has reported; 0 where it reported none yet.
        saved: step of its newest checkpoint.
    """

    run_id: str
    stage: str
    folder: Path
    executor: str
    job: str
    raw_job: str
    attempt: str
    hosts: tuple[str, ...]
    world_size: int
    step: int
    saved: int

    @property
    def last_rank(self) -> int:
        """The one that is stopped in a drill of a hang."""
        return self.world_size - 1


def find_target(run_id: str, stage: str, store: Store, executor: Executor) -> Target:
    """The stage as it runs now.

    Raises:
        UnknownName: it does not run, or its ranks have not begun; the message says what it does.
        SchedulerError: nobody can say.
    """
    record = stage_record(run_id, stage, store)
    handle, attempt = record.handle, record.current
    where = f"{run_id}:{stage}"
    if record.result is not None or handle is None:
        running = _running(run_id, store, executor)
        raise UnknownName(f"{where} does not run; {nearest('', running) or 'no stage of it does'}")
    state = executor.query([handle])[handle]
    start = (attempt or {}).get("start")
    ended = (attempt or {}).get("exit")
    if state.phase is not Phase.RUNNING or attempt is None or not start or ended:
        words = state.reason or str(state.phase)
        raise UnknownName(f"{where} has no ranks at work now ({words}): wait until it runs")
    progress = record.progress or {}
    step = int(progress["step"]) if progress.get("attempt") == attempt["id"] else 0
    return Target(
        run_id=run_id,
        stage=stage,
        folder=record.folder.path,
        executor=handle.executor,
        # While a successor waits, the handle is about both jobs: this is the one at work.
        job=record.job_id(state) or handle.job_id,
        raw_job=str(start["job_id"]),
        attempt=str(attempt["id"]),
        hosts=_hosts(str(start["hosts"])),
        world_size=int(start["world_size"]),
        step=step,
        saved=record.folder.committed_step(),
    )


def _running(run_id: str, store: Store, executor: Executor) -> list[str]:
    """The stages that have a running job; one question to the scheduler."""
    records = [one for one in read_records(run_id, store) if one.handle is not None]
    states = executor.query([one.handle for one in records if one.handle is not None])
    return [
        str(one.plan["name"])
        for one in records
        if one.handle is not None and states[one.handle].phase is Phase.RUNNING
    ]


def _hosts(text: str) -> tuple[str, ...]:
    try:
        return tuple(expand_hosts(text))
    except RankError:
        return (text,)


def describe(fault: Fault, target: Target) -> str:
    """What would be done, in a sentence, for the person who is asked."""
    local = target.executor == "local"
    everyone = "all ranks" if local else f"all ranks of job {target.job}"
    return {
        Fault.PREEMPT: f"send TERM to {everyone}"
        if local
        else f"requeue job {target.job}, as a preemption does",
        Fault.TIMEOUT: f"send USR2 to {everyone}, as SLURM does ahead of the time limit",
        Fault.KILL_NODE: f"kill every process of the ranks on {target.hosts[-1]}",
        Fault.HANG: f"stop rank {target.last_rank} on {target.hosts[-1]}, so that all others wait",
    }[fault]


def inflict(fault: Fault, target: Target) -> str:
    """Do it; what was done, as a command that a person could have typed.

    The attempt is marked first, so that its end is not held against the node or the stage.

    Raises:
        SchedulerError: it was refused, or no rank was found.
    """
    mark = target.folder / "attempts" / target.attempt / "drill.json"
    fsio.write_json(mark, {"fault": fault, "user": getpass.getuser(), "at": time.time()})
    try:
        return _do(fault, target)
    except SchedulerError:
        mark.unlink(missing_ok=True)
        raise


def _do(fault: Fault, target: Target) -> str:
    if target.executor == "local":
        return _inflict_here(fault, target)
    if fault is Fault.PREEMPT:
        try:
            requeue(target.job)
        except SchedulerError:
            # Jobs that leave successors are not requeued; their ranks are told to end all the same.
            send_signal(target.job, "TERM")
            return f"scancel --signal=TERM {target.job}"
        return f"scontrol requeue {target.job}"
    if fault is Fault.TIMEOUT:
        send_signal(target.job, "USR2")
        return f"scancel --signal=USR2 {target.job}"
    node = target.hosts[-1]
    having = [f"SLURM_JOB_ID={target.raw_job}", f"SLURMD_NODENAME={node}"]
    if fault is Fault.HANG:
        having.append(f"SLURM_PROCID={target.last_rank}")
    step = ["srun", f"--jobid={target.raw_job}", "--overlap", "--nodes=1", "--ntasks=1"]
    words = _strike_words(fault, having)
    pids = _strike([*step, f"--nodelist={node}", *words])
    return f"kill -{words[2]} {' '.join(map(str, pids))} on {node}"


def _inflict_here(fault: Fault, target: Target) -> str:
    having = [f"RANK={target.last_rank}"] if fault is Fault.HANG else []
    words = [*_strike_words(fault, having), "--word", str(target.folder)]
    return f"kill -{words[2]} {' '.join(map(str, _strike(words)))}"


def _strike_words(fault: Fault, having: Sequence[str]) -> list[str]:
    signals = {
        Fault.PREEMPT: "TERM",
        Fault.TIMEOUT: "USR2",
        Fault.KILL_NODE: "KILL",
        Fault.HANG: "STOP",
    }
    words = [sys.executable, str(Path(strike.__file__).resolve()), signals[fault]]
    words += [word for text in having for word in ("--having", text)]
    return words if fault is Fault.KILL_NODE else [*words, "--only"]


def _strike(command: Sequence[str]) -> list[int]:
    """Run it; the processes that were hit. Raises SchedulerError."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_STEP_SECONDS,
        )
        found = json.loads(done.stdout or "{}").get("pids", [])
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise SchedulerError(f"{command[0]}: {error}") from error
    if not found:
        why = done.stderr.strip() or "no process of its ranks was found"
        raise SchedulerError(f"{command[0]}: {why}; nothing was done")
    return [int(pid) for pid in found]


def stage_record(run_id: str, stage: str, store: Store) -> StageRecord:
    """What the files of the stage say now."""
    return next(one for one in read_records(run_id, store) if one.plan["name"] == stage)
