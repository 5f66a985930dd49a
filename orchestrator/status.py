"""Status of runs: their files are read once, the scheduler is asked once, nothing is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.contract import Executor, JobHandle, JobState, Phase, SchedulerError
from orchestrator.decision import ACTIVE, Facts, Last, Status, blocked_by, decide, overall
from orchestrator.endings import Decided, decided, excluded_nodes
from orchestrator.explain import Commands, Told, explain, explain_blocked
from orchestrator.lost import lost_seconds
from orchestrator.record import Attempt, StageRecord, read_records
from orchestrator.store import SCHEMA_VERSION, Store


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """One stage of a run now.

    `told` says why: a reason and, where something is wrong, the file that shows it and the command
    to run next. `after` names the stages it takes inputs from, `part_of` the stage whose work it
    does a share of. `lost_seconds` is work that was done twice (see `orchestrator.lost`),
    `start_at` when a waiting job is expected to start, `decision` what was decided at the end of
    the newest attempt that ended, `excluded` the nodes that the next one will not get.
    """

    name: str
    kind: str
    status: Status
    key: str
    job_id: str | None = None
    attempts: int = 0
    lost_seconds: float = 0.0
    start_at: float | None = None
    progress: Mapping[str, Any] | None = None
    told: Told = field(default_factory=Told)
    after: tuple[str, ...] = ()
    folder: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    part_of: str | None = None
    decision: Decided | None = None
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run and its stages in order; `scheduler_error` says why no scheduler could be asked."""

    run_id: str
    recipe: str
    executor: str
    user: str
    host: str
    created_at: float
    store: str
    stages: tuple[StageStatus, ...]
    scheduler_error: str = ""

    @property
    def done(self) -> bool:
        """Whether nothing of the run is queued or running."""
        return not any(stage.status in ACTIVE for stage in self.stages)

    @property
    def status(self) -> Status:
        """The run as a whole: what is still going on, else the worst that came out."""
        return overall(stage.status for stage in self.stages)


def read_status(run_id: str, store: Store, executor: Executor | None) -> RunStatus:
    """Status of a run: one reading of its files and one call to the scheduler.

    Args:
        run_id: the run, in full.
        store: where it lies.
        executor: whom to ask for the jobs; None where it cannot be made on this machine.

    Raises:
        FileNotFoundError: there is no such run.
    """
    (status,) = read_statuses([run_id], store, executor)
    return status


def read_statuses(
    run_ids: Sequence[str], store: Store, executor: Executor | None
) -> list[RunStatus]:
    """Status of several runs of one executor, with one call to the scheduler for all of them."""
    runs = {run_id: read_records(run_id, store) for run_id in run_ids}
    states: Mapping[JobHandle, JobState] | None = None
    error = "no scheduler can be asked from this machine"
    if not any(record.handle or record.claimed for records in runs.values() for record in records):
        states, error = {}, ""
    elif executor is not None:
        try:
            runs = {
                run_id: [_adopt(record, executor) for record in records]
                for run_id, records in runs.items()
            }
            states, error = _query(runs.values(), executor), ""
        except SchedulerError as refused:
            error = str(refused)
    return [_assemble(run_id, store, records, states, error) for run_id, records in runs.items()]


def _query(
    runs: Iterable[Sequence[StageRecord]], executor: Executor
) -> Mapping[JobHandle, JobState]:
    """The states of this executor's jobs; nobody can be asked here about another one's."""
    handles = {record.handle for records in runs for record in records if record.handle}
    mine = [handle for handle in handles if handle.executor == executor.name]
    return executor.query(sorted(mine, key=lambda one: one.job_id)) if mine else {}


def _adopt(record: StageRecord, executor: Executor) -> StageRecord:
    """Of a claim without a record, left by a killed submitter, the job that may have come of it."""
    if not record.claimed or record.claim is None:
        return record
    return replace(
        record, adopted=executor.find(str(record.claim["job_name"]), record.claim.get("task"))
    )


def status_from(run_id: str, store: Store, states: Mapping[JobHandle, JobState]) -> RunStatus:
    """Status of a run where the states of its jobs are known already, as in `Executor.wait`."""
    return _assemble(run_id, store, read_records(run_id, store), states)


def _assemble(
    run_id: str,
    store: Store,
    records: Sequence[StageRecord],
    states: Mapping[JobHandle, JobState] | None,
    scheduler_error: str = "",
) -> RunStatus:
    """Walk the stages in order, so that each knows what became of its upstream."""
    run = store.read_run(run_id)
    commands = Commands.of(run_id, store)
    stages: dict[str, StageStatus] = {}
    for record in records:
        state = _state(record, states)
        upstream = {name: stages[name] for name in record.plan["upstream"]}
        stage = _stage_status(record, state, upstream, commands)
        stages[stage.name] = stage
    finished = {name for name, stage in stages.items() if stage.status is Status.SUCCEEDED}
    return RunStatus(
        run_id=run_id,
        recipe=str(run.get("recipe", "")),
        executor=str(run.get("executor", "")),
        user=str(run.get("user", "")),
        host=str(run.get("host", "")),
        created_at=float(run.get("created_at", 0.0)),
        store=str(store.root),
        stages=tuple(s for s in stages.values() if s.part_of not in finished or _in_sight(s)),
        scheduler_error=scheduler_error,
    )


def _in_sight(part: StageStatus) -> bool:
    """Whether a part still matters though the whole is done: its failure or absence does not."""
    return part.status is Status.SUCCEEDED or part.status in ACTIVE


def _state(record: StageRecord, states: Mapping[JobHandle, JobState] | None) -> JobState | None:
    """The job's state; `gone` where there is no job, None where nobody could be asked about it."""
    if record.handle is None and not record.claimed:
        return JobState(phase=Phase.GONE)
    if states is None or record.handle is None:
        return None
    # Who waits since before there was a successor has asked for the job before it.
    before = record.handle.before
    return states.get(record.handle) or (states.get(before) if before else None)


def _stage_status(
    record: StageRecord,
    state: JobState | None,
    upstream: Mapping[str, StageStatus],
    commands: Commands,
) -> StageStatus:
    last = last_of(record.current)
    status = decide(facts_of(record, state))
    blocker = blocked_by(status, last, {name: one.status for name, one in upstream.items()})
    if blocker is None:
        told = explain(status, record, state, commands)
    else:
        status, cause = Status.BLOCKED, upstream[blocker]
        told = explain_blocked(blocker, cause.status, cause.told)
    result = record.result or {}
    waits = state is not None and state.phase is Phase.PENDING
    return StageStatus(
        name=record.plan["name"],
        kind=record.plan["kind"],
        status=status,
        key=record.plan["key"],
        job_id=record.job_id(state),
        attempts=len(record.attempts),
        lost_seconds=lost_seconds(
            record.folder.metrics_file,
            record.attempts,
            alive=status is Status.RUNNING,
            finished=status is Status.SUCCEEDED,
        ),
        start_at=state.start_at if state is not None and waits else None,
        progress=record.progress,
        told=told,
        after=tuple(upstream),
        folder=str(record.folder.path),
        metrics=result.get("metrics", {}),
        part_of=record.plan.get("part_of"),
        decision=_last_decision(record.attempts),
        excluded=excluded_nodes(record.attempts),
    )


def _last_decision(attempts: Sequence[Attempt]) -> Decided | None:
    found = (decided(attempt) for attempt in reversed(attempts))
    return next((one for one in found if one is not None), None)


def facts_of(record: StageRecord, state: JobState | None) -> Facts:
    """What the decision table needs of a stage; `state` is None where nobody could be asked."""
    now = record.current
    return Facts(
        result=record.result is not None,
        cancelled=record.cancel is not None or _by_scancel(now),
        submitted=(record.submission is not None and not record.claimed) or bool(record.adopted),
        last=last_of(now),
        stopped=bool(now and now["exit"] and _gave_up(now["exit"])),
        phase=state.phase if state else None,
        never_starts=bool(state and "DependencyNeverSatisfied" in state.reason),
    )


def _by_scancel(attempt: Attempt | None) -> bool:
    """Whether the epilogue found that a person had ended the job without telling the store."""
    ended = (attempt or {}).get("exit") or {}
    return ended.get("cause") == "cancelled" and ended.get("decision") == "stop"


def _gave_up(ended: Mapping[str, Any]) -> bool:
    """Whether the epilogue stopped the stage for its own fault, a missing result included."""
    own_fault = bool(ended.get("self_ended", True)) or ended.get("job_exit_code") == 0
    return ended.get("decision") == "stop" and own_fault


def last_of(attempt: Attempt | None) -> Last:
    """How an attempt stands by its own records."""
    if attempt is None:
        return "none"
    outcome = (attempt["end"] or {}).get("outcome")
    if outcome == "preempted":
        return "preempted"
    # A rank that was killed says nothing of the stage: it may have been stopped with its job.
    failed = any(failure["cause"] != "killed" for failure in attempt["failures"])
    if outcome == "failed" or (outcome is None and failed):
        return "failed"
    return "started"


def to_json(run: RunStatus) -> dict[str, Any]:
    """The object of `status --json`; docs/cli.md documents its fields."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run_object(run),
        "stages": [
            {
                **{name: value for name, value in asdict(stage).items() if name != "told"},
                "status": str(stage.status),
                "after": list(stage.after),
                "excluded": list(stage.excluded),
                **asdict(stage.told),
            }
            for stage in run.stages
        ],
    }


def run_object(run: RunStatus) -> dict[str, Any]:
    """What `status --json` and `list --json` say of a run as a whole."""
    fields = {
        name: value for name, value in asdict(run).items() if name not in ("run_id", "stages")
    }
    return {"id": run.run_id, "status": str(run.status), "done": run.done, **fields}
