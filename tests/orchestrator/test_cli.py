"""The commands as a person types them: answers, exit codes, names, errors."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.contract import Phase, SchedulerError
from cluster.executors import EXECUTORS
from orchestrator.cli import app
from tests.orchestrator import fabricated
from tests.orchestrator.fabricated import FAILED, FabricatedRun, FakeExecutor

Invoke = Callable[..., Result]

COMMANDS = (
    *("validate", "plan", "submit", "status", "logs"),
    *("why", "resume", "retry", "cancel", "list", "ui", "sync", "lineage", "doctor", "drill"),
    "schema",
)

RECIPE = """\
# The smallest recipe there is.
name: tiny
stages:
  videos:
    kind: index
    data: {format: synthetic, size: 16, frames: 8, train: 8, test: 8}
"""


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> FakeExecutor:
    """The fake executor that every command gets."""
    fake = FakeExecutor()
    monkeypatch.setitem(EXECUTORS, "fake", f"{fabricated.__name__}:the_fake")
    monkeypatch.setattr(fabricated, "the_fake", lambda: fake, raising=False)
    return fake


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ORCHESTRATE_DEBUG", "0")  # `--debug` sets it: not for the tests behind
    return tmp_path / "store"


@pytest.fixture
def run(store: Path, executor: FakeExecutor) -> FabricatedRun:
    return FabricatedRun(store)


@pytest.fixture
def recipe(tmp_path: Path, executor: FakeExecutor) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE + "cluster: {executor: fake}\n")
    return str(path)


@pytest.fixture
def orchestrate(store: Path) -> Invoke:
    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), catch_exceptions=False)

    return invoke


def test_help_lists_every_command_in_one_line_each(orchestrate: Invoke) -> None:
    result = orchestrate("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        (line,) = [line for line in result.stdout.splitlines() if line.strip().startswith(name)]
        assert not line.endswith("...")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_ends_with_examples(orchestrate: Invoke, name: str) -> None:
    text = orchestrate(name, "--help").stdout
    assert "Examples:\n" in text
    assert f"    orchestrate {name}" in text


def test_status_shows_the_latest_run_when_none_is_named(
    run: FabricatedRun, orchestrate: Invoke
) -> None:
    result = orchestrate("status")
    assert result.exit_code == 0
    assert result.stdout.startswith("demo-0123abcd  planned")


def test_status_as_json_is_one_object_on_stdout(run: FabricatedRun, orchestrate: Invoke) -> None:
    value = json.loads(orchestrate("status", "demo", "--json").stdout)
    assert value["schema_version"] == 1
    assert [stage["name"] for stage in value["stages"]] == ["pretrain", "probe", "report"]


def test_status_answers_0_even_if_the_run_failed_and_watch_answers_1(
    run: FabricatedRun, orchestrate: Invoke
) -> None:
    run.submitted("pretrain")
    run.started("pretrain", end=FAILED)
    assert orchestrate("status").exit_code == 0
    result = orchestrate("status", "--watch")
    assert result.exit_code == 1
    assert "pretrain: failed" in result.stdout


def test_status_works_where_its_executor_does_not(
    run: FabricatedRun, orchestrate: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.submitted("pretrain")
    monkeypatch.delitem(EXECUTORS, "fake")
    result = orchestrate("status")
    assert result.exit_code == 0
    assert "pretrain  waiting" in result.stdout
    assert "no scheduler can be asked" in result.stdout


def test_a_part_of_an_id_is_enough(run: FabricatedRun, orchestrate: Invoke) -> None:
    assert orchestrate("status", "123a").stdout.startswith("demo-0123abcd")


def test_an_ambiguous_id_lists_what_it_may_be(
    run: FabricatedRun, store: Path, orchestrate: Invoke
) -> None:
    FabricatedRun(store, run_id="demo-ffff0000")
    result = orchestrate("status", "demo")
    assert result.exit_code == 2
    assert "demo-0123abcd" in result.stderr
    assert "demo-ffff0000" in result.stderr
    assert result.stdout == ""


def test_an_unknown_id_names_the_nearest(run: FabricatedRun, orchestrate: Invoke) -> None:
    result = orchestrate("status", "demo-0123abce")
    assert result.exit_code == 2
    assert "did you mean `demo-0123abcd`?" in result.stderr


def test_an_empty_store_says_how_to_begin(orchestrate: Invoke, store: Path) -> None:
    result = orchestrate("status")
    assert result.exit_code == 2
    assert f"no runs in {store} yet" in result.stderr
    assert "orchestrate submit" in result.stderr


def test_the_store_can_be_named_on_the_command_line(
    tmp_path: Path, executor: FakeExecutor, orchestrate: Invoke
) -> None:
    FabricatedRun(tmp_path / "elsewhere", run_id="there-00000000")
    result = orchestrate("status", "--store", str(tmp_path / "elsewhere"))
    assert result.stdout.startswith("there-00000000")


def test_logs_are_printed_with_the_rank_where_there_are_several(
    run: FabricatedRun, orchestrate: Invoke
) -> None:
    job = run.submitted("pretrain")
    for rank in (1, 0):
        (run.stage("pretrain").logs / f"{job}_{rank}_log.out").write_text(f"I am {rank}\n")
    assert orchestrate("logs", "demo:pre").stdout == "[0] I am 0\n[1] I am 1\n"
    assert orchestrate("logs", "demo:pre", "--rank", "1").stdout == "I am 1\n"
    answer = orchestrate("logs", "latest:pre", "--rank", "7")
    assert answer.exit_code == 2
    assert "--rank 7: demo-0123abcd:pretrain has logs of ranks 0 to 1\n" in answer.stderr


def test_logs_without_a_stage_lists_the_stages(run: FabricatedRun, orchestrate: Invoke) -> None:
    result = orchestrate("logs", "demo")
    assert result.exit_code == 2
    assert "pretrain\n  probe\n  report" in result.stderr


def test_logs_of_an_unknown_stage_names_the_nearest(
    run: FabricatedRun, orchestrate: Invoke
) -> None:
    result = orchestrate("logs", "demo:pretrian")
    assert result.exit_code == 2
    assert "did you mean `pretrain`?" in result.stderr


def test_following_the_logs_of_a_finished_stage_ends(
    run: FabricatedRun, orchestrate: Invoke
) -> None:
    job = run.submitted("pretrain")
    run.succeeded("pretrain")
    (run.stage("pretrain").logs / f"{job}_0_log.out").write_text("one\ntwo\n")
    assert orchestrate("logs", "demo:pretrain", "-f", "-n", "1").stdout == "[0] two\n"


def test_cancel_names_what_it_stopped(
    run: FabricatedRun, executor: FakeExecutor, orchestrate: Invoke
) -> None:
    job = run.submitted("pretrain")
    executor.phases = {job: Phase.RUNNING}
    result = orchestrate("cancel", "demo")
    assert result.stdout == "demo-0123abcd: cancelled pretrain\n"
    assert [one.job_id for one in executor.cancelled] == [job]
    executor.phases = {}
    assert orchestrate("status", "--json").stdout.count('"cancelled"') == 2  # stage and run


def test_cancel_asks_where_another_run_uses_a_stage_and_refuses_where_nobody_can_answer(
    run: FabricatedRun, store: Path, executor: FakeExecutor, orchestrate: Invoke
) -> None:
    job = run.submitted("pretrain")
    executor.phases = {job: Phase.RUNNING}
    FabricatedRun(store, run_id="other-ffff0000")
    result = orchestrate("cancel", "demo")
    assert result.exit_code == 2
    assert "  pretrain: other-ffff0000\n" in result.stderr
    assert "--yes stops them too, --keep-shared leaves them alone" in result.stderr
    assert run.stage("pretrain").cancelled() is None
    result = orchestrate("cancel", "demo", "--keep-shared")
    assert result.stdout == (
        "demo-0123abcd: cancelled nothing: none of it waits or runs\n"
        "demo-0123abcd: pretrain goes on for other-ffff0000\n"
    )
    value = json.loads(orchestrate("cancel", "other", "--yes", "--json").stdout)
    assert (value["cancelled"], value["kept"]) == (["pretrain"], {})


def test_a_person_at_a_terminal_is_asked(
    run: FabricatedRun,
    store: Path,
    executor: FakeExecutor,
    orchestrate: Invoke,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = run.submitted("pretrain")
    executor.phases = {job: Phase.RUNNING}
    FabricatedRun(store, run_id="other-ffff0000")
    said: list[bool] = []

    def answer(text: str, abort: bool, err: bool) -> None:
        said.append("stop them for all?" in text)

    monkeypatch.setattr("orchestrator.arguments.on_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", answer)
    assert orchestrate("cancel", "demo").stdout.endswith("cancelled pretrain\n")
    assert said == [True]


def test_why_explains_the_latest_run_or_one_stage(
    run: FabricatedRun, executor: FakeExecutor, orchestrate: Invoke
) -> None:
    run.submitted("pretrain")
    run.started("pretrain", end=FAILED)
    assert orchestrate("why").stdout.startswith("demo-0123abcd  failed\npretrain  failed")
    assert orchestrate("why", "demo:pre").stdout.startswith("pretrain  failed")
    value = json.loads(orchestrate("why", "demo:pre", "--json").stdout)
    assert [stage["name"] for stage in value["stages"]] == ["pretrain"]


def test_retry_of_a_finished_stage_names_the_option_and_asks(
    run: FabricatedRun, executor: FakeExecutor, orchestrate: Invoke
) -> None:
    run.submitted("pretrain")
    run.succeeded("pretrain")
    result = orchestrate("retry", "demo:pretrain")
    assert result.exit_code == 2
    assert "`orchestrate retry demo-0123abcd:pretrain --clear` starts it" in result.stderr
    result = orchestrate("retry", "demo:pretrain", "--clear")
    assert result.exit_code == 2
    assert "pretrain has its result" in result.stderr
    assert "nothing was done: --yes does it unasked" in result.stderr
    assert run.stage("pretrain").result() is not None


def test_list_shows_the_newest_runs_first(
    run: FabricatedRun, store: Path, orchestrate: Invoke
) -> None:
    FabricatedRun(store, run_id="demo-ffff0000")
    lines = orchestrate("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "demo-ffff0000", "demo-0123abcd"]
    value = json.loads(orchestrate("list", "--json").stdout)
    assert [one["id"] for one in value["runs"]] == ["demo-ffff0000", "demo-0123abcd"]


def test_list_asks_the_scheduler_once_for_all_runs(
    run: FabricatedRun, store: Path, executor: FakeExecutor, orchestrate: Invoke
) -> None:
    FabricatedRun(store, run_id="demo-ffff0000")
    run.submitted("pretrain")
    orchestrate("list")
    assert len(executor.queries) == 1


@pytest.mark.parametrize(
    ("what", "name"),
    [("stages", "index"), ("backbones", "r2d3d18"), ("methods", "dpc"), ("datasets", "ucf101")],
)
def test_list_names_what_a_recipe_can_say(orchestrate: Invoke, what: str, name: str) -> None:
    value = json.loads(orchestrate("list", what, "--json").stdout)
    (entry,) = [one for one in value[what] if one["name"] == name]
    assert entry["about"].endswith(".")


def test_validate_says_that_a_recipe_is_valid(orchestrate: Invoke, recipe: str) -> None:
    result = orchestrate("validate", recipe, "+seed=3")
    assert (result.exit_code, result.stdout) == (0, f"{recipe}: valid, 1 stages\n")


def test_all_errors_of_a_recipe_come_on_stderr_with_exit_code_2(
    orchestrate: Invoke, recipe: str
) -> None:
    result = orchestrate("plan", recipe, "stages.videos.data.size=17", "stages.videos.kind=indx")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "stages.videos" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_recipe_that_does_not_exist_is_invalid_input(orchestrate: Invoke) -> None:
    result = orchestrate("submit", "nowhere.yaml")
    assert result.exit_code == 2
    assert "nowhere.yaml" in result.stderr


def test_plan_shows_what_would_happen_and_writes_nothing(
    orchestrate: Invoke, recipe: str, store: Path
) -> None:
    result = orchestrate("plan", recipe)
    assert result.exit_code == 0
    head, columns, line, cost = result.stdout.splitlines()
    assert head.startswith("tiny  run tiny-")
    assert columns.split()[:3] == ["stage", "kind", "action"]
    assert line.split()[:3] == ["videos", "index", "run"]
    assert cost.startswith("1 job, no GPUs, up to ")
    assert not store.exists()


def test_plan_as_json_has_exactly_the_documented_fields(orchestrate: Invoke, recipe: str) -> None:
    value = json.loads(orchestrate("plan", recipe, "--json").stdout)
    assert set(value["run"]) == {"id", "recipe", "executor", "gpu_hours", "transport"}
    documented = {"name", "kind", "key", "action", "reason", "after", "resources", "config"}
    documented |= {"part_of"}
    assert set(value["stages"][0]) == documented


def test_plan_prints_every_script(orchestrate: Invoke, recipe: str) -> None:
    text = orchestrate("plan", recipe, "--sbatch").stdout
    assert text.startswith("# ---- stage videos\n#!/bin/bash\n")


def test_a_scheduler_that_refuses_is_a_problem_of_the_site(
    orchestrate: Invoke, recipe: str
) -> None:
    result = orchestrate("submit", recipe)
    assert result.exit_code == 3
    assert result.stderr == "error: stage videos: not in this test; nothing was submitted\n"
    status = json.loads(orchestrate("status", "--json").stdout)
    assert status["stages"][0]["reason"] == "the scheduler refused the job"


@pytest.fixture
def submitting(executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> FakeExecutor:
    """A fake executor that takes jobs, which then wait."""
    monkeypatch.setattr(executor, "submit", lambda request: fabricated.handle("7"), raising=False)
    executor.phases = {"7": Phase.PENDING}
    return executor


def test_submit_returns_when_the_jobs_are_in_and_says_what_comes_next(
    orchestrate: Invoke, recipe: str, submitting: FakeExecutor
) -> None:
    result = orchestrate("submit", recipe)
    assert result.exit_code == 0
    head, _, line, after = result.stdout.splitlines()
    assert line.split()[:3] == ["videos", "run", "7"]
    run_id = head.split()[2]
    assert after == f"status: orchestrate status {run_id}   ui: orchestrate ui"


def test_submitting_twice_attaches_to_the_job(
    orchestrate: Invoke, recipe: str, submitting: FakeExecutor
) -> None:
    orchestrate("submit", recipe)
    value = json.loads(orchestrate("submit", recipe, "--json").stdout)
    documented = {"name", "action", "job_id", "reason", "key", "after", "part_of"}
    assert [set(stage) for stage in value["stages"]] == [documented]
    assert (value["stages"][0]["action"], value["stages"][0]["job_id"]) == ("attach", "7")


def test_waiting_for_a_run_that_does_not_succeed_answers_1(
    orchestrate: Invoke, recipe: str, submitting: FakeExecutor
) -> None:
    submitting.phases = {"7": Phase.GONE}
    result = orchestrate("submit", recipe, "--wait")
    assert result.exit_code == 1
    assert "videos: lost" in result.stdout


def test_ctrl_c_while_waiting_for_a_cluster_cancels_nothing_and_says_so_once(
    orchestrate: Invoke, recipe: str, submitting: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(submitting, "wait", interrupted, raising=False)
    result = orchestrate("submit", recipe, "--wait")
    assert result.exit_code == 130
    assert result.stderr.count("nothing was cancelled") == 1
    assert not hasattr(submitting, "cancelled")


def test_a_scheduler_that_does_not_answer_for_a_while_does_not_end_the_waiting(
    orchestrate: Invoke, recipe: str, submitting: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([SchedulerError("squeue: timed out"), SchedulerError("again"), None])

    def wait(*_: object) -> None:
        error = next(answers)
        if error is not None:
            raise error

    monkeypatch.setattr(submitting, "wait", wait, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    result = orchestrate("submit", recipe, "--wait")
    assert result.exit_code == 1  # the fake job never did anything
    assert result.stderr.count("the scheduler does not answer") == 1
    assert next(answers, "all used") == "all used"


def test_resume_submits_only_what_is_broken(
    orchestrate: Invoke, recipe: str, submitting: FakeExecutor
) -> None:
    orchestrate("submit", recipe)
    submitting.phases = {"7": Phase.GONE}
    monkey = fabricated.handle("8")
    submitting.submit = lambda request: monkey  # type: ignore[method-assign]
    value = json.loads(orchestrate("resume", "--stage", "vid", "--json").stdout)
    assert [(s["action"], s["job_id"]) for s in value["stages"]] == [("resume", "8")]


def test_an_unexpected_error_is_one_line_and_the_traceback_is_for_those_who_ask(
    run: FabricatedRun, orchestrate: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.store.run_dir(run.run_id) / "plan.json").write_text("{}")
    result = orchestrate("status")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: unexpected KeyError")
    assert "Traceback" in orchestrate("--debug", "status").stderr
    monkeypatch.setenv("ORCHESTRATE_DEBUG", "1")
    assert "Traceback" in orchestrate("status").stderr


def test_a_store_that_cannot_be_written_is_a_problem_of_the_site(
    orchestrate: Invoke, recipe: str, submitting: FakeExecutor, store: Path
) -> None:
    store.write_text("a file where the folder should be")
    result = orchestrate("submit", recipe)
    assert result.exit_code == 3
    assert str(store) in result.stderr


def test_an_unknown_option_is_invalid_input(orchestrate: Invoke) -> None:
    assert orchestrate("status", "--nonsense").exit_code == 2


def test_the_schema_is_json_that_knows_the_stage_kinds(orchestrate: Invoke, tmp_path: Path) -> None:
    text = orchestrate("schema").stdout
    assert '"stages"' in text
    assert orchestrate("schema", "-o", str(tmp_path / "s.json")).stdout == ""
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(text)


def test_the_version_is_printed(orchestrate: Invoke) -> None:
    result = orchestrate("--version")
    assert (result.exit_code, result.stdout.split()[0]) == (0, "orchestrate")


def test_shipped_recipes_are_listed_with_a_sentence_and_found_by_name(orchestrate: Invoke) -> None:
    value = json.loads(orchestrate("list", "recipes", "--json").stdout)
    about = {entry["name"]: entry["about"] for entry in value["recipes"]}
    assert {"quickstart", "dpc_folder", "dpc_ucf101", "dpc_k400"} <= set(about)
    assert all(text.endswith(".") and not text.startswith("orchestrate") for text in about.values())
    assert orchestrate("validate", "quickstart").exit_code == 0


def test_the_doctor_says_which_ffmpeg_each_decoder_carries_and_what_to_do(
    orchestrate: Invoke, store: Path
) -> None:
    result = orchestrate("doctor", "--json")
    assert result.exit_code == 0, result.stderr
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert "FFmpeg 4.1" in checks["decoder decord"]["found"]
    assert checks["decoder decord"]["state"] == "warning"
    assert "data.prepare" in checks["decoder decord"]["advice"]
    assert str(store) in checks["store"]["found"]
    assert "decoder decord" in orchestrate("doctor").stdout
    assert not store.exists()


def test_the_doctor_fails_where_the_store_cannot_be_written(
    orchestrate: Invoke, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    result = orchestrate("doctor", "--store", str(tmp_path / "file"))
    assert result.exit_code == 3
    assert "cannot write" in result.stdout


def test_a_damaged_file_is_named_and_keeps_no_other_run_from_the_list(
    run: FabricatedRun, orchestrate: Invoke
) -> None:
    other = FabricatedRun(run.store.root, run_id="other-ffff0000")
    damaged = other.store.run_dir(other.run_id) / "run.json"
    damaged.write_text("{")
    os.utime(damaged.parent, (1.0, 1.0))  # before the run that is asked about
    assert orchestrate("why", run.run_id).exit_code == 0
    listed = orchestrate("list", "--json")
    assert [one["id"] for one in json.loads(listed.stdout)["runs"]] == [run.run_id]
    assert "warning: other-ffff0000 is left out: " in listed.stderr
    run.submitted("pretrain")
    (run.started("pretrain") / "exit.json").write_text('{"deci')
    asked = orchestrate("status", run.run_id)
    assert asked.exit_code == 3
    assert "exit.json: not valid JSON" in asked.stderr and "move it away" in asked.stderr


def test_a_store_with_dots_is_told_without_them(
    run: FabricatedRun, orchestrate: Invoke, tmp_path: Path
) -> None:
    dotted = tmp_path / "x" / ".." / "store"
    (tmp_path / "x").mkdir()
    listed = orchestrate("status", "--json", "--store", str(dotted))
    assert json.loads(listed.stdout)["run"]["store"] == str(run.store.root.resolve())


def test_options_that_would_do_nothing_are_refused(orchestrate: Invoke, recipe: str) -> None:
    for words in (["doctor", "--nodes", "2"], ["plan", recipe, "--sbatch", "--json"]):
        assert orchestrate(*words).exit_code == 2


def test_the_doctor_tells_what_it_found_here_though_its_job_was_refused(
    orchestrate: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SchedulerError("sbatch: no such partition")

    monkeypatch.setattr("orchestrator.job_checkup.examine", refuse)
    answer = orchestrate("doctor", "--job", "--json")
    found = {check["name"]: check for check in json.loads(answer.stdout)["checks"]}
    assert answer.exit_code == 3 and len(found) > 1
    assert found["job"]["found"] == "sbatch: no such partition"
