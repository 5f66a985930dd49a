"""Submission writes first, claims once, continues what broke; against an executor kept in memory.

The same walks run against this machine and a real SLURM in tests/e2e; here the scheduler is made to
fail at chosen calls, which a real one does too seldom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cluster import fsio
from cluster.batch import RequestError
from cluster.contract import (
    ArrayRequest,
    JobHandle,
    JobRequest,
    JobState,
    Phase,
    SchedulerError,
)
from cluster.patience import UnknownOutcome
from orchestrator import submit as submission
from orchestrator.cancel import cancel, look
from orchestrator.jobs import job_name
from orchestrator.resume import resume
from orchestrator.store import StageDir, Store, Submission
from tests.e2e.conftest import TINY


@dataclass
class Scheduler:
    """Jobs of one cluster: all pending until a test says otherwise."""

    name: str = "local"
    requests: list[JobRequest] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    cancelled: list[str] = field(default_factory=list)
    arrays: list[ArrayRequest] = field(default_factory=list)
    limit: int = 1001
    refuse_from: int = 10_000
    refusal: str = "sbatch: exit code 1: Socket timed out"

    def submit(self, request: JobRequest) -> JobHandle:
        if len(self.requests) >= self.refuse_from:
            raise SchedulerError(self.refusal)
        self.requests.append(request)
        return self._handle(len(self.requests))

    def submit_array(self, array: ArrayRequest) -> list[JobHandle]:
        if len(self.requests) >= self.refuse_from:
            raise SchedulerError(self.refusal)
        self.arrays.append(array)
        handles = [self.submit(task) for task in array.tasks]
        return [replace(handle, array_size=len(handles)) for handle in handles]

    def array_limit(self) -> int:
        return self.limit

    def _handle(self, number: int) -> JobHandle:
        return JobHandle(
            executor="local", cluster="test", job_id=str(number), submitted_at=float(number)
        )

    def query(self, handles: Sequence[JobHandle]) -> dict[JobHandle, JobState]:
        phase = {True: Phase.GONE, False: Phase.PENDING}
        return {h: JobState(phase=phase[h.job_id in self.gone]) for h in handles}

    def find(self, name: str, task: int | None = None) -> JobHandle | None:
        for number, request in enumerate(self.requests, start=1):
            if (request.name, request.task) == (name, task):
                return self._handle(number)
        return None

    def cancel(self, handles: Sequence[JobHandle]) -> None:
        self.cancelled = [handle.job_id for handle in handles]

    def render(self, request: JobRequest | ArrayRequest) -> str:
        return request.name if isinstance(request, JobRequest) else request.tasks[0].name

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
    assert len({request.target[0] for request in scheduler.requests}) == 7


@pytest.mark.parametrize("accepted", [0, 3])
def test_a_job_that_is_refused_takes_those_before_it_back(
    store: Store, scheduler: Scheduler, accepted: int
) -> None:
    """All or nothing, and once the reason is gone the same command submits everything."""
    scheduler.refuse_from, scheduler.refusal = accepted, "sbatch: exit code 1: Invalid account"
    told = "taken back: index-synthetic-motion" if accepted else "nothing was submitted"
    with pytest.raises(SchedulerError, match=f"Invalid account.*; .*{told}"):
        _submit(store)
    made = [str(number) for number in range(1, accepted + 1)]
    assert scheduler.cancelled == made[::-1]
    scheduler.gone.update(made)
    scheduler.refuse_from = 10_000
    run = _submit(store)
    assert {stage.action for stage in run.stages} == {"run"}
    assert len(scheduler.requests) == accepted + 7
    assert all(_stage(store, run, stage.name).cancelled() is None for stage in run.stages)


def test_jobs_attached_to_are_not_taken_back(store: Store, scheduler: Scheduler) -> None:
    scheduler.refuse_from = 3  # away: the three stay
    with pytest.raises(SchedulerError, match="stay submitted"):
        _submit(store)
    scheduler.refuse_from, scheduler.refusal = 5, "sbatch: exit code 1: Invalid account"
    with pytest.raises(SchedulerError, match="taken back"):
        _submit(store)
    assert scheduler.cancelled == ["5", "4"]


def test_a_job_that_another_run_wants_as_well_is_not_taken_back(
    store: Store, scheduler: Scheduler
) -> None:
    index = submission.prepare(store.root.parent / "tiny.yaml", [], store).plan.stages[0]
    folder = fsio.make_dir(store.run_dir("theirs"))
    fsio.write_json(folder / "run.json", {"run_id": "theirs", "created_at": 1.0})
    fsio.write_json(folder / "plan.json", {"stages": [{"name": "index", "key": index.key}]})
    scheduler.refuse_from, scheduler.refusal = 3, "sbatch: exit code 1: Invalid account"
    with pytest.raises(SchedulerError, match=r"stays: index-synthetic-motion \(job 1\) for run th"):
        _submit(store)
    assert scheduler.cancelled == ["3", "2"]
    assert store.stage_dir(index.kind, index.key).cancelled() is None


def test_who_is_taken_for_dead_while_it_submits_leaves_the_stage_to_the_newer_claim(
    store: Store, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = scheduler.submit, list[str]()
    recorded = Submission(
        n=1,
        run_id="r",
        stage="index",
        job_name="newer",
        handle=None,
        dependencies=(),
        resources={},
        tracking=None,
        code=None,
    )

    def slow(request: JobRequest) -> JobHandle:
        handle = made(request)
        asked.append(request.name)
        if len(asked) == 1:  # another node finds a claim and no job
            stage = StageDir(Path(request.target[0]))
            stage.claim(2, "newer", {"resources": {}})
            handle = replace(made(replace(request, name="newer")), job_id="2")
            stage.record_submission(replace(recorded, n=2, handle=handle))
            return replace(handle, job_id="1")
        return handle

    monkeypatch.setattr(scheduler, "submit", slow)
    run = _submit(store)
    assert scheduler.cancelled == ["1"]
    assert (run.stages[0].action, run.stages[0].job_id) == ("attach", "2")
    pretrain = next(one for one in scheduler.requests if one.name.startswith("pretrain"))
    assert [handle.job_id for handle in pretrain.after] == ["2"]


def test_who_waits_for_a_job_that_leaves_a_successor_does_not_wait_for_its_success(
    store: Store, scheduler: Scheduler
) -> None:
    run = _submit(store)
    claim = _stage(store, run, "pretrain").path / "submission-1.intent.json"
    resources = {**fsio.read_json(claim)["resources"], "requeue": False}
    fsio.write_json(claim, {**fsio.read_json(claim), "resources": resources})
    ids = {stage.name: stage.job_id for stage in run.stages}
    scheduler.gone.update({ids["probe"], ids["probe_random"], ids["report"]})
    again = {stage.name: stage for stage in _submit(store).stages}
    assert again["pretrain"].action == "attach"
    asked = {
        name: scheduler.requests[int(again[name].job_id) - 1]
        for name in ("probe", "probe_random", "report")
    }
    waits = {name: not request.resources.requeue for name, request in asked.items()}
    assert waits == {"probe": True, "probe_random": False, "report": True}
    assert all(bool(request.prologue) == waits[name] for name, request in asked.items())


def test_what_no_script_may_hold_is_refused_before_anything_is_written(
    store: Store, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(request: JobRequest) -> str:
        raise RequestError("--account: a line break")

    monkeypatch.setattr(scheduler, "render", render)
    with pytest.raises(RequestError, match="line break"):
        _submit(store)
    assert not scheduler.requests and not list(store.root.glob("stages/*"))


def test_whoever_meets_a_claim_that_came_to_no_job_submits_no_dependents(
    store: Store, scheduler: Scheduler
) -> None:
    late = submission.prepare(store.root.parent / "tiny.yaml", [], store)
    scheduler.refuse_from, scheduler.refusal = 0, "sbatch: exit code 1: Invalid account"
    with pytest.raises(SchedulerError, match="nothing was submitted"):
        _submit(store)
    scheduler.refuse_from = 10_000
    with pytest.raises(SchedulerError, match="somebody else submitted it at the same time"):
        submission.submit(late, store, late.executor, ["orchestrate", "submit"])
    assert not scheduler.requests


def test_where_nobody_can_say_if_there_is_a_job_it_is_looked_for_by_the_next_command(
    store: Store, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scheduler.submit

    def unanswered(request: JobRequest) -> JobHandle:
        made(request)
        raise UnknownOutcome("sbatch: Socket timed out; whether job exists is not known")

    monkeypatch.setattr(scheduler, "submit", unanswered)
    with pytest.raises(UnknownOutcome, match="not known"):
        _submit(store)
    monkeypatch.setattr(scheduler, "submit", made)
    run = _submit(store)
    assert [stage.action for stage in run.stages] == ["attach", *["run"] * 6]
    assert len(scheduler.requests) == 7


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
    resumed = resume(run.run_id, store, scheduler, stage="pretrain").run
    assert [stage.name for stage in resumed.stages] == ["index-synthetic-motion", "pretrain"]
    assert len(scheduler.requests) == 9
    with pytest.raises(KeyError):
        resume(run.run_id, store, scheduler, stage="pretrian")


def test_cancel_marks_dependents_first_and_a_new_submission_clears_the_mark(
    store: Store, scheduler: Scheduler
) -> None:
    run = _submit(store)
    names = cancel(look(run.run_id, store, scheduler, "pretrain"), store, scheduler)
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


# -- parts that share the work of one stage --------------------------------------------------------

DIVIDED = """\
name: divided
cluster: {executor: local, resources: {parts_at_once: 3}}
data:
  home: {format: folder, name: home, root: /videos, index: {shards: 4}, prepare: null}
stages:
  probe:
    kind: probe
    data: ${data.home}
    encoder: random
    backbone: {name: r2d3d_tiny}
    clip: {blocks: 4, frames: 5, stride: 1, size: 32}
"""
WHOLE = "index-home"
PARTS = [f"index-home/part-{n:03}" for n in range(4)]


@pytest.fixture
def divided(store: Store) -> Store:
    """The store with a recipe beside it whose index four jobs share."""
    (store.root.parent / "tiny.yaml").write_text(DIVIDED, encoding="utf-8")
    return store


def _finish(stage: StageDir) -> None:
    key = (stage.stage() or {})["key"]
    fsio.write_json(stage.result_file, {"schema_version": 1, "key": key, "artifacts": {}})


def _numbers(array: ArrayRequest) -> list[int | None]:
    return [task.task for task in array.tasks]


def test_the_parts_of_a_stage_are_one_array_and_the_stage_waits_for_all(
    divided: Store, scheduler: Scheduler
) -> None:
    run = _submit(divided)
    (array,) = scheduler.arrays
    assert _numbers(array) == [0, 1, 2, 3]
    assert len(scheduler.requests) == 6
    assert array.folder.parent == divided.root / "arrays"
    assert array.tasks[0].resources.parts_at_once == 3
    for task, name in zip(array.tasks, PARTS, strict=True):
        folder = _stage(divided, run, name)
        assert task.target == (str(folder.path), "--submission", "1")
        assert task.log_dir == folder.logs
    whole = next(one for one in scheduler.requests if one.task is None)
    assert [handle.job_id for handle in whole.after] == ["1", "2", "3", "4"]
    assert {handle.array_size for handle in whole.after} == {4}


def test_a_part_has_its_own_claim_record_and_no_run_in_mlflow(
    divided: Store, scheduler: Scheduler
) -> None:
    run = _submit(divided)
    for number, name in enumerate(PARTS):
        folder = _stage(divided, run, name)
        intent, submission = folder.intent(1), folder.submission(1)
        assert intent is not None and submission is not None and submission.handle is not None
        assert (intent["task"], intent["job_name"]) == (number, scheduler.arrays[0].tasks[0].name)
        assert submission.handle.job_id == str(number + 1)
        assert submission.tracking is None
    whole = _stage(divided, run, WHOLE).submission(1)
    assert whole is not None and whole.tracking is not None


def test_submitting_divided_work_twice_attaches(divided: Store, scheduler: Scheduler) -> None:
    _submit(divided)
    again = _submit(divided)
    assert {stage.action for stage in again.stages} == {"attach"}
    assert len(scheduler.requests) == 6


def test_resume_submits_only_the_broken_parts_as_a_smaller_array(
    divided: Store, scheduler: Scheduler
) -> None:
    run = _submit(divided)
    _finish(_stage(divided, run, PARTS[0]))
    scheduler.gone.update({"1", "2", "4", "5", "6"})  # part 2 still runs
    again = resume(run.run_id, divided, scheduler).run
    actions = {stage.name: stage.action for stage in again.stages}
    assert [actions[name] for name in PARTS] == ["reuse", "resume", "attach", "resume"]
    assert _numbers(scheduler.arrays[-1]) == [1, 3]
    whole = next(one for one in scheduler.requests[6:] if one.task is None)
    assert [handle.job_id for handle in whole.after] == ["7", "3", "8"]
    assert [handle.array_size for handle in whole.after] == [2, 4, 2]


def test_parts_that_need_different_memory_are_arrays_of_their_own(
    divided: Store, scheduler: Scheduler
) -> None:
    run = _submit(divided, "++cluster.resources.mem_gb=4")
    attempt = fsio.make_dir(_stage(divided, run, PARTS[2]).attempts / "s001r000")
    fsio.write_json(attempt / "start.json", {"started_at": 4e9})
    fsio.write_json(attempt / "exit.json", {"mem_gb": 6.0})
    scheduler.gone.update("123456")
    resume(run.run_id, divided, scheduler)
    asked = {request.target[0]: request.resources.mem_gb for request in scheduler.requests[6:]}
    found = [asked[str(_stage(divided, run, name).path)] for name in PARTS]
    assert found == [4.0, 4.0, 6.0, 4.0]
    assert _numbers(scheduler.arrays[-1]) == [0, 1, 3]


def test_a_single_broken_part_is_a_job_by_itself(divided: Store, scheduler: Scheduler) -> None:
    run = _submit(divided)
    for name in PARTS[:3]:
        _finish(_stage(divided, run, name))
    scheduler.gone.update("123456")
    resume(run.run_id, divided, scheduler)
    assert len(scheduler.arrays) == 1
    assert scheduler.requests[6].task is None
    assert "part-003" in scheduler.requests[6].name


@pytest.mark.parametrize(
    ("limit", "arrays"),
    [(4, [[0, 1, 2, 3]]), (3, [[0, 1, 2]]), (2, [[0, 1], [0, 1]]), (1, [])],
)
def test_a_site_that_allows_small_arrays_gets_several(
    divided: Store, scheduler: Scheduler, limit: int, arrays: list[list[int]]
) -> None:
    scheduler.limit = limit
    run = _submit(divided)
    assert [_numbers(array) for array in scheduler.arrays] == arrays
    assert len(scheduler.requests) == 6
    assert len({stage.job_id for stage in run.stages}) == 6
    targets = {request.target[0] for request in scheduler.requests}
    assert len(targets) == 6


def test_a_refused_array_is_submitted_by_the_next_command(
    divided: Store, scheduler: Scheduler
) -> None:
    scheduler.refuse_from = 0
    with pytest.raises(SchedulerError, match="Socket timed out"):
        _submit(divided)
    scheduler.refuse_from = 10_000
    run = _submit(divided)
    assert {stage.action for stage in run.stages} == {"run"}
    assert _numbers(scheduler.arrays[0]) == [0, 1, 2, 3]


def test_an_array_whose_submitter_was_killed_before_it_wrote_is_adopted(
    divided: Store, scheduler: Scheduler
) -> None:
    run = _submit(divided)
    for name in PARTS:
        folder = _stage(divided, run, name).path
        (folder / "submission-1.json").unlink()
        intent = fsio.read_json(folder / "submission-1.intent.json")
        fsio.write_json(folder / "submission-1.intent.json", {**intent, "pid": 1, "host": "x"})
    again = _submit(divided)
    assert {stage.action for stage in again.stages} == {"attach"}
    assert [stage.job_id for stage in again.stages] == [stage.job_id for stage in run.stages]
    assert len(scheduler.requests) == 6


def test_a_part_that_another_submitter_has_claimed_is_left_to_it(
    divided: Store, scheduler: Scheduler
) -> None:
    late = submission.prepare(divided.root.parent / "tiny.yaml", [], divided)
    first = _submit(divided)
    _stage(divided, first, PARTS[3]).path.joinpath("submission-1.intent.json").unlink()
    _stage(divided, first, PARTS[2]).path.joinpath("submission-1.intent.json").unlink()
    second = submission.submit(late, divided, late.executor, ["orchestrate", "submit"])
    actions = {stage.name: stage.action for stage in second.stages}
    assert [actions[name] for name in PARTS] == ["attach", "attach", "run", "run"]
    assert _numbers(scheduler.arrays[-1]) == [2, 3]


def test_another_number_of_parts_goes_on_with_the_stage_they_are_parts_of(
    divided: Store, scheduler: Scheduler
) -> None:
    first = _submit(divided)
    scheduler.gone.update("123456")
    second = _submit(divided, "data.home.index.shards=2")
    assert second.run_id == first.run_id
    spec = _stage(divided, second, WHOLE).stage() or {}
    entries = {e["name"]: e for e in divided.read_plan(second.run_id)["stages"]}
    assert [p["key"] for p in spec["inputs"]["parts"]] == [entries[n]["key"] for n in PARTS[:2]]
    assert len(scheduler.arrays[-1].tasks) == 2


def test_resume_lets_a_stage_take_the_parts_of_its_own_run(
    divided: Store, scheduler: Scheduler
) -> None:
    """Two runs share an index and divide it differently: each merges what it has submitted."""
    mine = _submit(divided)
    scheduler.gone.update("123456")
    text = DIVIDED.replace("name: divided", "name: other").replace("shards: 4", "shards: 2")
    text = text.replace("size: 32", "size: 64")
    (divided.root.parent / "tiny.yaml").write_text(text, encoding="utf-8")
    _submit(divided)
    scheduler.gone.update(str(number) for number in range(7, 11))
    resume(mine.run_id, divided, scheduler)
    spec = _stage(divided, mine, WHOLE).stage() or {}
    assert [p["ref"] for p in spec["inputs"]["parts"]] == [f"{name}.part" for name in PARTS]


def test_a_run_that_had_joined_anothers_parts_goes_on_without_them(
    divided: Store, scheduler: Scheduler
) -> None:
    _submit(divided)
    text = DIVIDED.replace("name: divided", "name: other").replace("shards: 4", "shards: 2")
    text = text.replace("size: 32", "size: 64")
    (divided.root.parent / "tiny.yaml").write_text(text, encoding="utf-8")
    joined = _submit(divided)
    assert [(s.name, s.action) for s in joined.stages] == [(WHOLE, "attach"), ("probe", "run")]
    scheduler.gone.update("1234567")  # the other run was cancelled
    resume(joined.run_id, divided, scheduler)
    spec = _stage(divided, joined, WHOLE).stage() or {}
    assert spec["inputs"]["parts"] == []
    assert scheduler.requests[-2].after == ()


def test_a_finished_stage_asks_for_none_of_its_broken_parts(
    divided: Store, scheduler: Scheduler
) -> None:
    run = _submit(divided)
    _finish(_stage(divided, run, WHOLE))
    _finish(_stage(divided, run, PARTS[1]))
    scheduler.gone.update("123456")
    again = resume(run.run_id, divided, scheduler).run
    assert [(s.name, s.action) for s in again.stages] == [
        (PARTS[1], "reuse"),
        (WHOLE, "reuse"),
        ("probe", "resume"),
    ]
    assert [stage.name for stage in _submit(divided).stages] == [PARTS[1], WHOLE, "probe"]


def test_cancelling_a_stage_cancels_its_parts(divided: Store, scheduler: Scheduler) -> None:
    run = _submit(divided)
    names = cancel(look(run.run_id, divided, scheduler, WHOLE), divided, scheduler)
    assert set(names) == {WHOLE, "probe", *PARTS}
    assert set(scheduler.cancelled) == set("123456")


def test_resuming_a_stage_resumes_its_parts(divided: Store, scheduler: Scheduler) -> None:
    run = _submit(divided)
    scheduler.gone.update("123456")
    again = resume(run.run_id, divided, scheduler, stage=WHOLE).run
    assert [stage.name for stage in again.stages] == [*PARTS, WHOLE]
