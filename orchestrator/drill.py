"""Rehearses a fault on a running stage, as any user may, and follows until the stage goes on."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from cluster import fsio, strike
from cluster.contract import Executor, Phase, SchedulerError
from cluster.doctor import requeue, send_signal
from cluster.ranks import RankError, expand_hosts
from orchestrator.errors import nearest
from orchestrator.naming import UnknownName
from orchestrator.record import StageRecord, read_records
from orchestrator.store import Store

_POLL_SECONDS = 2.0
_STEP_SECONDS = 60  # for a step of ours beside the ranks to begin and end
_LOST_SECONDS = 60.0  # without job and without attempt, until nobody waits any longer
Say = Callable[[str], None]


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


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of it; seconds are from the fault on, None where it did not come to that.

    Attributes:
        did: the command or signal.
        step: what the attempt had reached in the end.
        saved: step from which the next attempt went on.
        ended_after: until the attempt had ended.
        began_after: until the next attempt began.
        lost: until the stage was past `step` again.
    """

    run_id: str
    stage: str
    fault: Fault
    did: str
    job: str
    attempt: str
    step: int
    saved: int | None = None
    next_attempt: str | None = None
    next_job: str | None = None
    decision: str = ""
    reason: str = ""
    cause: str | None = None
    ended_after: float | None = None
    began_after: float | None = None
    lost: float | None = None
    came_back: bool = False
    verdict: str = ""

    @property
    def steps_repeated(self) -> int | None:
        """Steps that were done twice."""
        return None if self.saved is None else max(0, self.step - self.saved)

    def lines(self) -> list[str]:
        """As a person reads it."""
        told = [f"{self.run_id}:{self.stage}, job {self.job}: {self.did}"]
        if self.ended_after is not None:
            why = f"{self.decision}: {self.reason}"
            told.append(f"  {self.attempt} ended after {self.ended_after:.0f} s ({why})")
        if self.began_after is not None:
            other = f" as job {self.next_job}" if self.next_job != self.job else ""
            told.append(f"  {self.next_attempt} began after {self.began_after:.0f} s{other}")
        if not self.came_back:
            return [*told, f"  did not come back: {self.verdict}"]
        count = "1 step was" if self.steps_repeated == 1 else f"{self.steps_repeated} steps were"
        repeated = f"{count} done twice ({self.saved} to {self.step})"
        nothing = f"no step was done twice (saved at {self.saved})"
        told.append(f"  {self.verdict} after {self.lost:.0f} s, so much was lost")
        return [*told, f"  {repeated if self.steps_repeated else nothing}"]

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "steps_repeated": self.steps_repeated}


def find_target(run_id: str, stage: str, store: Store, executor: Executor) -> Target:
    """The stage as it runs now.

    Raises:
        UnknownName: it does not run, or its ranks have not begun; the message says what it does.
        SchedulerError: nobody can say.
    """
    record = _record(run_id, stage, store)
    handle, attempt = record.handle, record.current
    where = f"{run_id}:{stage}"
    if record.result is not None or handle is None:
        running = _running(run_id, store)
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


def _running(run_id: str, store: Store) -> list[str]:
    records = read_records(run_id, store)
    return [str(one.plan["name"]) for one in records if one.result is None and one.current]


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


def follow(
    fault: Fault,
    did: str,
    target: Target,
    store: Store,
    executor: Executor,
    say: Say,
    *,
    patience_seconds: float,
) -> Report:
    """Wait until the stage is past where it was, has ended for good, or patience is over."""
    watch = _Watch(fault=fault, did=did, target=target)
    while True:
        watch.look(_record(target.run_id, target.stage, store), executor)
        say(watch.words())
        if watch.verdict:
            return watch.report()
        if time.time() - watch.since > patience_seconds:
            watch.verdict = f"not past step {watch.step} after {patience_seconds / 60:.0f} minutes"
            return watch.report()
        time.sleep(_POLL_SECONDS)


class _Watch:
    """A stage from the fault on."""

    def __init__(self, *, fault: Fault, did: str, target: Target) -> None:
        self._fault, self._did, self._target = fault, did, target
        self.since = time.time()
        self.step = target.step
        self.verdict = ""
        self._back: float | None = None
        self._gone_since: float | None = None
        self._phase = ""
        self._old: Mapping[str, Any] = {}
        self._new: Mapping[str, Any] = {}
        self._new_job: str | None = None
        self._saved: int | None = None

    def look(self, record: StageRecord, executor: Executor) -> None:
        """Take in what the files and the scheduler say; sets `verdict` when that is the end."""
        target = self._target
        for one in record.attempts:
            if one["id"] == target.attempt:
                self._old = one
        progress = record.progress or {}
        at = int(progress.get("step", 0))
        if progress.get("attempt") == target.attempt:
            self.step = max(self.step, at)
        current = record.current
        if current is not None and current["id"] > target.attempt and current["start"]:
            if not self._new:
                self._saved = self._step_saved(record)
            self._new, self._new_job = current, record.job_id(None)
        self._judge(record, executor, at if progress.get("attempt") == self._new.get("id") else -1)

    def _step_saved(self, record: StageRecord) -> int:
        """Where the old attempt left off; the new one may have saved since."""
        ended = self._old.get("exit") or {}
        return int(ended["step"]) if "step" in ended else record.folder.committed_step()

    def _judge(self, record: StageRecord, executor: Executor, step: int) -> None:
        ended = self._old.get("exit") or {}
        if record.result is not None:
            self._back = time.time() if self._new else None
            self.verdict = "finished" if self._new else "it had finished before this hit it"
        elif self._new and step > self.step:
            self._back, self.verdict = time.time(), "goes on"
        elif record.handle is None:
            self.verdict = "it has no job any more"
        else:
            state = executor.query([record.handle])[record.handle]
            self._phase = f"{state.phase} {state.reason}".strip()
            if state.phase is not Phase.GONE:
                self._gone_since = None
                return
            self._gone_since = self._gone_since or time.time()
            if ended.get("decision") == "stop" or time.time() - self._gone_since > _LOST_SECONDS:
                self.verdict = str(ended.get("reason") or "its job is gone and nothing follows it")

    def words(self) -> str:
        """How far it is, in one line."""
        seconds = time.time() - self.since
        ended = self._old.get("exit")
        if self._new:
            what = f"attempt {self._new['id']} runs, on the way to step {self.step}"
        elif ended:
            what = f"ended at step {ended.get('step')} ({ended.get('reason')}), job {self._phase}"
        else:
            what = f"still at step {self.step}, job {self._phase}"
        return f"{self._target.stage} {seconds:.0f} s after `{self._did}`: {what}"

    def report(self) -> Report:
        """All that was seen."""
        target, ended, start = self._target, self._old.get("exit") or {}, self._new.get("start")
        report = Report(
            run_id=target.run_id,
            stage=target.stage,
            fault=self._fault,
            did=self._did,
            job=target.job,
            attempt=target.attempt,
            step=self.step,
            decision=str(ended.get("decision", "")),
            reason=str(ended.get("reason", "")),
            cause=ended.get("cause"),
            ended_after=self._after(ended.get("finished_at")),
            verdict=self.verdict,
        )
        if not start:
            return report
        return replace(
            report,
            saved=self._saved,
            next_attempt=str(self._new["id"]),
            next_job=self._new_job,
            began_after=self._after(start["started_at"]),
            lost=self._after(self._back),
            came_back=self._back is not None,
        )

    def _after(self, at: float | None) -> float | None:
        return None if at is None else round(max(0.0, float(at) - self.since), 1)


def _record(run_id: str, stage: str, store: Store) -> StageRecord:
    return next(one for one in read_records(run_id, store) if one.plan["name"] == stage)
