"""The main job on real video: tennis strokes, pretrained on a SLURM of two nodes, two ranks each.

This is about the machinery: few steps of a narrow network on 273 clips. The figures are real, but
nothing is claimed of what the pretraining is worth.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import CommandLine, make_command_line
from tests.slurm_cluster import PrivateSlurm

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slurm,
    pytest.mark.xdist_group("slurm"),
    # The pipeline runs in the fixture, on whatever cores the machine has left.
    pytest.mark.timeout(1200),
]

CLIPS = Path(
    os.environ.get("ORCHESTRATE_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")
).resolve()
EPOCHS, BATCH = 2, 16
RECIPE = (
    "recipes/dpc_folder.yaml",
    "data=csv",
    "data.name=tennis7",
    "cluster=slurm",
    "cluster.resources.device=cpu",
    "cluster.resources.cpus_per_task=1",
    # Clips of 59 to 63 frames: what the recipe's own comment says of short ones.
    "stages.pretrain.clip.stride=1",
    "stages.pretrain.clip.size=64",
    "stages.pretrain.backbone.name=r2d3d_tiny",
    f"stages.pretrain.epochs={EPOCHS}",
    f"stages.pretrain.batch_size={BATCH}",
    "stages.pretrain.micro_batch=4",
    "stages.pretrain.workers=1",
    "+stages.pretrain.log_every=4",
    "+stages.pretrain.resources={nodes: 2, tasks_per_node: 2, hours: 0.5}",
    "stages.finetune.epochs=1",
    *(
        f"stages.{name}.{field}"
        for name in ("finetune", "supervised")
        for field in ("batch_size=16", "micro_batch=8", "workers=1")
    ),
    *(
        f"+stages.{name}.windows=1"
        for name in (
            *("probe", "probe_random", "finetune", "supervised"),
            *("retrieval", "retrieval_random", "mean_color"),
        )
    ),
)
STAGES = {
    *("index-tennis7", "prepare-tennis7"),
    *("pretrain", "probe", "probe_random", "finetune", "supervised"),
    *("retrieval", "retrieval_random", "mean_color", "report"),
}


@dataclass(frozen=True)
class Finished:
    """A store in which the pipeline ran to its end, and the MLflow server it reported to."""

    run: CommandLine
    uri: str
    plan: dict[str, Any]

    def stage_dir(self, name: str) -> Path:
        """Folder of a stage by its name in the recipe."""
        (entry,) = (entry for entry in self.plan["stages"] if entry["name"] == name)
        return self.run.store / "stages" / str(entry["stage"])

    def result(self, name: str) -> dict[str, Any]:
        """What a stage left."""
        value: dict[str, Any] = json.loads((self.stage_dir(name) / "result.json").read_text())
        return value

    def table(self) -> dict[tuple[str, str], dict[str, str]]:
        """Lines of report.csv by protocol and method, of each the headline metric."""
        with (self.stage_dir("report") / "outputs" / "report.csv").open() as stream:
            lines = list(csv.DictReader(stream))
        return {(line["protocol"], line["method"]): line for line in lines if line["chance"]}


def _list_of_clips(slurm: PrivateSlurm) -> Path:
    """The csv of the clips, which must be there and visible from the nodes."""
    file = CLIPS / "tennis7.csv"
    if not file.is_file():
        pytest.skip(f"the real clips are not at {CLIPS}: set ORCHESTRATE_TEST_DATA to their folder")
    if slurm.run("srun", "--nodes=2", "test", "-r", str(file), check=False).returncode:
        pytest.skip(
            f"the nodes of the private SLURM do not see {CLIPS}, it lies in a hidden folder"
        )
    return file


def _count(split: str) -> int:
    """Clips of one split in the list."""
    with (CLIPS / "tennis7.csv").open() as stream:
        return sum(row["split"] == split for row in csv.DictReader(stream))


def _steps() -> int:
    """Optimizer steps of the pretraining; the last, incomplete batch of an epoch is left out."""
    return EPOCHS * (_count("train") // BATCH)


@pytest.fixture(scope="module")
def finished(slurm: PrivateSlurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The whole pipeline, submitted as a user does, with an MLflow server beside it."""
    from tracking import server

    clips = _list_of_clips(slurm)
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    run = make_command_line(slurm.shared / f"real-{os.urandom(3).hex()}", slurm.env)
    with server.running(
        f"sqlite:///{database}", database.parent, port=server.free_port()
    ) as mlflow:
        run("submit", *RECIPE, f"data.file={clips}", f"tracking.uri={mlflow.url}")
        _await_end(run)
        # A stage has succeeded before its job has told MLflow so.
        slurm.wait_for(lambda: not slurm.live(), 120)
        plan = json.loads(next(run.store.glob("runs/*/plan.json")).read_text())
        yield Finished(run=run, uri=mlflow.url, plan=plan)
    slurm.heal()


def _await_end(run: CommandLine) -> None:
    """Stay until the run is done; where it failed, show what its stages wrote."""
    process = run.start("status", "latest", "--watch")
    try:
        output, _ = process.communicate(timeout=1000)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the run did not end\n{run('status')}")
    assert process.returncode == 0, output + "".join(
        run("logs", f"latest:{name}", "-n", "30")
        for name, stage in run.status().items()
        if stage["status"] == "failed"
    )


def test_every_stage_succeeds(finished: Finished) -> None:
    stages = finished.run.status()
    assert {name: stage["status"] for name, stage in stages.items()} == dict.fromkeys(
        STAGES, "succeeded"
    )
    assert finished.result("index-tennis7")["metrics"]["excluded"] == 0


def test_the_pretraining_ran_as_four_ranks_on_two_nodes_and_saw_every_epoch(
    finished: Finished,
) -> None:
    (start,) = finished.stage_dir("pretrain").glob("attempts/*/start.json")
    record = json.loads(start.read_text())
    assert record["world_size"] == 4
    assert record["hosts"] == "n[1-2]"
    assert finished.result("pretrain")["steps"] == _steps()
    assert len(list((finished.stage_dir("pretrain") / "logs").glob("*_?_log.out"))) == 4


def test_the_report_sets_dpc_beside_random_weights_supervised_and_mean_colour(
    finished: Finished,
) -> None:
    tested = _count("test")
    page = (finished.stage_dir("report") / "outputs" / "report.md").read_text(encoding="utf-8")
    for words in ("| DPC |", "| random weights |", "| supervised from scratch |"):
        assert words in page
    assert "| mean colour, no network |" in page
    assert page.count(f"Test videos: {tested}.") == 3
    table = finished.table()
    assert set(table) == {
        ("linear", "dpc"),
        ("linear", "random"),
        ("finetune", "dpc"),
        ("finetune", "supervised"),
        ("retrieval", "dpc"),
        ("retrieval", "random"),
        ("retrieval", "mean_color"),
    }
    for line in table.values():
        assert int(line["num_test"]) == tested
        assert float(line["chance"]) == pytest.approx(1 / 7, abs=0.02)
        assert float(line["coverage"]) == 1.0
        assert 0.0 <= float(line["low"]) <= float(line["value"]) <= float(line["high"]) <= 1.0


def test_mean_colour_alone_is_far_above_chance_which_is_why_it_stands_there(
    finished: Finished,
) -> None:
    """Courts differ in colour, so a nearest neighbour by it finds the stroke of the same match."""
    line = finished.table()["retrieval", "mean_color"]
    assert float(line["low"]) > 1.5 * float(line["chance"])


def test_whoever_uses_the_encoder_used_that_of_the_pretraining(finished: Finished) -> None:
    pretrain = finished.result("pretrain")
    made = pretrain["artifacts"]["encoder"]
    for name in ("probe", "finetune", "retrieval"):
        (used,) = finished.result(name)["inputs"]["encoder"]
        assert used["sha256"] == made["sha256"]
        assert used["key"] == pretrain["key"]
    assert "encoder" not in finished.result("probe_random")["inputs"]


def test_mlflow_holds_the_finished_runs_and_where_the_encoder_came_from(
    finished: Finished,
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(finished.uri)
    experiment = client.get_experiment_by_name("dpc_folder")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = {
        run.data.tags["orchestrate.stage"]: run
        for run in runs
        if "mlflow.parentRunId" in run.data.tags
    }
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert set(children) == STAGES
    assert {run.info.status for run in runs} == {"FINISHED"}
    for child in children.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    pretrain, probe = (client.get_run(children[name].info.run_id) for name in ("pretrain", "probe"))
    assert probe.data.tags["orchestrate.upstream.encoder"] == pretrain.info.run_id
    (made,), (taken,) = pretrain.outputs.model_outputs, probe.inputs.model_inputs
    assert made.model_id == taken.model_id
    shown = probe.data.metrics["top1"]
    assert shown == pytest.approx(finished.result("probe")["metrics"]["top1"])
    history = client.get_metric_history(pretrain.info.run_id, "train/loss")
    assert max(point.step for point in history) == _steps()
    assert not list(finished.run.store.glob("mlflow.db"))
