"""What MLflow shows of a pipeline that was delivered from its folders."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cluster import fsio
from tests.tracking.fabricate import T0, Pipeline, Stage, finish_all, make_pipeline
from tracking.stagefiles import State
from tracking.sync import sync_run, sync_stage

CANARY = "hf_canary_token_0123"


@dataclass(frozen=True)
class Delivered:
    """A pipeline that ran to its end without a server and was delivered once."""

    pipeline: Pipeline
    client: MlflowClient
    parent: Run
    children: dict[str, Run]


def _look(pipeline: Pipeline) -> Delivered:
    report = sync_run(pipeline.store, pipeline.run_id)
    assert report.problems == ()
    client = MlflowClient(pipeline.uri)
    parent = client.get_run(report.url.rpartition("/")[2])
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    found = client.search_runs([parent.info.experiment_id], query)
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names))
    children = {run.info.run_name: client.get_run(run.info.run_id) for run in found}
    return Delivered(pipeline, client, parent, children)


def _points(client: MlflowClient, run: Run, key: str) -> list[tuple[int, float, int]]:
    history = client.get_metric_history(run.info.run_id, key)
    return sorted((one.step, one.value, one.timestamp) for one in history)


def _logged(stage: Stage, key: str) -> list[tuple[int, float, int]]:
    return [
        (line["step"], line["metrics"][key], round(line["time"] * 1000))
        for line in stage.lines()
        if key in line["metrics"]
    ]


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "http"])
def delivered(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
) -> Delivered:
    """The finished pipeline in an embedded store, in PostgreSQL and on a server."""
    store = tmp_path_factory.mktemp(request.param) / "store"
    if request.param == "sqlite":
        store.mkdir(mode=0o700)
        (store / "mlflow.db").write_bytes(empty_database.read_bytes())
        uri = f"sqlite:///{store}/mlflow.db"
    elif request.param == "postgresql":
        uri = request.getfixturevalue("postgres_databases")()
    else:
        uri = request.getfixturevalue("mlflow_server").url
    pipeline = make_pipeline(store, f"demo-{request.param}", uri)
    finish_all(pipeline)
    return _look(pipeline)


def test_a_pipeline_is_a_finished_parent_run_with_a_child_run_a_stage(
    delivered: Delivered,
) -> None:
    assert delivered.parent.info.run_name == delivered.pipeline.run_id
    assert set(delivered.children) == {"data-ucf101", "pretrain", "probe", "report"}
    for run in (delivered.parent, *delivered.children.values()):
        assert run.info.status == "FINISHED"
        assert run.info.start_time == round(T0 * 1000)
        assert run.info.end_time == 1750000800000
        assert run.info.user_id == "ada"
    experiment = delivered.client.get_experiment(delivered.parent.info.experiment_id)
    assert experiment.name == delivered.pipeline.experiment
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_metrics_in_mlflow_equal_metrics_jsonl(delivered: Delivered) -> None:
    pretrain, probe = (delivered.pipeline.stages[name] for name in ("pretrain", "probe"))
    loss = _points(delivered.client, delivered.children["pretrain"], "train/loss")
    assert loss == _logged(pretrain, "train/loss")
    assert len(loss) == 40
    accuracy = _points(delivered.client, delivered.children["probe"], "accuracy")
    assert accuracy == _logged(probe, "accuracy")


def test_results_are_metrics_of_the_stage_and_of_the_pipeline(delivered: Delivered) -> None:
    probe = delivered.children["probe"].data.metrics
    assert (probe["top1"], probe["R_at_10"]) == (0.54, 0.81)
    parent = delivered.parent.data.metrics
    assert (parent["probe/top1"], parent["probe/R_at_10"]) == (0.54, 0.81)


def test_the_configuration_is_readable_as_parameters(delivered: Delivered) -> None:
    params = delivered.children["pretrain"].data.params
    assert params["optimizer.lr"] == "0.0028"
    assert params["optimizer.betas"] == "[0.9, 0.999]"
    assert params["method.name"] == "dpc"
    assert params["method.num_tokens"] == "196"
    title = delivered.children["report"].data.params["title"]
    assert len(title) == 1000
    assert title.endswith("…")


def test_tags_say_which_job_did_what_with_which_code_from_which_runs(
    delivered: Delivered,
) -> None:
    tags = delivered.children["probe"].data.tags
    stage = delivered.pipeline.stages["probe"]
    assert tags["orchestrate.run_id"] == delivered.pipeline.run_id
    assert tags["orchestrate.stage_key"] == stage.key
    assert tags["orchestrate.stage"] == "probe"
    assert tags["orchestrate.kind"] == "probe"
    assert tags["orchestrate.job_id"] == "41"
    assert tags["orchestrate.attempt"] == "s001r000"
    assert tags["orchestrate.code_version"] == "0123abc"
    upstream = {
        slot: delivered.children[name].info.run_id
        for slot, name in (("data", "data-ucf101"), ("encoder", "pretrain"))
    }
    assert {slot: tags[f"orchestrate.upstream.{slot}"] for slot in upstream} == upstream


def test_datasets_are_inputs_with_the_digest_of_their_index(delivered: Delivered) -> None:
    record = fsio.read_json(delivered.pipeline.stages["data-ucf101"].path / "result.json")
    digest = record["artifacts"]["dataset"]["sha256"]
    for name, context in (("pretrain", "training"), ("probe", "training")):
        (given,) = delivered.children[name].inputs.dataset_inputs
        assert given.dataset.name == "ucf101"
        assert given.dataset.digest == digest[:32]
        assert json.loads(given.dataset.source)["sha256"] == digest
        assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", context)]


def test_an_encoder_is_a_model_made_by_pretraining_and_taken_in_by_the_probe(
    delivered: Delivered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = delivered.client
    (made,) = delivered.children["pretrain"].outputs.model_outputs
    (taken,) = delivered.children["probe"].inputs.model_inputs
    assert made.model_id == taken.model_id
    assert made.step == 195
    model = client.get_logged_model(made.model_id)
    assert model.source_run_id == delivered.children["pretrain"].info.run_id
    assert model.name == "pretrain-encoder"
    assert str(model.status) == "READY"
    assert model.params["backbone.name"] == "r2d3d18"
    from mlflow.artifacts import download_artifacts

    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(delivered.pipeline.uri))
    folder = download_artifacts(artifact_uri=f"models:/{made.model_id}", dst_path=str(tmp_path))
    content = (Path(folder) / "encoder.safetensors").read_bytes()
    assert content == b"weights of " + delivered.pipeline.run_id.encode()
    assert model.tags["sha256"] == fsio.sha256_file(Path(folder) / "encoder.safetensors")
    # What people need to use it lies beside it, and what belongs to the stage does not.
    names = {"encoder.safetensors", "encoder.py", "encoder.json", "README.md"}
    assert names == {path.name for path in Path(folder).iterdir()} - {"MLmodel"}


def test_the_model_page_lists_the_numbers_measured_with_it(delivered: Delivered) -> None:
    (made,) = delivered.children["pretrain"].outputs.model_outputs
    metrics = delivered.client.get_logged_model(made.model_id).metrics
    probe = delivered.children["probe"].info.run_id
    found = {one.key: (one.value, one.dataset_name) for one in metrics if one.run_id == probe}
    assert found == {"top1": (0.54, "ucf101"), "R_at_10": (0.81, "ucf101")}


def test_figures_tables_graph_and_recipe_are_artifacts(delivered: Delivered) -> None:
    def listed(run: Run, folder: str | None = None) -> set[str]:
        return {one.path for one in delivered.client.list_artifacts(run.info.run_id, folder)}

    assert listed(delivered.children["probe"], "figures") == {"figures/probe.png"}
    assert "result.json" in listed(delivered.children["probe"])
    assert "report.md" in listed(delivered.children["report"])
    assert {"pipeline.svg", "recipe.yaml"} <= listed(delivered.parent)
    assert listed(delivered.parent, "report") == {"report/report.md"}


def test_the_parent_shows_a_table_of_stages_with_links(delivered: Delivered) -> None:
    note = delivered.parent.data.tags["mlflow.note.content"]
    for name, run in delivered.children.items():
        link = f"[{name}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"
        assert link in note
    assert "top1 0.54" in note


def test_a_secret_of_the_configuration_is_nowhere_in_mlflow(
    delivered: Delivered, tmp_path: Path
) -> None:
    assert CANARY in (delivered.pipeline.stages["pretrain"].path / "stage.json").read_text()
    assert delivered.children["pretrain"].data.params["hub.token"] == "[hidden]"
    assert delivered.children["pretrain"].data.params["hub.stage_key"] == "kept"
    for run in (delivered.parent, *delivered.children.values()):
        assert CANARY not in str(run.to_dictionary())
        folder = delivered.client.download_artifacts(run.info.run_id, "", str(tmp_path))
        for path in Path(folder).rglob("*"):
            assert not path.is_file() or CANARY.encode() not in path.read_bytes()


def test_delivering_again_changes_nothing(delivered: Delivered) -> None:
    before = {name: run.to_dictionary() for name, run in delivered.children.items()}
    loss = _points(delivered.client, delivered.children["pretrain"], "train/loss")
    again = _look(delivered.pipeline)
    assert {name: run.to_dictionary() for name, run in again.children.items()} == before
    assert _points(again.client, again.children["pretrain"], "train/loss") == loss
    (made,) = again.children["pretrain"].outputs.model_outputs
    assert len(again.client.get_logged_model(made.model_id).metrics) == 3


def test_delivery_after_the_record_was_lost_finds_the_same_runs(delivered: Delivered) -> None:
    """As after a crash between creating a run and writing its id down."""
    loss = _points(delivered.client, delivered.children["pretrain"], "train/loss")
    for stage in delivered.pipeline.stages.values():
        (stage.path / "tracking.json").unlink()
    (delivered.pipeline.run_dir / "mlflow.json").unlink()
    again = _look(delivered.pipeline)
    ids = {name: run.info.run_id for name, run in delivered.children.items()}
    assert {name: run.info.run_id for name, run in again.children.items()} == ids
    assert again.parent.info.run_id == delivered.parent.info.run_id
    assert _points(again.client, again.children["pretrain"], "train/loss") == loss
    assert len(again.children["pretrain"].outputs.model_outputs) == 1
    assert len(again.children["probe"].inputs.model_inputs) == 1


def test_a_run_that_somebody_deleted_is_delivered_again_from_the_store(
    tmp_path: Path, sqlite_uri: str
) -> None:
    pipeline = make_pipeline(tmp_path / "store", "r1", sqlite_uri)
    finish_all(pipeline)
    first = _look(pipeline)
    first.client.delete_run(first.children["pretrain"].info.run_id)
    second = _look(pipeline)
    assert second.children["pretrain"].info.run_id != first.children["pretrain"].info.run_id
    loss = _points(second.client, second.children["pretrain"], "train/loss")
    assert loss == _logged(pipeline.stages["pretrain"], "train/loss")


def _one(tmp_path: Path, uri: str, name: str = "pretrain") -> tuple[Pipeline, Stage]:
    pipeline = make_pipeline(tmp_path / "store", "r1", uri, [name])
    return pipeline, pipeline.stages[name]


def test_a_diverged_stage_shows_its_whole_curve_and_its_end(
    tmp_path: Path, database_uri: str
) -> None:
    pipeline, stage = _one(tmp_path, database_uri)
    stage.start("s001r000")
    stage.metrics("s001r000", range(5), loss=lambda step: math.nan if step == 4 else 1.0)
    stage.checkpoint(2)
    stage.failure("s001r000", "loss is nan at step 4", "Traceback: DivergedError")
    stage.end("s001r000", "failed", 4, 72, cause="diverged", message="loss is nan at step 4")
    look = _look(pipeline)
    run = look.children["pretrain"]
    assert run.info.status == look.parent.info.status == "FAILED"
    assert run.data.tags["orchestrate.reason"] == "diverged: loss is nan at step 4"
    history = look.client.get_metric_history(run.info.run_id, "loss")
    assert [one.step for one in history] == [0, 1, 2, 3, 4]
    assert math.isnan(history[-1].value)
    text = look.client.download_artifacts(run.info.run_id, "failure-s001r000.txt", str(tmp_path))
    assert "DivergedError" in Path(text).read_text()


def test_a_stage_that_failed_and_was_resumed_is_one_run_without_double_points(
    tmp_path: Path, sqlite_uri: str
) -> None:
    pipeline, stage = _one(tmp_path, sqlite_uri)
    stage.start("s001r000")
    stage.metrics("s001r000", range(10))
    stage.checkpoint(6)
    stage.end("s001r000", "failed", 9, 70, cause="user_code", message="bug")
    first = _look(pipeline)
    assert first.children["pretrain"].info.status == "FAILED"
    stage.submission(2, pipeline.tracking("pretrain"))
    stage.start("s002r000")
    stage.metrics("s002r000", range(7, 20), late=1000)
    stage.result("s002r000", {}, {}, 19)
    second = _look(pipeline)
    run = second.children["pretrain"]
    assert run.info.run_id == first.children["pretrain"].info.run_id
    assert run.info.status == "FINISHED"
    steps = [step for step, _, _ in _points(second.client, run, "train/loss")]
    assert steps == list(range(20))


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (State(name="cancelled", reason="by ada", final=True), "KILLED"),
        (State(name="lost", reason="node n2 failed"), "KILLED"),
        (State(name="requeued", reason="preempted"), "SCHEDULED"),
        (State(name="running"), "RUNNING"),
    ],
)
def test_the_state_that_the_scheduler_knows_becomes_the_status(
    tmp_path: Path, sqlite_uri: str, state: State, status: str
) -> None:
    pipeline, stage = _one(tmp_path, sqlite_uri)
    stage.start("s001r000")
    stage.metrics("s001r000", range(5))
    stage.checkpoint(3)
    outcome = sync_stage(stage.path, state=state)
    assert (outcome.status, outcome.problem) == (status, "")
    run = MlflowClient(pipeline.uri).get_run(outcome.mlflow_run_id)
    assert run.info.status == status
    assert run.data.tags["orchestrate.state"] == state.name
    assert outcome.points == (5 if state.final else 4)


def test_a_stage_of_two_pipelines_is_a_child_of_the_first_and_linked_from_the_second(
    tmp_path: Path, sqlite_uri: str
) -> None:
    first = make_pipeline(tmp_path / "store", "first", sqlite_uri)
    finish_all(first)
    one = _look(first)
    second = tmp_path / "store" / "runs" / "second"
    fsio.make_dir(second)
    for name in ("run.json", "plan.json", "recipe.yaml"):
        (second / name).write_bytes((first.run_dir / name).read_bytes())
    report = sync_run(first.store, "second")
    assert report.problems == ()
    parent = one.client.get_run(report.url.rpartition("/")[2])
    assert parent.info.run_id != one.parent.info.run_id
    assert parent.info.status == "FINISHED"
    assert one.children["probe"].info.run_id in parent.data.tags["mlflow.note.content"]
    again = one.client.get_run(one.children["probe"].info.run_id)
    assert again.data.tags["mlflow.parentRunId"] == one.parent.info.run_id


def test_a_server_that_is_away_is_one_line_soon_and_nothing_is_lost(
    tmp_path: Path, sqlite_uri: str
) -> None:
    pipeline, stage = _one(tmp_path, "http://127.0.0.1:9")  # the discard port: nobody listens
    stage.start("s001r000")
    stage.metrics("s001r000", range(5))
    stage.result("s001r000", {}, {}, 4)
    started = time.monotonic()
    report = sync_run(pipeline.store, pipeline.run_id)
    assert time.monotonic() - started < 15
    (problem,) = report.problems
    assert "orchestrate sync" in problem
    stage.submission(1, pipeline.tracking("pretrain", sqlite_uri))
    outcome = sync_stage(stage.path)
    assert (outcome.points, outcome.status, outcome.problem) == (5, "FINISHED", "")


def test_stages_that_never_ran_have_no_run_and_an_unreached_pipeline_runs_on(
    tmp_path: Path, sqlite_uri: str
) -> None:
    pipeline = make_pipeline(tmp_path / "store", "r1", sqlite_uri)
    look = _look(pipeline)
    assert look.children == {}
    assert look.parent.info.status == "RUNNING"


def test_what_the_folder_of_a_store_keeps_is_private(tmp_path: Path) -> None:
    store = tmp_path / "store"
    pipeline = make_pipeline(store, "r1", f"sqlite:///{store}/mlflow.db", ["pretrain"])
    finished = pipeline.stages["pretrain"]
    finished.start("s001r000")
    finished.result("s001r000", {}, {}, 0)
    _look(pipeline)
    for path in (store / "mlflow.db", store / "mlartifacts"):
        assert path.stat().st_mode & 0o077 == 0


def test_reading_the_modules_does_not_import_mlflow() -> None:
    names = ["outbox", "sync", "server", "lineage", "recorder", "shipping", "closing"]
    code = "; ".join([*(f"import tracking.{name}" for name in names), "import sys"])
    heavy = "{'mlflow', 'pandas', 'numpy', 'torch'} & set(sys.modules)"
    answer: Any = subprocess.run(
        [sys.executable, "-c", f"{code}; print({heavy})"], capture_output=True, text=True
    )
    assert answer.stdout.strip() == "set()", answer.stderr
