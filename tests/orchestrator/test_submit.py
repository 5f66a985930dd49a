"""Submission writes first, claims once, continues what broke; against an executor kept in memory.

The same walks run against this machine and a real SLURM in tests/e2e; here the scheduler is made to
fail at chosen calls, which a real one does too seldom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster import fsio
from cluster.contract import JobHandle, JobRequest, JobState, Phase, SchedulerError
from orchestrator import submit as submission
from orchestrator.jobs import job_name
from orchestrator.store import StageDir, Store
from tests.e2e.conftest import TINY


@dataclass
class Scheduler:
    """Jobs of one cluster: all pending until a test says otherwise."""

    name: str = "local"
    requests: list[JobRequest] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    cancelled: list[str] = field(default_factory=list)
    refuse_from: int = 10_000

    def submit(self, request: JobRequest) -> JobHandle:
        if len(self.requests) >= self.refuse_from:
            raise SchedulerError("sbatch: exit code 1: Socket timed out")
        self.requests.append(request)
        return self._handle(len(self.requests))

    def _handle(self, number: int) -> JobHandle:
        return JobHandle(
            executor="local", cluster="test", job_id=str(number), submitted_at=float(number)
        )

    def query(self, handles: Sequence[JobHandle]) -> dict[JobHandle, JobState]:
        phase = {True: Phase.GONE, False: Phase.PENDING}
        return {h: JobState(phase=phase[h.job_id in self.gone]) for h in handles}

    def find(self, name: str) -> JobHandle | None:
        for number, request in enumerate(self.requests, start=1):
            if request.name == name:
                return self._handle(number)
        return None

    def cancel(self, handles: Sequence[JobHandle]) -> None:
        self.cancelled = [handle.job_id for handle in handles]

    def render(self, request: JobRequest) -> str:
        return request.name

    def wait(
        self,
        handles: Sequence[JobHandle],
        on_tick: Callable[[Mapping[JobHandle, JobState]], None] | None = None,
        timeout: float | None = None,
    ) -> dict[JobHandle, JobState]:
        return self.query(handles)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """The only executor there is."""
    made = Scheduler()
    monkeypatch.setattr("cluster.executors.make", lambda name: made)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store, with the tiny recipe beside it."""
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return Store(tmp_path / "store")


def _submit(store: Store, *overrides: str) -> submission.SubmittedRun:
    prepared = submission.prepare(store.root.parent / "tiny.yaml", overrides, store)
    return submission.submit(prepared, store, prepared.executor, ["orchestrate", "submit"])


def _stage(store: Store, run: submission.SubmittedRun, name: str) -> StageDir:
    (entry,) = (e for e in store.read_plan(run.run_id)["stages"] if e["name"] == name)
    return store.stage_dir(entry["kind"], entry["key"])


def test_jobs_wait_for_exactly_the_stages_they_take_from(
    store: Store, scheduler: Scheduler
) -> None:
    run = _submit(store)
    after = {stage.name: set(stage.after) for stage in run.stages}
    assert after["pretrain"] == {"index-synthetic-motion"}
    assert after["probe"] == {"index-synthetic-motion", "pretrain"}
    assert after["report"] == {"probe", "probe_random", "finetune", "retrieval"}
    ids = {stage.name: stage.job_id for stage in run.stages}
    request = scheduler.requests[int(ids["probe"]) - 1]
    assert {handle.job_id for handle in request.after} == {
        ids["index-synthetic-motion"],
        ids["pretrain"],
    }


def test_submitting_twice_attaches_and_says_so(store: Store, scheduler: Scheduler) -> None:
    first = _submit(store)
    second = _submit(store)
    assert second.run_id == first.run_id
    assert {stage.action for stage in second.stages} == {"attach"}
    assert [stage.job_id for stage in second.stages] == [stage.job_id for stage in first.stages]
    assert len(scheduler.requests) == 7


@pytest.mark.parametrize("accepted", range(7))
def test_a_refused_submission_is_continued_where_it_stopped(
    store: Store, scheduler: Scheduler, accepted: int
) -> None:
    scheduler.refuse_from = accepted
    with pytest.raises(SchedulerError, match="Socket timed out"):
        _submit(store)
    scheduler.refuse_from = 10_000
    run = _submit(store)
    actions = [stage.action for stage in run.stages]
    assert actions == ["attach"] * accepted + ["run"] * (7 - accepted)
    assert len({request.argv[-3] for request in scheduler.requests}) == 7


def test_a_job_whose_submitter_was_killed_before_it_wrote_is_adopted(
    store: Store, scheduler: Scheduler
) -> None:
    run = _submit(store)
    pretrain = _stage(store, run, "pretrain")
    (pretrain.path / "submission-1.json").unlink()
    intent = fsio.read_json(pretrain.path / "submission-1.intent.json")
    fsio.write_json(pretrain.path / "submission-1.intent.json", {**intent, "pid": 1, "host": "x"})
    again = _submit(store)
    assert {stage.action for stage in again.stages} == {"attach"}
    assert pretrain.submission(1) is not None
    assert len(scheduler.requests) == 7


def test_whoever_planned_before_another_submitted_attaches_to_those_jobs(
    store: Store, scheduler: Scheduler
) -> None:
    late = submission.prepare(store.root.parent / "tiny.yaml", [], store)
    first = _submit(store)
    second = submission.submit(late, store, late.executor, ["orchestrate", "submit"])
    assert {stage.action for stage in second.stages} == {"attach"}
    assert [stage.job_id for stage in second.stages] == [stage.job_id for stage in first.stages]
    assert len(scheduler.requests) == 7


def test_a_lost_job_is_submitted_again_under_a_new_number(
    store: Store, scheduler: Scheduler
) -> None:
    run = _submit(store)
    scheduler.gone.update(str(number) for number in range(1, 8))
    again = _submit(store)
    assert {stage.action for stage in again.stages} <= {"run", "resume"}
    pretrain = _stage(store, run, "pretrain")
    assert pretrain.latest_submission().n == 2  # type: ignore[union-attr]
    assert "-s2-" in scheduler.requests[-1].name


def test_resume_submits_what_is_broken_and_what_it_needs_only(
    store: Store, scheduler: Scheduler
) -> None:
    run = _submit(store)
    scheduler.gone.update(str(number) for number in range(1, 8))
    resumed = submission.resume(run.run_id, store, scheduler, stage="pretrain")
    assert [stage.name for stage in resumed.stages] == ["index-synthetic-motion", "pretrain"]
    assert len(scheduler.requests) == 9
    with pytest.raises(KeyError):
        submission.resume(run.run_id, store, scheduler, stage="pretrian")


def test_cancel_marks_dependents_first_and_a_new_submission_clears_the_mark(
    store: Store, scheduler: Scheduler
) -> None:
    run = _submit(store)
    names = submission.cancel(run.run_id, store, scheduler, stage="pretrain")
    assert names[-1] == "pretrain"
    assert set(names) == {"pretrain", "probe", "finetune", "retrieval", "report"}
    pretrain = _stage(store, run, "pretrain")
    assert pretrain.cancelled() is not None
    scheduler.gone.update(scheduler.cancelled)
    _submit(store)
    assert pretrain.cancelled() is None


def test_secrets_of_the_shell_are_not_passed_on(
    store: Store, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-4711")
    run = _submit(store)
    assert all("canary-4711" not in str(request) for request in scheduler.requests)
    for path in [*store.root.rglob("*.json"), *store.root.rglob("*.yaml")]:
        assert "canary-4711" not in path.read_text(encoding="utf-8"), path
    assert run.run_id.startswith("tiny-")


def test_job_names_fit_the_scheduler_whatever_the_stage_is_called(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "finetune-0123456789ab")
    name = job_name("finetune/" + "x" * 60, stage, 123)
    assert len(name) <= 64
    assert "/" not in name
    assert "-0123456789ab-s123-" in name


def test_another_store_never_takes_a_job_for_its_own(tmp_path: Path) -> None:
    here, there = (StageDir(tmp_path / s / "probe-0123456789ab") for s in ("a", "b"))
    assert job_name("probe", here, 1) != job_name("probe", there, 1)
