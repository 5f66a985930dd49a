"""Tests of plans: actions, inputs, resources, run ids, batches, and what planning costs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import fsio
from orchestrator.errors import RecipeErrors
from orchestrator.external import external_stages
from orchestrator.plan import ExternalStage, Plan, StageFacts, decide, load_recipe, make_plan
from orchestrator.store import Store
from tests.orchestrator.recipes_for_tests import (
    ROOT,
    SHIPPED,
    SMALL,
    check_golden,
    keys,
    load_text,
    nothing_exists,
)

REPORT = "  report:\n    kind: report\n    inputs: {results: [probe.result]}\n"


def _plan(folder: Path, text: str = SMALL, *overrides: str) -> Plan:
    return make_plan(load_text(folder, text, overrides), nothing_exists, has_gpus=False)


def _told(plan: Plan) -> str:
    """A plan as text without its keys, which follow the code."""
    lines = []
    for stage in plan.stages:
        asked = stage.resources
        lines.append(
            f"{stage.name}: {stage.action} {stage.kind}, {asked.nodes} x {asked.tasks_per_node} "
            f"{asked.device}, {asked.hours:g} h, {stage.gpu_hours:g} GPU-hours"
        )
        for slot, refs in stage.inputs.items():
            for ref in refs:
                lines.append(f"  {slot} <- {ref.ref} ({ref.kind})")
    return "\n".join([*lines, f"total {plan.gpu_hours:g} GPU-hours", ""])


@pytest.mark.parametrize("name", ["quickstart", "dpc_k400"])
def test_the_plan_of_a_shipped_recipe_is_the_golden_one(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    check_golden(f"plan_{name}.txt", _told(make_plan(recipe, nothing_exists, has_gpus=False)))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
@pytest.mark.parametrize("has_gpus", [False, True])
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_every_shipped_recipe_plans_without_its_data(
    file: Path, has_gpus: bool, cluster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA", str(tmp_path / "nothing here"))
    recipe = load_recipe(file, [f"cluster={cluster}"])
    plan = make_plan(recipe, nothing_exists, has_gpus=has_gpus)
    assert {stage.action for stage in plan.stages} == {"run"}
    assert [stage for stage in plan.stages if stage.kind == "report"]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("dpc_k400", ["scale=published"]),
        ("dpc_ucf101", ["scale=multinode"]),
        ("dpc_folder", ["data=csv", "data.file=list.csv", "data.root=/videos"]),
        ("dpc_folder", ["data.root=/videos", "stages.pretrain.clip.stride=1"]),
        ("learn_check", ["data@data.set=synthetic_static"]),
        ("quickstart", ["tracking=disabled", "cluster=slurm", "cluster.resources.partition=debug"]),
    ],
)
def test_the_variants_that_recipes_tell_of_plan_too(name: str, overrides: list[str]) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides)
    assert make_plan(recipe, nothing_exists, has_gpus=False).stages


def test_the_published_scale_takes_the_batch_of_the_paper() -> None:
    recipe = load_recipe(ROOT / "recipes" / "dpc_k400.yaml", ["scale=published"])
    pretrain = make_plan(recipe, nothing_exists, has_gpus=False).stage("pretrain")
    assert (pretrain.config["batch_size"], pretrain.config["micro_batch"]) == (128, 64)
    assert pretrain.config["optimizer"]["lr"] == 1e-3
    assert pretrain.resources.world_size == 2


def test_stages_that_use_one_data_set_share_one_index(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    assert [stage.name for stage in plan.stages] == ["index-motion", "pretrain", "probe"]
    for name in ("pretrain", "probe"):
        (ref,) = plan.stage(name).inputs["data"]
        assert ref.ref == "index-motion.dataset"
        assert ref.key == plan.stage("index-motion").key
    assert plan.stage("probe").upstream == ("pretrain", "index-motion")


def test_different_data_of_one_name_get_two_indexes(tmp_path: Path) -> None:
    text = SMALL.replace(
        "    inputs: {encoder",
        "    data: {format: synthetic, name: motion, seed: 1}\n    inputs: {encoder",
    ).replace("    kind: probe\n    data: ${data.motion}\n", "    kind: probe\n")
    plan = _plan(tmp_path, text)
    assert plan.stage("pretrain").inputs["data"][0].ref == "index-motion.dataset"
    assert plan.stage("probe").inputs["data"][0].ref == "index-motion-2.dataset"
    assert plan.stage("index-motion").key != plan.stage("index-motion-2").key


def test_a_written_out_index_is_used_instead_of_a_new_one(tmp_path: Path) -> None:
    text = SMALL + "  scan: {kind: index, data: '${data.motion}', workers: 3}\n"
    plan = _plan(tmp_path, text)
    assert [stage.name for stage in plan.stages] == ["scan", "pretrain", "probe"]
    assert plan.stage("scan").key == _plan(tmp_path).stage("index-motion").key


def test_cells_of_a_matrix_can_feed_cells_of_another(tmp_path: Path) -> None:
    seeds = "    matrix: {seed: [0, 1]}\n    seed: ${matrix.seed}\n"
    text = SMALL.replace("    kind: pretrain\n", f"    kind: pretrain\n{seeds}")
    text = text.replace("    kind: probe\n", f"    kind: probe\n{seeds}")
    text = text.replace("pretrain.encoder", "'pretrain/${matrix.seed}.encoder'")
    plan = _plan(tmp_path, text)
    for seed in (0, 1):
        (ref,) = plan.stage(f"probe/{seed}").inputs["encoder"]
        assert ref.upstream == f"pretrain/{seed}"
        assert plan.stage(f"pretrain/{seed}").config["seed"] == seed
    assert plan.stage("probe/0").key == _plan(tmp_path).stage("probe").key


@pytest.mark.parametrize(
    ("fact", "action", "words"),
    [
        (StageFacts(), "run", "has not run yet"),
        (StageFacts(has_checkpoint=True), "resume", "continues from its checkpoint"),
        (StageFacts(running=True, detail="job 7"), "attach", "job 7"),
        (StageFacts(running=True, has_checkpoint=True), "attach", "submitted"),
        (StageFacts(result=True, running=True, has_checkpoint=True), "reuse", "finished"),
        (StageFacts(blocked="stopped after 3 attempts"), "blocked", "stopped after 3"),
        (StageFacts(blocked="stopped", result=True), "reuse", "finished"),
    ],
)
def test_what_exists_decides_the_action_of_a_stage(
    tmp_path: Path, fact: StageFacts, action: str, words: str
) -> None:
    plan = decide(_plan(tmp_path), lambda kind, key: fact if kind == "pretrain" else StageFacts())
    assert plan.stage("pretrain").action == action
    assert words in plan.stage("pretrain").reason
    assert plan.stage("index-motion").action == "run"


def test_whatever_needs_a_blocked_stage_is_blocked_and_nothing_else(tmp_path: Path) -> None:
    blocked = StageFacts(blocked="stopped")
    facts = {"pretrain": blocked, "probe": StageFacts(), "report": StageFacts()}
    plan = decide(_plan(tmp_path, SMALL + REPORT), lambda kind, key: facts.get(kind, StageFacts()))
    actions = {stage.name: stage.action for stage in plan.stages}
    assert actions == {
        "index-motion": "run",
        "pretrain": "blocked",
        "probe": "blocked",
        "report": "blocked",
    }
    assert plan.stage("report").reason == "needs probe"


def test_the_run_id_is_that_of_the_recipe_and_its_keys(tmp_path: Path) -> None:
    first, again = _plan(tmp_path), _plan(tmp_path, SMALL, "+cluster={executor:slurm}")
    other = _plan(tmp_path, SMALL, "+seed=1")
    assert first.run_id == again.run_id
    assert first.run_id.startswith("small-")
    assert len(first.run_id) == len("small-") + 8
    assert other.run_id != first.run_id


def test_the_records_hold_what_the_node_and_the_run_need(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    probe, pretrain = plan.stage("probe"), plan.stage("pretrain")
    record = probe.record()
    assert record["key"] == probe.key
    assert record["inputs"]["encoder"] == [
        {
            "ref": "pretrain.encoder",
            "artifact": "encoder",
            "kind": "encoder",
            "stage": f"pretrain-{pretrain.key[:12]}",
            "key": pretrain.key,
        }
    ]
    assert record["config"]["seed"] == 0
    entry = plan.record()["stages"][1]
    assert (entry["name"], entry["stage"], entry["action"]) == ("pretrain", pretrain.folder, "run")
    assert plan.record()["stages"][2]["inputs"]["data"] == ["index-motion.dataset"]


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_ranks_that_share_the_batch_evenly_are_accepted(
    tmp_path: Path, nodes: int, ranks: int
) -> None:
    asked = f"+stages.pretrain.resources={{nodes:{nodes},tasks_per_node:{ranks}}}"
    assert _plan(tmp_path, SMALL, asked).stage("pretrain").resources.world_size == nodes * ranks


@pytest.mark.parametrize(("nodes", "ranks"), [(3, 1), (1, 8), (2, 3)])
def test_a_batch_that_cannot_be_shared_out_is_refused_with_the_rank_counts_that_fit(
    tmp_path: Path, nodes: int, ranks: int
) -> None:
    asked = f"+stages.pretrain.resources={{nodes:{nodes},tasks_per_node:{ranks}}}"
    with pytest.raises(RecipeErrors) as caught:
        _plan(tmp_path, SMALL, asked)
    (fault,) = caught.value.errors
    assert fault.path == "stages.pretrain.batch_size"
    assert fault.line == 12
    assert fault.value == f"{nodes} nodes x {ranks} ranks = {nodes * ranks} ranks"
    assert fault.expected.endswith("rank counts that fit: 1, 2, 4")


EXTERNAL = SMALL.replace("pretrain.encoder", "run:k400-1a2b3c4d:first.encoder")


def _with_external(folder: Path, text: str, found: ExternalStage | None) -> Plan:
    asked: list[tuple[str, str]] = []

    def external(run_id: str, stage: str) -> ExternalStage | None:
        asked.append((run_id, stage))
        return found

    plan = make_plan(load_text(folder, text), nothing_exists, has_gpus=False, external=external)
    assert asked == [("k400-1a2b3c4d", "first")]
    return plan


def test_a_stage_of_another_run_can_be_an_input(tmp_path: Path) -> None:
    stage = ExternalStage(kind="pretrain", key="e" * 64, finished=True)
    probe = _with_external(tmp_path, EXTERNAL, stage).stage("probe")
    (ref,) = probe.inputs["encoder"]
    assert (ref.key, ref.folder, ref.upstream) == ("e" * 64, "pretrain-" + "e" * 12, None)
    assert probe.upstream == ("index-motion",)


def test_the_same_encoder_from_another_run_or_from_this_one_gives_one_key(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    stage = ExternalStage(kind="pretrain", key=plan.stage("pretrain").key, finished=True)
    assert _with_external(tmp_path, EXTERNAL, stage).stage("probe").key == plan.stage("probe").key


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "a stage of a run in this store"),
        (ExternalStage(kind="pretrain", key="e" * 64, finished=False), "that has finished"),
        (ExternalStage(kind="probe", key="e" * 64, finished=True), "of kind encoder"),
    ],
)
def test_a_stage_of_another_run_must_exist_be_finished_and_leave_the_artifact(
    tmp_path: Path, found: ExternalStage | None, words: str
) -> None:
    with pytest.raises(RecipeErrors, match=words):
        _with_external(tmp_path, EXTERNAL, found)


def test_a_store_knows_the_stages_of_its_runs_and_whether_they_finished(tmp_path: Path) -> None:
    store, plan = Store(tmp_path / "store"), _plan(tmp_path)
    pretrain = plan.stage("pretrain")
    find = external_stages(store)
    assert find(plan.run_id, "pretrain") is None
    fsio.make_dir(store.run_dir(plan.run_id))
    fsio.write_json(store.run_dir(plan.run_id) / "plan.json", plan.record())
    found = ExternalStage(kind="pretrain", key=pretrain.key, finished=False)
    assert find(plan.run_id, "pretrain") == found
    assert find(plan.run_id, "other") is None
    folder = store.stage_dir("pretrain", pretrain.key)
    fsio.make_dir(folder.path)
    fsio.write_json(folder.stage_file, pretrain.record())
    fsio.write_json(folder.result_file, {"key": pretrain.key})
    assert find(plan.run_id, "pretrain") == replace(found, finished=True)


def test_a_file_is_an_input_by_its_digest(tmp_path: Path) -> None:
    found = []
    for content in (b"one", b"two"):
        file = tmp_path / f"{content.decode()}.safetensors"
        file.write_bytes(content)
        plan = _plan(tmp_path, SMALL.replace("pretrain.encoder", f"'file:{file}'"))
        (ref,) = plan.stage("probe").inputs["encoder"]
        assert ref.record()["file"] == str(file)
        assert len(str(ref.sha256)) == 64
        found.append(plan.stage("probe").key)
    assert found[0] != found[1]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors, match="a file that exists"):
        _plan(tmp_path, SMALL.replace("pretrain.encoder", "file:/nowhere/a.safetensors"))


def test_recipes_that_do_the_same_share_their_stages() -> None:
    plans = {
        name: make_plan(
            load_recipe(ROOT / "recipes" / f"{name}.yaml"), nothing_exists, has_gpus=False
        )
        for name in ("quickstart", "learn_check", "dpc_k400", "dpc_ucf101")
    }
    quick, learn = keys(plans["quickstart"]), keys(plans["learn_check"])
    assert quick["pretrain"] == learn["pretrain/0"] != learn["pretrain/1"]
    k400, ucf101 = keys(plans["dpc_k400"]), keys(plans["dpc_ucf101"])
    assert k400["index-UCF101"] == ucf101["index-UCF101"]
    assert k400["supervised/ucf101"] == ucf101["supervised"]


_PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from orchestrator.plan import StageFacts, load_recipe, make_plan
recipe = load_recipe(Path(sys.argv[1]))
make_plan(recipe, lambda kind, key: StageFacts(), has_gpus=False)
heavy = {"torch", "numpy", "pandas", "mlflow", "deepspeed", "decord", "av", "sklearn", "submitit"}
print(sorted(heavy & set(sys.modules)))
"""


def test_planning_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(ROOT / "recipes" / "dpc_k400.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
