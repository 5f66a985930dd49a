"""Gathers what is known when an attempt ends: the stage's records and the scheduler's view."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.causes import RankFailure, rules_of
from cluster.contract import ExitCode, SchedulerError
from cluster.decision import MAX_STALLED_ATTEMPTS, Ending, Memory, PastAttempt, SchedulerView
from cluster.exclusion import Placement
from cluster.inside import ask_for_job, command
from cluster.patience import Patience, Trouble, trouble_of
from cluster.progress import committed_step
from cluster.ranks import RankError, expand_hosts

ATTEMPT = re.compile(r"s(\d+)r(\d+)")
# A controller that is restarted or fails over is away for minutes. Where the script is killed soon
# (KillWait, 30 s by default), what is asked now has to be answered now.
_SECONDS_TO_ASK, _PATIENCE = 20.0, Patience(seconds=600.0)
_SECONDS_IN_A_HURRY, _HURRY = 4.0, Patience(seconds=10.0)
_DOWN = ("down", "fail")  # how sinfo begins the state of a node that is lost; `*`: no answer


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Which attempt of which stage just ended; `job_id` is None without SLURM.

    `restart` counts over all jobs of the submission, of which this one began with `base`.
    """

    stage: Path
    submission: int
    restart: int
    job_id: str | None
    base: int = 0

    @property
    def folder(self) -> Path:
        """Where the attempt's records lie."""
        return self.stage / "attempts" / f"s{self.submission:03d}r{self.restart:03d}"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The ending of an attempt, and what the scheduler and the claim of its submission say.

    `job` is what scontrol shows of the job, empty without SLURM; `asked` are the resources that
    the submission asked for.
    """

    ending: Ending
    job: Mapping[str, str]
    asked: Mapping[str, Any]

    @property
    def excluded(self) -> tuple[str, ...]:
        """Nodes that the job does without."""
        return hosts(self.job.get("ExcNodeList", ""))

    @property
    def excluded_by_recipe(self) -> tuple[str, ...]:
        """Those of them that the submission named."""
        return hosts(self.asked.get("exclude") or "")


def gather(attempt: Attempt, code: int, interrupted: bool, *, hurried: bool = False) -> Seen:
    """All that the decision is made on; `hurried`: only what can be known within seconds."""
    cancel = read(attempt.stage / "cancel.json")
    claim = read(attempt.stage / f"submission-{attempt.submission}.intent.json") or {}
    policy, asked = claim.get("policy") or {}, claim.get("resources") or {}
    job = _job(attempt, hurried)
    placement = _placement(attempt, asked)
    past = history(attempt)
    ending = Ending(
        exit_code=code,
        submission=attempt.submission,
        step=committed_step(attempt.stage),
        succeeded=_succeeded(attempt.stage),
        scheduler=_view(attempt, job, code, () if hurried else placement.nodes),
        agreed=(read(attempt.folder / "end.json") or {}).get("outcome") == "preempted",
        failures=_failures(attempt.folder),
        history=tuple(_past(record) for record in past),
        cancelled_by=None if cancel is None else f"{cancel.get('user')} on {cancel.get('host')}",
        interrupted=interrupted,
        max_stalled=int(policy.get("max_restarts_without_progress", MAX_STALLED_ATTEMPTS)),
        rules=rules_of(policy),
        placement=placement,
        memory=None if attempt.job_id is None else memory(attempt, asked, past),
    )
    return Seen(ending=ending, job=job or {}, asked=asked)


def read(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none that can be read: the epilogue decides without it."""
    try:
        return fsio.read_json_or_none(path)
    except (OSError, ValueError) as error:
        print(f"orchestrate: {error}", file=sys.stderr)
        return None


def hosts(text: str) -> tuple[str, ...]:
    """Names in a host list of SLURM's; empty where there is none or it cannot be read."""
    if text in ("", "(null)", "None", "N/A"):
        return ()
    try:
        return tuple(expand_hosts(text))
    except RankError as error:
        print(f"orchestrate: {error}", file=sys.stderr)
        return ()


def ask(*words: str) -> str | None:
    """What a command of SLURM printed; None where it failed, is not there or answers too late."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SINFO_")}
    done = command(*words, environ=clean)
    return done.stdout if done.returncode == 0 else None


def history(attempt: Attempt) -> tuple[Mapping[str, Any], ...]:
    """exit.json of the stage's earlier attempts, oldest first, with `submission` added."""
    past = []
    for (submission, _), folder in attempts_before(
        attempt.stage, attempt.submission, attempt.restart
    ):
        record = read(folder / "exit.json")
        if record is not None:
            past.append({**record, "submission": submission})
    return tuple(past)


def attempts_before(
    stage: Path, submission: int, restart: int
) -> list[tuple[tuple[int, int], Path]]:
    """Folders of the attempts before one, oldest first, by the numbers in their names, which have
    three digits or more."""
    folders = (stage / "attempts").glob("s*r*")
    found = [((int(m[1]), int(m[2])), f) for f in folders if (m := ATTEMPT.fullmatch(f.name))]
    return sorted(one for one in found if one[0] < (submission, restart))


def _past(record: Mapping[str, Any]) -> PastAttempt:
    counted = "counted" if record.get("self_ended") else "free"
    return PastAttempt(
        submission=int(record["submission"]),
        step=int(record.get("step", 0)),
        counted=record.get("policy", counted) == "counted",
    )


def memory(
    attempt: Attempt, asked: Mapping[str, Any], past: Sequence[Mapping[str, Any]]
) -> Memory | None:
    """What this attempt had: what was asked for, or what an earlier one was given more."""
    if not asked.get("mem_gb"):
        return None
    own = [one for one in past if one["submission"] == attempt.submission and one.get("mem_gb")]
    gb = float(own[-1]["mem_gb"] if own else asked["mem_gb"])
    return Memory(gb=gb, raises=len(own))


def _succeeded(stage: Path) -> bool:
    spec, result = read(stage / "stage.json"), read(stage / "result.json")
    return spec is not None and result is not None and result.get("key") == spec.get("key")


def _failures(folder: Path) -> tuple[RankFailure, ...]:
    records = [read(path) for path in sorted(folder.glob("failure-rank*.json"))]
    return tuple(
        RankFailure(
            rank=int(record["rank"]),
            exit_code=int(record["exit_code"]),
            cause=str(record["cause"]),
            at=float(record["at"]),
            host=str(record.get("host", "")),
            message=str(record.get("message", "")),
        )
        for record in records
        if record is not None and {"rank", "exit_code", "cause", "at"} <= record.keys()
    )


def _placement(attempt: Attempt, asked: Mapping[str, Any]) -> Placement:
    if attempt.job_id is None:
        return Placement()
    start = read(attempt.folder / "start.json") or {}
    listed = os.environ.get("SLURM_JOB_NODELIST") or str(start.get("hosts", ""))
    wanted = int(asked.get("nodes") or 0) * int(asked.get("tasks_per_node") or 0)
    return Placement(
        nodes=hosts(listed),
        world_size=int(start.get("world_size") or wanted),
        in_blocks="distribution" not in (asked.get("extra") or {}),
    )


def _job(attempt: Attempt, hurried: bool) -> dict[str, str] | None:
    """What SLURM shows of the job; empty without SLURM, None where nobody answered."""
    if attempt.job_id is None:
        return {}
    patience = _HURRY if hurried else _PATIENCE
    deadline = time.monotonic() + patience.seconds
    for pause in patience.pauses():
        fields = ask_for_job(attempt.job_id, _SECONDS_IN_A_HURRY if hurried else _SECONDS_TO_ASK)
        if not isinstance(fields, str):
            return fields
        trouble = trouble_of(SchedulerError(fields))
        if trouble is Trouble.REFUSED or time.monotonic() + pause > deadline:
            print(f"orchestrate: SLURM does not tell of this job: {fields.strip()}", flush=True)
            return None
        time.sleep(pause)
    raise AssertionError("pauses never end")


def _view(
    attempt: Attempt, job: Mapping[str, str] | None, code: int, nodes: Sequence[str]
) -> SchedulerView:
    if attempt.job_id is None:
        return SchedulerView()
    if job is None:
        # A cancel is none that nobody has told of: it would have ended the script long ago.
        return SchedulerView(answered=False)
    requeues = attempt.restart - attempt.base
    view = scheduler_view(job, requeues)
    # Before KillWait ends the script, a requeue has to be asked for: no other question then.
    hurried = (view.preempted or view.time_limit) and not view.requeued
    polite = code in (ExitCode.SUCCESS, ExitCode.PREEMPTED) and not view.requeued
    if not (hurried or polite):
        view = replace(view, lost_nodes=lost_nodes(nodes))
    return view


def scheduler_view(job: Mapping[str, str], restart: int) -> SchedulerView:
    """Read `scontrol show job` from inside the job's own batch script.

    While the script still runs, every ended job is COMPLETING, whatever ended it. What differs:
    after a requeue by the scheduler `Restarts` is ahead of this attempt's own count; a preemption
    that cancels sets PreemptTime; the time limit or a lost node is the reason; a cancelled job
    shows none of them.
    """
    return SchedulerView(
        running=job.get("JobState") == "RUNNING",
        requeued=int(job.get("Restarts", "0")) > restart,
        preempted=job.get("PreemptTime", "None") not in ("None", "N/A", "Unknown", "0", ""),
        time_limit=job.get("Reason") == "TimeLimit",
        node_failed=job.get("Reason") == "NodeDown",
    )


def lost_nodes(nodes: Sequence[str]) -> tuple[str, ...]:
    """Those of the nodes that are down or do not answer; nobody has to know for a decision."""
    if not nodes:
        return ()
    shown = ask("sinfo", "--noheader", "--Node", "--nodes", ",".join(nodes), "--format=%N %T")
    lines = (line.split() for line in (shown or "").splitlines())
    states = {words[0]: words[1] for words in lines if len(words) == 2}
    return tuple(
        node for node, state in states.items() if state.startswith(_DOWN) or state.endswith("*")
    )


def partition_size(partitions: str | None) -> int | None:
    """How many nodes there are in partitions (`a,b`); None where that cannot be found out.

    Without a name it is the partition that jobs get which ask for none.
    """
    shown = ask("sinfo", "--noheader", "--Node", "--format=%N %P")
    lines = [line.split() for line in (shown or "").splitlines()]
    wanted = set((partitions or "").split(",")) - {""}
    nodes = {
        words[0]
        for words in lines
        if len(words) == 2
        and (words[1].rstrip("*") in wanted if wanted else words[1].endswith("*"))
    }
    return len(nodes) or None
