"""Resume continues only what is broken, replaces what waits in vain, and guards what changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster import fsio
from cluster.contract import (
    ArrayRequest,
    JobHandle,
    JobRequest,
    JobState,
    Phase,
    Resources,
    SchedulerError,
)
from orchestrator import cancel as cancellation
from orchestrator import retry
from orchestrator.errors import Refused
from orchestrator.resume import Changes, Resumed, resume
from orchestrator.sharing import cancel_file_of, given_up
from tests.orchestrator.fabricated import KINDS, FabricatedRun

CONFIG = {
    "pretrain": {
        "data": {"format": "synthetic", "name": "motion", "size": 32, "frames": 20},
        "method": {"name": "dpc", "pred_steps": 2, "augment": "none"},
        "backbone": {"name": "r2d3d_tiny"},
        "clip": {"blocks": 4, "frames": 5, "stride": 1, "size": 32},
        "max_steps": 10,
        "batch_size": 16,
        "micro_batch": 4,
    },
    "probe": {},
    "report": {},
}


@dataclass
class Cluster:
    """A scheduler in memory: jobs are pending until a test says otherwise."""

    name: str = "local"
    requests: dict[str, JobRequest] = field(default_factory=dict)
    states: dict[str, JobState] = field(default_factory=dict)
    cancelled: list[list[str]] = field(default_factory=list)
    queries: int = 0
    down: bool = False
    on_cancel: Callable[[], None] = lambda: None

    def submit(self, request: JobRequest) -> JobHandle:
        job = str(100 + len(self.requests))
        self.requests[job] = request
        self.states[job] = JobState(phase=Phase.PENDING)
        return JobHandle(executor=self.name, cluster="test", job_id=job, submitted_at=1.0)

    def submit_array(self, array: ArrayRequest) -> list[JobHandle]:
        return [self.submit(task) for task in array.tasks]

    def array_limit(self) -> int:
        return 1001

    def render(self, request: JobRequest | ArrayRequest) -> str:
        return ""

    def query(self, handles: Sequence[JobHandle]) -> dict[JobHandle, JobState]:
        self.queries += 1
        if self.down:
            raise SchedulerError("squeue: exit code 1: Unable to contact slurm controller")
        gone = JobState(phase=Phase.GONE)
        return {handle: self.states.get(handle.job_id, gone) for handle in handles}

    def find(self, name: str, task: int | None = None) -> JobHandle | None:
        return None

    def cancel(self, handles: Sequence[JobHandle]) -> None:
        if self.down:
            raise SchedulerError("scancel: exit code 1: Unable to contact slurm controller")
        self.cancelled.append([handle.job_id for handle in handles])
        for handle in handles:
            self.states.pop(handle.job_id, None)
        self.on_cancel()

    def wait(
        self, handles: Sequence[JobHandle], on_tick: Any = None, timeout: float | None = None
    ) -> dict[JobHandle, JobState]:
        return self.query(handles)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr("cluster.executors.make", lambda name: made)
    return made


def a_run(root: Path, cluster: Cluster, run_id: str = "demo-0123abcd") -> FabricatedRun:
    """A run that `resume` can read, none of whose stages has a job."""
    run = FabricatedRun(root, run_id=run_id)
    folder = run.store.run_dir(run_id)
    record = fsio.read_json(folder / "run.json")
    code = {"path": None, "version": "abc"}
    more = {"code": code, "submitted_at": 10.0, "tracking": {"enabled": False}}
    fsio.write_json(folder / "run.json", {**record, **more, "executor": "local"})
    plan = fsio.read_json(folder / "plan.json")
    for entry in plan["stages"]:
        entry.update(resources=asdict(Resources(nodes=2, hours=3.0, mem_gb=16.0)), policy={})
        stage = run.stage(entry["name"])
        fsio.make_dir(stage.path)
        name = entry["name"]
        spec = {"key": entry["key"], "kind": KINDS[name], "name": name, "inputs": {}}
        fsio.write_json(stage.stage_file, {**spec, "config": CONFIG[name]})
    fsio.write_json(folder / "plan.json", plan)
    return run


@pytest.fixture
def run(tmp_path: Path, cluster: Cluster) -> FabricatedRun:
    return a_run(tmp_path / "store", cluster)


def jobs(resumed: Resumed) -> Mapping[str, str]:
    return {stage.name: stage.job_id for stage in resumed.run.stages}


def actions(resumed: Resumed) -> list[tuple[str, str]]:
    return [(stage.name, stage.action) for stage in resumed.run.stages]


def test_only_what_is_broken_is_submitted_and_says_from_where(
    run: FabricatedRun, cluster: Cluster
) -> None:
    run.succeeded("pretrain")
    first = resume(run.run_id, run.store, cluster)
    assert actions(first) == [("pretrain", "reuse"), ("probe", "resume"), ("report", "resume")]
    cluster.states.pop(jobs(first)["report"])
    checkpoint = run.stage("report").checkpoints / "step_000000040"
    fsio.make_dir(checkpoint)
    fsio.write_json(checkpoint / "manifest.json", {})
    again = resume(run.run_id, run.store, cluster)
    assert actions(again) == [("pretrain", "reuse"), ("probe", "attach"), ("report", "resume")]
    assert again.run.stages[2].reason == "continues from step 40"


def test_a_job_that_waits_for_a_parent_that_is_submitted_anew_is_replaced(
    run: FabricatedRun, cluster: Cluster
) -> None:
    """SLURM may not have ended it yet, and then it would be taken for one that will run."""
    first = resume(run.run_id, run.store, cluster)
    cluster.states.pop(jobs(first)["pretrain"])
    again = resume(run.run_id, run.store, cluster)
    assert {action for _, action in actions(again)} == {"resume"}
    assert cluster.cancelled == [[jobs(first)["probe"], jobs(first)["report"]]]
    probe = cluster.requests[jobs(again)["probe"]]
    assert [handle.job_id for handle in probe.after] == [jobs(again)["pretrain"]]


def test_what_cannot_go_on_is_refused_before_anything_is_cancelled_or_claimed(
    run: FabricatedRun, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resume(run.run_id, run.store, cluster)
    cluster.states.pop(jobs(first)["pretrain"])  # the jobs behind it are to be replaced
    cancel = cancel_file_of(run.run_id, run.store)
    fsio.write_json(cancel, {"at": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr("cluster.limits.problems", lambda name, jobs: ["probe: is too large"])
        with pytest.raises(Refused, match="probe: is too large"):
            resume(run.run_id, run.store, cluster)
    run.stage("probe").stage_file.unlink()
    with pytest.raises(Refused, match=r"probe was never submitted.*`orchestrate submit"):
        resume(run.run_id, run.store, cluster)
    assert cluster.cancelled == [] and cancel.exists()
    assert run.stage("pretrain").latest_intent() == run.stage("pretrain").intent(1)


def test_a_job_whose_dependency_will_never_be_met_is_replaced(
    run: FabricatedRun, cluster: Cluster
) -> None:
    run.succeeded("pretrain")
    first = resume(run.run_id, run.store, cluster)
    job = jobs(first)["probe"]
    cluster.states[job] = JobState(phase=Phase.PENDING, reason="DependencyNeverSatisfied")
    again = resume(run.run_id, run.store, cluster)
    assert jobs(again)["probe"] not in ("", job)
    assert cluster.cancelled[0][0] == job


def test_a_stage_that_has_stopped_is_continued_though_its_job_is_still_being_cleaned_up(
    run: FabricatedRun, cluster: Cluster
) -> None:
    first = resume(run.run_id, run.store, cluster, "pretrain")
    cluster.states[jobs(first)["pretrain"]] = JobState(phase=Phase.RUNNING, reason="COMPLETING")
    assert actions(resume(run.run_id, run.store, cluster, "pretrain")) == [("pretrain", "attach")]
    run.attempt("pretrain", start={"started_at": 20.0}, exit={"decision": "stop"})
    assert actions(resume(run.run_id, run.store, cluster, "pretrain")) == [("pretrain", "resume")]


def test_resources_change_for_the_stage_that_is_named_and_stay_changed(
    run: FabricatedRun, cluster: Cluster
) -> None:
    changes = Changes(nodes=4, hours=8.0)
    first = resume(run.run_id, run.store, cluster, "pretrain", changes)
    assert first.left == ("probe", "report")
    asked = cluster.requests[jobs(first)["pretrain"]].resources
    assert (asked.nodes, asked.hours, asked.mem_gb) == (4, 8.0, 16.0)
    cluster.states.clear()
    again = resume(run.run_id, run.store, cluster)
    asked = {name: cluster.requests[job].resources.nodes for name, job in jobs(again).items()}
    assert asked == {"pretrain": 4, "probe": 2, "report": 2}


def test_changes_go_to_the_one_stage_that_broke(run: FabricatedRun, cluster: Cluster) -> None:
    run.succeeded("pretrain")
    again = resume(run.run_id, run.store, cluster, changes=Changes(hours=9.0))
    asked = {n: cluster.requests[job].resources.hours for n, job in jobs(again).items() if job}
    assert asked == {"probe": 9.0, "report": 3.0}
    cluster.states.clear()
    run.succeeded("probe")
    run.succeeded("report")
    with pytest.raises(Refused, match="nothing is broken in this run"):
        resume(run.run_id, run.store, cluster, changes=Changes(hours=9.0))


def test_nodes_over_which_the_batch_cannot_be_shared_out_are_refused_with_those_that_fit(
    run: FabricatedRun, cluster: Cluster
) -> None:
    with pytest.raises(Refused, match=r"rank counts that fit: 1, 2, 4; --nodes may be 1, 2, 4$"):
        resume(run.run_id, run.store, cluster, "pretrain", Changes(nodes=3))
    assert not cluster.requests


def test_a_stage_with_a_job_or_a_result_takes_no_changes(
    run: FabricatedRun, cluster: Cluster
) -> None:
    resume(run.run_id, run.store, cluster, "pretrain")
    with pytest.raises(Refused, match=r"first `orchestrate cancel demo-0123abcd:pretrain"):
        resume(run.run_id, run.store, cluster, "pretrain", Changes(hours=2.0))
    run.succeeded("pretrain")
    with pytest.raises(Refused, match="pretrain is finished"):
        resume(run.run_id, run.store, cluster, "pretrain", Changes(hours=2.0))


def test_bad_nodes_stay_out_for_the_whole_run_and_grown_memory_for_its_stage(
    run: FabricatedRun, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.policy.partition_size", lambda name: 8)
    run.stage("pretrain").claim(1, "a-name", {"run_id": run.run_id, "resources": {}})
    ended = {"exclude": ["n7"], "mem_gb": 32.0}
    run.attempt("pretrain", "s001r001", start={"started_at": 20.0}, exit=ended)
    run.attempt("pretrain", "s001r000", start={"started_at": 5.0}, exit={"exclude": ["n1"]})
    again = resume(run.run_id, run.store, cluster)
    asked = {name: cluster.requests[job].resources for name, job in jobs(again).items()}
    assert {one.exclude for one in asked.values()} == {"n7"}
    assert (asked["pretrain"].mem_gb, asked["probe"].mem_gb) == (32.0, 16.0)


def test_cancel_marks_and_stops_children_first_with_one_question(
    run: FabricatedRun, cluster: Cluster
) -> None:
    first = resume(run.run_id, run.store, cluster)
    cluster.queries = 0
    found = cancellation.look(run.run_id, run.store, cluster)
    assert cluster.queries == 1
    names = cancellation.cancel(found, run.store, cluster)
    assert names == ["report", "probe", "pretrain"]
    assert cluster.cancelled == [[jobs(first)[name] for name in names]]
    assert all(run.stage(name).cancelled() for name in names)


def test_cancel_leaves_what_has_no_job_as_it_is(run: FabricatedRun, cluster: Cluster) -> None:
    first = resume(run.run_id, run.store, cluster)
    cluster.states.pop(jobs(first)["pretrain"])
    found = cancellation.look(run.run_id, run.store, cluster)
    assert [target.name for target in found.targets] == ["report", "probe"]


def test_a_cancel_without_a_scheduler_is_noted_so_that_nothing_starts_again(
    run: FabricatedRun, cluster: Cluster
) -> None:
    resume(run.run_id, run.store, cluster, "pretrain")
    cluster.down = True
    found = cancellation.look(run.run_id, run.store, cluster)
    with pytest.raises(SchedulerError, match=r"pretrain: noted in the store"):
        cancellation.cancel(found, run.store, cluster)
    assert run.stage("pretrain").cancelled() is not None


def test_a_job_that_was_recorded_while_the_others_were_stopped_is_stopped_as_well(
    run: FabricatedRun, cluster: Cluster
) -> None:
    resume(run.run_id, run.store, cluster, "pretrain")
    file = run.stage("pretrain").path / "submission-1.json"

    def successor() -> None:
        record = fsio.read_json(file)
        fsio.write_json(file, {**record, "handle": {**record["handle"], "job_id": "777"}})

    cluster.on_cancel = successor
    found = cancellation.look(run.run_id, run.store, cluster)
    cancellation.cancel(found, run.store, cluster)
    assert cluster.cancelled == [["100"], ["777"]]


def test_a_stage_of_another_run_is_named_unless_that_run_was_given_up(
    run: FabricatedRun, cluster: Cluster
) -> None:
    other = a_run(run.store.root, cluster, "other-ffff0000")
    resume(run.run_id, run.store, cluster)
    found = cancellation.look(run.run_id, run.store, cluster)
    assert set(found.shared.values()) == {("other-ffff0000",)}
    kept = cancellation.cancel(found, run.store, cluster, keep=found.shared)
    assert kept == [] and cluster.cancelled == []
    assert given_up(run.store.read_run(run.run_id), run.store)
    theirs = cancellation.look(other.run_id, run.store, cluster)
    assert theirs.shared == {}
    resume(run.run_id, run.store, cluster)
    assert not given_up(run.store.read_run(run.run_id), run.store)


def made(run: FabricatedRun, name: str) -> None:
    """What a finished stage leaves."""
    stage = run.stage(name)
    for step in (20, 40):
        folder = fsio.make_dir(stage.checkpoints / f"step_{step:09d}")
        fsio.write_json(folder / "manifest.json", {})
    fsio.make_dir(stage.outputs)
    (stage.outputs / "encoder.safetensors").write_bytes(b"x" * 1000)
    run.attempt(name, start={"started_at": 20.0})
    run.succeeded(name)


def test_clearing_moves_all_a_stage_has_come_to_aside_and_deletes_nothing(
    run: FabricatedRun, cluster: Cluster
) -> None:
    other = a_run(run.store.root, cluster, "other-ffff0000")
    for name in ("pretrain", "probe"):
        made(run, name)
    found = retry.look(run.run_id, "pretrain", run.store)
    assert (found.finished, found.steps) == (True, (20, 40))
    assert found.num_bytes > 1000
    assert found.shared == (other.run_id,)
    assert found.stale == (f"{run.run_id}:probe",)
    retry.clear(found)
    stage = run.stage("pretrain")
    assert stage.result() is None and not stage.has_committed()
    assert (found.aside / "outputs" / "encoder.safetensors").stat().st_size == 1000
    assert len(stage.attempt_records()) == 1
    again = resume(run.run_id, run.store, cluster, "pretrain")
    assert again.run.stages[0].reason == "from the beginning"
    assert retry.look(other.run_id, "probe", run.store).aside.name == "cleared-1"


def test_clearing_is_refused_while_a_job_works_with_the_stage(
    run: FabricatedRun, cluster: Cluster
) -> None:
    made(run, "pretrain")
    resume(run.run_id, run.store, cluster)
    with pytest.raises(Refused, match=r"demo-0123abcd:probe \(job 100\)"):
        retry.look(run.run_id, "pretrain", run.store)


def test_a_second_clearing_goes_to_a_folder_of_its_own(
    run: FabricatedRun, cluster: Cluster
) -> None:
    for n in (1, 2):
        made(run, "pretrain")
        found = retry.look(run.run_id, "pretrain", run.store)
        retry.clear(found)
        assert found.aside.name == f"cleared-{n}"
    assert retry.look(run.run_id, "pretrain", run.store).empty
