"""The decision table, line by line, and what `status` tells of a run laid out by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from cluster import fsio
from cluster.contract import Phase
from orchestrator.decision import Facts, Last, Status, blocked_by, decide
from orchestrator.endings import Decided
from orchestrator.status import RunStatus, StageStatus, read_status, status_from, to_json
from orchestrator.store import Store
from tests.orchestrator.fabricated import (
    FAILED,
    PREEMPTED,
    FabricatedRun,
    FakeExecutor,
    failure,
    handle,
)

PENDING, RUNNING, GONE = Phase.PENDING, Phase.RUNNING, Phase.GONE
LASTS: tuple[Last, ...] = ("none", "started", "preempted", "failed")
PHASES = (PENDING, RUNNING, GONE, None)
FLAGS = (False, True)

# The design's table, for a stage that was submitted and neither finished, cancelled nor stopped.
EXPECTED = {
    "none": ("waiting", "running", "lost", "waiting"),
    "started": ("requeued", "running", "lost", "running"),
    "preempted": ("requeued", "running", "lost", "requeued"),
    "failed": ("requeued", "requeued", "failed", "failed"),
}


@pytest.fixture
def run(tmp_path: Path) -> FabricatedRun:
    return FabricatedRun(tmp_path / "store")


def read(run: FabricatedRun, executor: FakeExecutor | None = None) -> dict[str, StageStatus]:
    status = read_status(run.run_id, run.store, executor or FakeExecutor())
    return {stage.name: stage for stage in status.stages}


@pytest.mark.parametrize("last", LASTS)
def test_the_table_of_the_design_holds_line_by_line(last: Last) -> None:
    found = tuple(str(decide(Facts(submitted=True, last=last, phase=phase))) for phase in PHASES)
    assert found == EXPECTED[last]


@pytest.mark.parametrize("last", LASTS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("cancelled", "stopped", "never"), itertools.product(FLAGS, FLAGS, FLAGS))
def test_a_valid_result_is_success_whatever_else_is_known(
    last: Last, phase: Phase | None, cancelled: bool, stopped: bool, never: bool
) -> None:
    facts = Facts(
        result=True,
        submitted=True,
        cancelled=cancelled,
        last=last,
        stopped=stopped,
        phase=phase,
        never_starts=never,
    )
    assert decide(facts) is Status.SUCCEEDED


@pytest.mark.parametrize("last", LASTS)
@pytest.mark.parametrize("phase", (GONE, None))
def test_a_cancelled_stage_without_a_job_is_cancelled(last: Last, phase: Phase | None) -> None:
    facts = Facts(submitted=True, cancelled=True, last=last, stopped=True, phase=phase)
    assert decide(facts) is Status.CANCELLED


@pytest.mark.parametrize("last", LASTS)
@pytest.mark.parametrize("phase", (PENDING, RUNNING))
def test_a_cancelled_stage_whose_job_still_lives_is_not_cancelled_yet(
    last: Last, phase: Phase
) -> None:
    with_cancel = decide(Facts(submitted=True, cancelled=True, last=last, phase=phase))
    assert with_cancel is decide(Facts(submitted=True, last=last, phase=phase))


@pytest.mark.parametrize("last", ("started", "preempted", "failed"))
@pytest.mark.parametrize("phase", PHASES)
def test_a_stage_the_epilogue_stopped_has_failed_whatever_the_scheduler_says(
    last: Last, phase: Phase | None
) -> None:
    assert decide(Facts(submitted=True, last=last, stopped=True, phase=phase)) is Status.FAILED


@pytest.mark.parametrize("phase", PHASES)
def test_a_stage_that_was_never_submitted_is_planned(phase: Phase | None) -> None:
    assert decide(Facts(phase=phase)) is Status.PLANNED


def test_a_job_that_started_before_its_submission_was_recorded_is_running() -> None:
    assert decide(Facts(submitted=False, last="started", phase=None)) is Status.RUNNING


@pytest.mark.parametrize("phase", (PENDING, GONE))
def test_a_job_whose_dependency_cannot_be_met_is_blocked(phase: Phase) -> None:
    assert decide(Facts(submitted=True, phase=phase, never_starts=True)) is Status.BLOCKED


@pytest.mark.parametrize("upstream", list(Status))
@pytest.mark.parametrize("status", list(Status))
def test_only_a_stage_that_never_started_is_blocked_by_its_upstream(
    status: Status, upstream: Status
) -> None:
    stops = upstream in {Status.FAILED, Status.CANCELLED, Status.BLOCKED, Status.LOST}
    may_be = status in {Status.PLANNED, Status.WAITING, Status.BLOCKED, Status.LOST}
    expected = "pretrain" if stops and may_be else None
    assert blocked_by(status, "none", {"pretrain": upstream}) == expected
    assert blocked_by(status, "started", {"pretrain": upstream}) is None


def test_a_run_that_nobody_submitted_is_planned_and_asks_no_scheduler(run: FabricatedRun) -> None:
    executor = FakeExecutor()
    assert {stage.status for stage in read(run, executor).values()} == {Status.PLANNED}
    assert executor.queries == []


def test_one_query_serves_all_stages(run: FabricatedRun) -> None:
    jobs = [run.submitted(name) for name in ("pretrain", "probe", "report")]
    executor = FakeExecutor(phases={jobs[0]: RUNNING, jobs[1]: PENDING, jobs[2]: PENDING})
    stages = read(run, executor)
    assert [str(stage.status) for stage in stages.values()] == ["running", "waiting", "waiting"]
    assert [[one.job_id for one in query] for query in executor.queries] == [sorted(jobs)]
    assert stages["probe"].after == ("pretrain",)


def test_a_finished_stage_is_not_asked_for(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    run.succeeded("pretrain")
    job = run.submitted("probe")
    executor = FakeExecutor(phases={job: RUNNING})
    stages = read(run, executor)
    assert stages["pretrain"].status is Status.SUCCEEDED
    assert stages["pretrain"].metrics == {"top1": 0.5}
    assert [[one.job_id for one in query] for query in executor.queries] == [[job]]


def test_a_result_under_another_key_is_no_success(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    fsio.write_json(run.stage("pretrain").result_file, {"key": "0" * 64})
    assert read(run, FakeExecutor(phases={job: RUNNING}))["pretrain"].status is Status.RUNNING


def test_the_rank_that_failed_first_by_itself_is_named_with_its_log(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    run.started(
        "pretrain",
        end=FAILED,
        failure_rank0=failure(0, "communication", "Connection closed by peer", at=1.0),
        failure_rank5=failure(5, "out_of_memory", "CUDA out of memory\nmore", at=2.0),
        exit={"exit_code": 71, "decision": "stop", "reason": ""},
    )
    log = run.stage("pretrain").logs / f"{job}_5_log.out"
    log.write_text("CUDA out of memory\n")
    told = read(run)["pretrain"].told
    assert told.reason == "out of memory on n5 rank 5: CUDA out of memory"
    assert told.more == "more"
    assert told.evidence == str(log)
    assert told.next == (
        "orchestrate submit recipes/demo.yaml seed=1 stages.pretrain.micro_batch=8"
        f" --store {run.store.root}"
    )


@pytest.mark.parametrize(
    ("workers", "mem_gb", "change"),
    [(8, 64, "--mem-gb 128"), (8, None, "++stages.pretrain.workers=4"), (1, None, "logs")],
)
def test_memory_of_the_host_is_told_apart_and_more_of_it_or_fewer_workers_advised(
    run: FabricatedRun, workers: int, mem_gb: float | None, change: str
) -> None:
    run.submitted("pretrain")
    stage = run.stage("pretrain")
    spec, submission = fsio.read_json(stage.stage_file), stage.path / "submission-1.json"
    spec["config"]["workers"] = workers
    fsio.write_json(stage.stage_file, spec)
    asked = {"resources": {"mem_gb": mem_gb}}
    fsio.write_json(submission, {**fsio.read_json(submission), **asked})
    killed = failure(1, "out_of_host_memory", "the kernel killed a process of it", at=1.0)
    ended = {"exit_code": 71, "decision": "stop", "reason": ""}
    run.started("pretrain", failure_rank1=killed, exit=ended)
    told = read(run)["pretrain"].told
    assert told.reason == "out of host memory on n1 rank 1: the kernel killed a process of it"
    assert change in told.next


def test_a_killed_rank_is_named_before_those_who_lost_it_and_its_stage_is_no_failure(
    run: FabricatedRun,
) -> None:
    run.submitted("pretrain")
    killed = failure(3, "killed", "the process ended by SIGKILL without a word", at=2.0)
    run.started("pretrain", failure_rank3=killed)
    assert read(run)["pretrain"].status is Status.LOST
    lost = failure(0, "communication", "Connection closed by peer", at=1.0)
    run.started("pretrain", failure_rank0=lost, failure_rank3=killed)
    assert "killed on n3 rank 3: the process ended by SIGKILL" in read(run)["pretrain"].told.reason


def test_a_rank_without_any_record_is_named_where_all_others_lost_it(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    lost = {f"failure_rank{n}": failure(n, "communication", "closed", at=1.0) for n in (0, 1, 3)}
    ended = {"exit_code": 137, "job_exit_code": 137, "decision": "stop", "self_ended": True}
    run.started("pretrain", exit=ended, **lost)
    start = run.stage("pretrain").attempts / "s001r000" / "start.json"
    assert (
        "a rank lost its peers, its device or its files on n0 rank 0"
        in read(run)["pretrain"].told.reason
    )
    fsio.write_json(start, {**fsio.read_json(start), "world_size": 4})
    reason = read(run)["pretrain"].told.reason
    assert reason.startswith("killed by SIGKILL (exit code 137) rank 2: it left no record")


def test_a_hang_is_told_in_the_words_of_the_watchdog(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    words = "rank 2 on n2 hangs: step 41, waiting for data for 75 s; stacks of all ranks in /a"
    ended = {"exit_code": 73, "decision": "stop", "reason": "a rank made no progress; 3 attempts"}
    run.started("pretrain", failure_rank2=failure(2, "hang", words, at=1.0), exit=ended)
    told = read(run)["pretrain"].told
    assert told.reason == f"{words} (a rank made no progress; 3 attempts)"
    assert "resume" in told.next


def test_commands_leave_out_a_store_that_is_the_default(
    run: FabricatedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STORE", str(run.store.root))
    run.submitted("pretrain")
    run.started("pretrain", end=FAILED)
    told = read(run)["pretrain"].told
    assert told.next == "orchestrate logs demo-0123abcd:pretrain --rank 0"
    assert told.reason == "the stage's code raised an error on n14 rank 0: KeyError: 'label'"


@pytest.mark.parametrize(
    ("cause", "command"),
    [
        ("diverged", "stages.pretrain.optimizer.lr=0.005"),
        ("hang", "resume demo-0123abcd --stage pretrain"),
        ("communication", "resume demo-0123abcd --stage pretrain"),
        ("configuration", "logs demo-0123abcd:pretrain --rank 0"),
    ],
)
def test_each_cause_has_its_next_command(run: FabricatedRun, cause: str, command: str) -> None:
    run.submitted("pretrain")
    run.started("pretrain", end={**FAILED, "cause": cause})
    assert command in read(run)["pretrain"].told.next


def test_a_hard_kill_that_the_epilogue_gave_up_on_is_told_from_its_record(
    run: FabricatedRun,
) -> None:
    run.submitted("pretrain")
    reason = "3 attempts ended without progress"
    run.started("pretrain", exit={"exit_code": 137, "decision": "stop", "reason": reason})
    stage = read(run)["pretrain"]
    assert stage.status is Status.FAILED
    assert stage.told.reason == f"killed by SIGKILL (exit code 137) on n14: {reason}"


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ({"exit_code": 75, "self_ended": True, "reason": "3 attempts in a row"}, "failed"),
        ({"exit_code": 75, "self_ended": False, "reason": "interrupted"}, "lost"),
        (
            {"exit_code": 75, "self_ended": False, "cause": "cancelled", "reason": "by scancel"},
            "cancelled",
        ),
        (
            {"exit_code": 1, "self_ended": False, "job_exit_code": 0, "reason": "no result"},
            "failed",
        ),
    ],
)
def test_only_a_stop_of_its_own_making_is_a_failure(
    run: FabricatedRun, ended: dict[str, object], status: str
) -> None:
    run.submitted("pretrain")
    run.started("pretrain", end=PREEMPTED, exit={"decision": "stop", **ended})
    stage = read(run)["pretrain"]
    assert str(stage.status) == status
    assert str(ended["reason"]) in stage.told.reason


def test_what_stands_behind_a_failed_stage_is_blocked_and_names_it(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    run.started("pretrain", end=FAILED)
    run.submitted("probe")
    stages = read(run)
    assert [str(stage.status) for stage in stages.values()] == ["failed", "blocked", "blocked"]
    assert stages["probe"].told.reason == "pretrain failed"
    assert stages["report"].told.reason == "pretrain failed"
    assert stages["report"].told.next == stages["pretrain"].told.next


def test_what_stands_behind_a_cancelled_stage_is_blocked(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    run.cancelled("pretrain")
    run.submitted("probe")
    stages = read(run)
    assert stages["pretrain"].status is Status.CANCELLED
    assert stages["pretrain"].told.reason.startswith("by bob on login2 at ")
    assert stages["probe"].told.reason == "pretrain was cancelled"


def test_a_preempted_stage_says_where_it_was_and_what_it_waits_for(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    run.started("pretrain", end=PREEMPTED, exit={"exit_code": 75, "decision": "requeue"})
    executor = FakeExecutor(phases={job: PENDING}, reasons={job: "BeginTime"})
    stage = read(run, executor)["pretrain"]
    assert stage.status is Status.REQUEUED
    assert stage.told.reason == "stopped on n14, saved at step 480; may not start yet (BeginTime)"
    run.started("pretrain", "s001r001")
    stage = read(run, FakeExecutor(phases={job: RUNNING}))["pretrain"]
    assert (stage.status, stage.attempts) == (Status.RUNNING, 2)
    assert stage.told.reason == "stopped on n14, saved at step 480, then started again"


def test_the_end_of_an_attempt_is_told_by_its_cause_and_shown_with_what_was_decided(
    run: FabricatedRun,
) -> None:
    job = run.submitted("pretrain")
    ended = {
        "exit_code": 137,
        "decision": "requeue",
        "cause": "time_limit",
        "policy": "counted",
        "reason": "ranks were still saving",
        "exclude": ["n7"],
        "mem_gb": None,
        "step": 10,
    }
    run.started("pretrain", exit=ended)
    run.started("pretrain", "s001r001")
    stage = read(run, FakeExecutor(phases={job: RUNNING}))["pretrain"]
    assert stage.told.reason == (
        "stopped at its time limit on n14 (ranks were still saving), then started again"
    )
    assert stage.decision == Decided(
        attempt="s001r000",
        action="requeue",
        cause="time_limit",
        policy="counted",
        reason="ranks were still saving",
        exclude=("n7",),
    )
    assert stage.excluded == ("n7",)


def test_work_behind_the_last_commit_of_a_killed_attempt_is_lost(run: FabricatedRun) -> None:
    """The first was killed 25 s behind step 20, the second saved, the third still runs."""
    job = run.submitted("pretrain")
    metrics = run.stage("pretrain").metrics_file
    for attempt, step, at in ((0, 10, 110), (0, 20, 120), (0, 30, 130), (1, 30, 210), (1, 40, 220)):
        line = {"step": step, "time": float(at), "attempt": f"s001r00{attempt}"}
        fsio.append_json_line(metrics, {**line, "metrics": {"train/loss": 1.0}})
    killed = {"exit_code": 137, "decision": "requeue", "step": 20, "finished_at": 145.0}
    start = {"job_id": "1", "host": "n14", "restart": 0, "started_at": 100.0}
    run.attempt("pretrain", "s001r000", start=start, exit=killed)
    run.attempt("pretrain", "s001r001", start={**start, "started_at": 200.0}, end=PREEMPTED)
    run.attempt("pretrain", "s001r002", start={**start, "started_at": 300.0})
    assert read(run, FakeExecutor(phases={job: RUNNING}))["pretrain"].lost_seconds == 25.0


def test_an_attempt_whose_node_took_its_record_lost_what_the_next_one_repeats(
    run: FabricatedRun,
) -> None:
    job = run.submitted("pretrain")
    metrics = run.stage("pretrain").metrics_file
    for attempt, step, at in ((0, 10, 110), (0, 20, 120), (0, 30, 137), (1, 21, 210)):
        line = {"step": step, "time": float(at), "attempt": f"s001r00{attempt}"}
        fsio.append_json_line(metrics, {**line, "metrics": {}})
    start = {"job_id": "1", "host": "n14", "restart": 0, "started_at": 100.0}
    run.attempt("pretrain", "s001r000", start=start)
    run.attempt("pretrain", "s001r001", start={**start, "started_at": 200.0})
    assert read(run, FakeExecutor(phases={job: RUNNING}))["pretrain"].lost_seconds == 17.0


def test_a_waiting_job_says_when_it_is_expected_to_start(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    executor = FakeExecutor(phases={job: PENDING}, reasons={job: "Resources"}, starts={job: 5e9})
    stage = read(run, executor)["pretrain"]
    assert stage.start_at == 5e9
    assert stage.told.reason.startswith("waits for free nodes (Resources), expected to start at 21")


def test_a_job_that_vanished_without_a_record_is_lost_and_resume_is_offered(
    run: FabricatedRun,
) -> None:
    run.submitted("pretrain")
    run.started("pretrain")
    stage = read(run)["pretrain"]
    assert stage.status is Status.LOST
    assert "killed on n14 without a record" in stage.told.reason
    assert "resume demo-0123abcd --stage pretrain" in stage.told.next


def test_attempts_of_an_older_submission_do_not_count(run: FabricatedRun) -> None:
    run.submitted("pretrain", n=1)
    run.started("pretrain", "s001r000", end=FAILED, exit={"exit_code": 70, "decision": "stop"})
    job = run.submitted("pretrain", n=2)
    stage = read(run, FakeExecutor(phases={job: PENDING}))["pretrain"]
    assert (stage.status, stage.job_id, stage.attempts) == (Status.WAITING, job, 1)


def test_a_claim_without_a_job_is_planned_and_says_who_holds_it(run: FabricatedRun) -> None:
    run.claimed("pretrain")
    stage = read(run)["pretrain"]
    assert stage.status is Status.PLANNED
    assert stage.told.reason.startswith("being submitted by ")


def test_a_job_whose_submitter_died_before_recording_it_is_found_by_name(
    run: FabricatedRun,
) -> None:
    run.claimed("pretrain")
    executor = FakeExecutor(phases={"99": RUNNING}, found={"pretrain-s1": handle("99")})
    assert read(run, executor)["pretrain"].status is Status.RUNNING


def test_a_job_of_an_array_whose_submitter_died_is_found_by_its_number(run: FabricatedRun) -> None:
    run.claimed("pretrain", task=4)
    executor = FakeExecutor(found={"pretrain-s1_4": handle("7_4")}, phases={"7_4": Phase.PENDING})
    assert read(run, executor)["pretrain"].status is Status.WAITING


def test_a_broken_part_of_a_finished_stage_is_out_of_sight(run: FabricatedRun) -> None:
    """The stage came by its result with other parts, or without any."""
    run.make_part("probe", "report")
    for name in ("pretrain", "report"):
        run.submitted(name)
        run.succeeded(name)
    run.submitted("probe")
    run.cancelled("probe")
    status = read_status(run.run_id, run.store, FakeExecutor())
    assert [stage.name for stage in status.stages] == ["pretrain", "report"]
    assert status.status is Status.SUCCEEDED
    run.succeeded("probe")
    status = read_status(run.run_id, run.store, FakeExecutor())
    assert [stage.part_of for stage in status.stages] == [None, "report", None]


def test_a_broken_part_is_resumed_together_with_its_stage(run: FabricatedRun) -> None:
    run.make_part("probe", "report")
    run.submitted("probe")
    run.started("probe")
    stage = read(run, FakeExecutor())["probe"]
    assert stage.status is Status.LOST
    assert "--stage report" in stage.told.next


def test_an_unreachable_scheduler_is_said_and_the_files_still_tell(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    run.succeeded("pretrain")
    run.submitted("probe")
    run.started("probe", end=PREEMPTED)
    status = read_status(run.run_id, run.store, FakeExecutor(down=True))
    assert "Unable to contact slurm controller" in status.scheduler_error
    assert [str(stage.status) for stage in status.stages] == ["succeeded", "requeued", "planned"]
    assert read_status(run.run_id, run.store, None).scheduler_error


def test_a_reused_stage_names_the_run_that_made_it(run: FabricatedRun, tmp_path: Path) -> None:
    run.submitted("pretrain")
    run.succeeded("pretrain")
    other = FabricatedRun(tmp_path / "store", run_id="other-ffff0000")
    assert read(other)["pretrain"].told.reason == "reused from run demo-0123abcd"


def test_the_states_of_a_waiting_submit_need_no_query(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    state = FakeExecutor(phases={job: RUNNING}).query([handle(job)])
    status = status_from(run.run_id, run.store, state)
    assert status.stages[0].status is Status.RUNNING
    assert not status.done


def status_of(*stages: str) -> RunStatus:
    made = tuple(
        StageStatus(name=str(n), kind="probe", status=Status(text), key="0" * 64)
        for n, text in enumerate(stages)
    )
    values = dict.fromkeys(("run_id", "recipe", "executor", "user", "host", "store"), "x")
    return RunStatus(created_at=0.0, stages=made, **values)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (("succeeded", "succeeded"), "succeeded"),
        (("failed", "running"), "running"),
        (("failed", "requeued"), "running"),
        (("succeeded", "waiting"), "waiting"),
        (("failed", "blocked"), "failed"),
        (("cancelled", "blocked"), "cancelled"),
        (("lost", "blocked"), "lost"),
        (("planned", "succeeded"), "planned"),
    ],
)
def test_a_run_is_what_goes_on_or_the_worst_that_came_out(
    stages: tuple[str, ...], expected: str
) -> None:
    assert str(status_of(*stages).status) == expected


def test_the_json_object_has_exactly_the_documented_fields(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    run.started("pretrain")
    progress = {"phase": "train", "step": 5, "steps": 10, "attempt": "s001r000"}
    fsio.write_json(run.stage("pretrain").progress_file, progress)
    executor = FakeExecutor(phases={job: RUNNING})
    value = json.loads(json.dumps(to_json(read_status(run.run_id, run.store, executor))))
    assert set(value) == {"schema_version", "run", "stages"}
    documented = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for field in [*value["run"], *value["stages"][0]]:
        assert f"`{field}`" in documented
    assert value["stages"][0]["progress"] == progress
    assert value["stages"][0]["status"] == "running"
    assert value["run"]["id"] == run.run_id


def test_an_unknown_run_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_status("nothing", Store(tmp_path), FakeExecutor())
