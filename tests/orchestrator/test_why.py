"""What `why` tells of stages laid out by hand: cause, history, what was new, the next command."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster import fsio
from cluster.contract import JobHandle, Phase
from cluster.history import Attempt, History
from orchestrator import why
from orchestrator.differences import difference
from orchestrator.status import read_status
from orchestrator.store import Store
from orchestrator.view import emit
from orchestrator.why_view import why_view
from tests.orchestrator.fabricated import FAILED, PREEMPTED, FabricatedRun, FakeExecutor

CONFIG = {"seed": 0, "workers": 4, "windows": 1, "encoder": "given"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FabricatedRun:
    monkeypatch.setenv("ORCHESTRATE_STORE", str(tmp_path / "store"))
    return FabricatedRun(tmp_path / "store")


def told(run: FabricatedRun, executor: FakeExecutor, stage: str | None = None) -> str:
    status = read_status(run.run_id, run.store, executor)
    stream = io.StringIO()
    found = why.answers(status, run.store, stage)
    emit(why_view(status, found, alone=stage is not None), stream)
    return stream.getvalue()


def rekeyed(run: FabricatedRun, stage: str, key: str, **spec: object) -> None:
    """Give a stage of a run an identity and a stage.json of its own."""
    file = run.store.run_dir(run.run_id) / "plan.json"
    plan = fsio.read_json(file)
    (entry,) = [entry for entry in plan["stages"] if entry["name"] == stage]
    entry["key"] = key
    fsio.write_json(file, plan)
    folder = run.store.stage_dir(entry["kind"], key)
    fsio.make_dir(folder.path)
    value = {"key": key, "kind": entry["kind"], "name": stage, "inputs": {}, **spec}
    fsio.write_json(folder.stage_file, value)


def two_runs(store: Store, old: dict[str, object], new: dict[str, object]) -> FabricatedRun:
    """A run and an earlier one of the same recipe, whose probes have these stage.json."""
    for run_id, key, spec in (("demo-aaaa0000", "a" * 64, old), ("demo-bbbb0000", "b" * 64, new)):
        run = FabricatedRun(store.root, run_id=run_id)
        rekeyed(run, "probe", key, **{"config": CONFIG, **spec})
    return run


def test_a_failed_stage_is_told_with_all_lines_and_what_stands_behind_it(
    run: FabricatedRun,
) -> None:
    job = run.submitted("pretrain")
    run.started("pretrain", end=FAILED)
    run.submitted("probe")
    text = told(run, FakeExecutor())
    assert text.startswith("demo-0123abcd  failed\n")
    assert (
        f"pretrain  failed  {job}  attempt 1\n  why:     the stage's code raised an error" in text
    )
    assert "\n           second line\n" in text
    assert "\n  next:    orchestrate logs demo-0123abcd:pretrain --rank 0\n" in text
    assert "probe  blocked" in text
    assert "\n  waits:   pretrain (failed)\n" in text


def test_one_stage_alone_tells_of_all_its_attempts_and_decisions(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    ended = {"decision": "requeue", "policy": "free", "cause": "preempted", "reason": "preempted"}
    run.started("pretrain", end=PREEMPTED, exit=ended)
    run.started("pretrain", "s001r001")
    lines = told(run, FakeExecutor(phases={job: Phase.RUNNING}), "pretrain").splitlines()
    tries = [line for line in lines if line.startswith("  try")]
    assert "s001r000" in tries[0] and "preempted or requeued on n14, saved at step 480" in tries[0]
    assert tries[0].endswith("[tried again, however often (preempted)]")
    assert tries[1].endswith("on n14  runs")


def test_accounting_is_asked_about_one_stage_whose_job_is_gone_without_a_record(
    run: FabricatedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run.submitted("pretrain")
    file = run.stage("pretrain").path / "submission-1.json"
    record = fsio.read_json(file)
    fsio.write_json(file, {**record, "handle": {**record["handle"], "executor": "slurm"}})
    asked: list[str] = []

    def answer(handles: Sequence[JobHandle]) -> History:
        asked.extend(handle.job_id for handle in handles)
        row = {"job_id": job, "state": "NODE_FAIL", "reason": "", "nodes": "n7", "exit_code": 1}
        times = {"submitted_at": 1.0, "started_at": 2.0, "ended_at": 3.0}
        return History(attempts={handles[0]: [Attempt(**row, **times)]})

    monkeypatch.setattr("cluster.history.read_history", answer)
    slurm = FakeExecutor(name="slurm")
    assert "sacct" not in told(run, slurm)
    assert "  sacct:   NODE_FAIL on n7 at " in told(run, slurm, "pretrain")
    assert asked == [job]
    run.started("pretrain", exit={"decision": "stop", "self_ended": False, "reason": "cancelled"})
    assert "sacct" not in told(run, slurm, "pretrain")


def test_a_reused_stage_names_the_run_it_came_from(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    run.succeeded("pretrain")
    other = FabricatedRun(run.store.root, run_id="other-ffff0000")
    assert "  reused:  finished in run demo-0123abcd" in told(other, FakeExecutor(), "pretrain")


def test_a_waiting_stage_tells_what_keeps_it(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    executor = FakeExecutor(phases={job: Phase.PENDING}, reasons={job: "PartitionTimeLimit"})
    text = told(run, executor, "pretrain")
    assert "asks for more time than its partition allows (PartitionTimeLimit)" in text
    again = "orchestrate resume demo-0123abcd --stage pretrain --hours HOURS"
    assert f"next:    orchestrate cancel demo-0123abcd:pretrain && {again}\n" in text
    executor.reasons[job] = "InvalidAccount"
    submit = "orchestrate submit recipes/demo.yaml seed=1 cluster.resources.account=NAME"
    assert f":pretrain && {submit}\n" in told(run, executor, "pretrain")


def test_an_attempt_that_succeeded_and_was_cleared_away_is_told_so(run: FabricatedRun) -> None:
    job = run.submitted("pretrain")
    start = {"host": "n14", "started_at": 5.0}
    end = {"outcome": "succeeded", "exit_code": 0, "cause": "", "message": "", "step": 9}
    ended = {"decision": "finished", "exit_code": 0, "reason": "the result is there"}
    run.attempt("pretrain", start=start, end=end, exit=ended)
    (line,) = [
        line for line in told(run, FakeExecutor(), "pretrain").splitlines() if "try 1" in line
    ]
    assert line.endswith(f"job {job}  on n14  succeeded")


def test_a_stage_that_was_taken_back_says_why(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    who = {"user": "bob", "host": "login2", "at": 5.0, "reason": "probe was refused"}
    fsio.write_json(run.stage("pretrain").cancel_file, who)
    assert ": probe was refused\n" in told(run, FakeExecutor(), "pretrain")


def test_the_fields_that_made_a_stage_run_anew_are_named_and_transient_ones_are_not(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "store")
    run = two_runs(store, {}, {"config": {**CONFIG, "windows": 4, "workers": 9}})
    found = difference(run.run_id, "probe", store)
    assert found is not None
    assert (found.run, [str(field) for field in found.fields]) == (
        "demo-aaaa0000",
        ["windows 1 -> 4"],
    )
    assert found.inputs == () and found.code == ()
    text = told(run, FakeExecutor(), "probe")
    assert "  new:     other than in run demo-aaaa0000:\n           windows 1 -> 4\n" in text


def test_an_input_from_another_stage_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    old, new = ({"encoder": [{"artifact": "encoder", "key": key}]} for key in "xy")
    run = two_runs(store, {"inputs": old}, {"inputs": new})
    found = difference(run.run_id, "probe", store)
    assert found is not None and found.inputs == ("encoder",)


def test_files_of_code_that_differ_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run = two_runs(store, {}, {})
    for run_id, text in (("demo-aaaa0000", "x = 1\n"), ("demo-bbbb0000", "# new\nx = 2\n")):
        code = tmp_path / run_id
        file = code / "recipes" / "stages" / "probe" / "run.py"
        fsio.make_dir(file.parent)
        file.write_text(text)
        record = store.run_dir(run_id) / "run.json"
        fsio.write_json(record, {**fsio.read_json(record), "code": {"path": str(code)}})
    found = difference(run.run_id, "probe", store)
    assert found is not None and found.code == ("recipes/stages/probe/run.py",)


def test_a_stage_that_is_the_same_as_before_differs_in_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    FabricatedRun(store.root, run_id="demo-aaaa0000")
    run = FabricatedRun(store.root, run_id="demo-bbbb0000")
    assert difference(run.run_id, "probe", store) is None


def test_the_json_object_has_exactly_the_documented_fields(run: FabricatedRun) -> None:
    run.submitted("pretrain")
    run.started("pretrain", end=FAILED)
    status = read_status(run.run_id, run.store, FakeExecutor())
    value = json.loads(json.dumps(why.to_json(status, why.answers(status, run.store))))
    documented = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    (line,) = [line for line in documented.splitlines() if line.startswith("- `why --json`")]
    for field in [*value["stages"][0], *value["stages"][0]["attempts"][0]]:
        assert f'"{field}"' in line
