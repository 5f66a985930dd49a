"""Answers why a stage stands as it does: cause, evidence, history, what was new, next command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.decision import ACTIVE, Status
from orchestrator.differences import Difference, difference
from orchestrator.endings import Decided, decided, ending
from orchestrator.pending import clock
from orchestrator.record import Attempt, StageRecord, read_records
from orchestrator.status import RunStatus, StageStatus, run_object
from orchestrator.store import SCHEMA_VERSION, Store

_INPUTS_SAY = frozenset({Status.WAITING, Status.BLOCKED})


@dataclass(frozen=True, kw_only=True)
class PastAttempt:
    """One attempt of a stage: where and when it was, how it ended, what was decided then."""

    id: str
    job_id: str
    host: str
    started_at: float | None
    ended: str
    decision: Decided | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """All that is known of why a stage stands as it does.

    Attributes:
        stage: its status, with cause, evidence and next command.
        waits_for: stages it takes from that are not finished, with their status.
        attempts: oldest first; the one that runs has no end.
        made_by: the run whose result it uses; empty where that is its own.
        differs: what of it was new compared with the newest earlier run of the recipe.
        scheduler: what accounting says of the end of a job that left no record.
    """

    stage: StageStatus
    waits_for: Mapping[str, Status]
    attempts: tuple[PastAttempt, ...]
    made_by: str = ""
    differs: Difference | None = None
    scheduler: str = ""


def answers(run: RunStatus, store: Store, only: str | None = None) -> list[Answer]:
    """The answers for all stages of a run, or for one of them.

    Accounting (sacct) is asked only for one stage, and only where its job is gone without a record.
    """
    stages = {stage.name: stage for stage in run.stages}
    records = {str(record.plan["name"]): record for record in read_records(run.run_id, store)}
    names = [name for name in stages if only in (None, name)]
    found = [_answer(run.run_id, stages[name], stages, records[name], store) for name in names]
    if only is None:
        return found
    return [replace(one, scheduler=_remembered(records[one.stage.name], one)) for one in found]


def _remembered(record: StageRecord, answer: Answer) -> str:
    """What accounting says of a job that is gone and whose end left no record."""
    told = record.current is not None and record.current["exit"]
    if answer.stage.status is not Status.LOST or told or record.handle is None:
        return ""
    if record.handle.executor != "slurm":
        return ""
    from cluster.history import read_history

    try:
        history = read_history([record.handle])
    except ValueError as error:  # of a version whose output is not known: it only explains
        return f"sacct: {error}"
    rows = history.attempts.get(record.handle, ())
    if not rows:
        return history.unknown or "accounting does not know the job"
    last = rows[-1]
    nodes = f" on {last.nodes}" if last.nodes else ""
    return f"{last.state}{nodes}" + (f" at {clock(last.ended_at)}" if last.ended_at else "")


def _answer(
    run_id: str,
    stage: StageStatus,
    stages: Mapping[str, StageStatus],
    record: StageRecord,
    store: Store,
) -> Answer:
    maker = record.submission.run_id if record.submission else run_id
    reused = stage.status is Status.SUCCEEDED and maker != run_id
    waits = {name: stages[name].status for name in stage.after if name in stages}
    return Answer(
        stage=stage,
        waits_for={
            name: status
            for name, status in waits.items()
            if stage.status in _INPUTS_SAY and status is not Status.SUCCEEDED
        },
        attempts=tuple(_past(attempt, stage, record) for attempt in record.attempts),
        made_by=maker if reused else "",
        differs=None if reused or stage.part_of else difference(run_id, stage.name, store),
    )


def _past(attempt: Attempt, stage: StageStatus, record: StageRecord) -> PastAttempt:
    start = attempt["start"] or {}
    newest = bool(record.attempts) and attempt["id"] == record.attempts[-1]["id"]
    runs = newest and stage.status is Status.RUNNING
    done = (attempt["end"] or {}).get("outcome") == "succeeded"
    done = done or (newest and stage.status is Status.SUCCEEDED)
    return PastAttempt(
        id=str(attempt["id"]),
        job_id=str(start.get("job_id") or _job_of(str(attempt["id"]), record) or ""),
        host=str(start.get("host") or ""),
        started_at=start.get("started_at"),
        ended="" if runs else "succeeded" if done else ending(attempt),
        decision=decided(attempt),
    )


def _job_of(attempt: str, record: StageRecord) -> str | None:
    """The job that the submission's record names, where the attempt knew of none, as on a host."""
    n, _, number = attempt.removeprefix("s").partition("r")
    jobs = record.folder.jobs(int(n)).items()
    return next((job for first, job in reversed(list(jobs)) if first <= int(number)), None)


def quiet(answer: Answer) -> bool:
    """Whether there is nothing to say of a stage among others: it is done, or parts of it work."""
    stage = answer.stage
    fine = stage.status is Status.SUCCEEDED or stage.status in ACTIVE
    return bool(stage.part_of) and fine


def to_json(run: RunStatus, found: Sequence[Answer]) -> dict[str, Any]:
    """The object of `why --json`; docs/cli.md documents its fields."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run_object(run),
        "stages": [_object(answer) for answer in found],
    }


def _object(answer: Answer) -> dict[str, Any]:
    stage = answer.stage
    return {
        "name": stage.name,
        "status": str(stage.status),
        "job_id": stage.job_id,
        **asdict(stage.told),
        "start_at": stage.start_at,
        "waits_for": {name: str(status) for name, status in answer.waits_for.items()},
        "attempts": [asdict(attempt) for attempt in answer.attempts],
        "made_by": answer.made_by or None,
        "differs": asdict(answer.differs) if answer.differs else None,
        "scheduler": answer.scheduler,
    }
