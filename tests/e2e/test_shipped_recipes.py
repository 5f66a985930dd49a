"""The recipes that ship: planned with nothing there, accepted by clusters, run on a bare one."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.conftest import CommandLine, make_command_line
from tests.slurm_cluster import PrivateSlurm, missing_programs

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("slurm")]

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
# What a user writes to run each of them on a cluster.
ON_SLURM = [
    ("dpc_k400",),
    ("dpc_k400", "scale=published"),
    ("dpc_ucf101",),
    ("dpc_ucf101", "scale=multinode"),
    ("dpc_folder", "cluster=slurm", "data.root=/videos"),
    ("learn_check", "cluster=slurm"),
    ("quickstart", "cluster=slurm"),
]
# The quickstart as it is, with fewer videos and steps.
FEW = (
    "data.synthetic.train=32",
    "data.synthetic.test=16",
    "stages.pretrain.max_steps=4",
    "stages.finetune.max_steps=2",
)


def _cluster(gpus: int, cpus: int = 8) -> PrivateSlurm:
    if missing := missing_programs():
        pytest.skip(f"a private SLURM needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    return PrivateSlurm(num_nodes=2, cpus=cpus, gpus=gpus)


@pytest.fixture(scope="module")
def big() -> Iterator[PrivateSlurm]:
    """Two nodes of eight GPUs and 64 CPUs, what the largest shipped recipe asks for."""
    with _cluster(gpus=8, cpus=64) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bare() -> Iterator[PrivateSlurm]:
    """A cluster nobody has configured for us: two nodes, no GPUs."""
    with _cluster(gpus=0) as cluster:
        yield cluster


@pytest.fixture
def bare_machine(tmp_path: Path) -> CommandLine:
    """A command line where there are no data, no SLURM and no GPUs."""
    (tmp_path / "bin").mkdir()
    nothing = {
        "PATH": str(tmp_path / "bin"),
        "CUDA_VISIBLE_DEVICES": "",
        "HOME": str(tmp_path),
    }
    run = make_command_line(tmp_path / "work", {**os.environ, **nothing})
    return replace(run, env={**run.env, "ORCHESTRATE_DATA": str(tmp_path / "no data")})


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_plans_without_data_slurm_and_gpus(
    bare_machine: CommandLine, recipe: Path
) -> None:
    assert "valid" in bare_machine("validate", str(recipe))
    plan = json.loads(bare_machine("plan", str(recipe), "--json"))
    assert {stage["action"] for stage in plan["stages"]} == {"run"}
    assert not bare_machine.store.exists()


def test_the_scripts_of_a_cluster_are_shown_on_a_machine_without_one(
    bare_machine: CommandLine,
) -> None:
    plan = json.loads(bare_machine("plan", "recipes/dpc_k400.yaml", "--json"))
    scripts = _scripts(bare_machine, "dpc_k400")
    assert list(scripts) == [stage["name"] for stage in plan["stages"]]
    assert "#SBATCH --gpus-per-node=8\n" in scripts["pretrain"]


def _scripts(run: CommandLine, name: str, *overrides: str) -> dict[str, str]:
    """The script of each stage as `plan --sbatch` shows it."""
    shown = run("plan", f"recipes/{name}.yaml", *overrides, "--sbatch")
    _, *parts = re.split(r"^# ---- stage (\S+)\n", shown, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _refusals(cluster: PrivateSlurm, scripts: dict[str, str]) -> tuple[dict[str, str], str]:
    """What sbatch has against each script, and what it says of the pretraining."""
    # The names of upstream stages stand where the ids of their jobs will be.
    upstream = cluster.sbatch("--hold", "--output=/dev/null", "--wrap=true")
    refused, said = {}, ""
    for name, script in scripts.items():
        lines = [
            re.sub(r"<[^<>]+>", upstream, line) if "--dependency" in line else line
            for line in script.splitlines(keepends=True)
        ]
        answer = cluster.sbatch_test_only("".join(lines))
        if answer.returncode:
            refused[name] = answer.stderr
        if name == "pretrain":
            said = answer.stderr
    cluster.run("scancel", upstream)
    return refused, said


@pytest.mark.slurm
@pytest.mark.parametrize("words", ON_SLURM, ids=" ".join)
def test_sbatch_accepts_every_script_of_a_shipped_recipe(
    big: PrivateSlurm, words: tuple[str, ...]
) -> None:
    run = make_command_line(big.shared / f"plan-{os.urandom(3).hex()}", big.env)
    scripts = _scripts(run, *words)
    assert len(scripts) > 5
    refused, _ = _refusals(big, scripts)
    assert refused == {}


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("scale", "place"),
    [("multinode", "128 processors on nodes n[1-2]"), ("published", "16 processors on nodes n")],
)
def test_the_scale_of_a_recipe_is_what_the_cluster_gives(
    big: PrivateSlurm, scale: str, place: str
) -> None:
    run = make_command_line(big.shared / f"scale-{os.urandom(3).hex()}", big.env)
    script = _scripts(run, "dpc_k400", f"scale={scale}")["pretrain"]
    refused, said = _refusals(big, {"pretrain": script})
    assert refused == {}
    assert place in said


@pytest.mark.slurm
def test_stages_without_a_network_ask_for_no_gpu_where_there_are_some(big: PrivateSlurm) -> None:
    run = make_command_line(big.shared / f"cpu-{os.urandom(3).hex()}", big.env)
    scripts = _scripts(run, "dpc_folder", "cluster=slurm", "data.root=/videos")
    without = {name for name, script in scripts.items() if "#SBATCH --gpus" not in script}
    assert without == {"index-folder", "prepare-folder", "mean_color", "report"}


@pytest.mark.slurm
def test_a_cluster_of_too_few_gpus_refuses_the_pretraining(
    big: PrivateSlurm, slurm: PrivateSlurm
) -> None:
    run = make_command_line(big.shared / f"few-{os.urandom(3).hex()}", big.env)
    script = _scripts(run, "dpc_k400")["pretrain"]
    refused, _ = _refusals(slurm, {"pretrain": script})
    assert "Requested node configuration is not available" in refused["pretrain"]


@pytest.fixture(scope="module")
def quickstart(bare: PrivateSlurm) -> CommandLine:
    """The quickstart on a cluster nobody has configured, at its end."""
    run = make_command_line(bare.shared / "quickstart", bare.env)
    run("submit", "recipes/quickstart.yaml", "cluster=slurm", *FEW)
    run("status", "latest", "--watch", timeout=600)
    return run


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_the_quickstart_runs_to_its_report_on_a_cluster_nobody_has_configured(
    quickstart: CommandLine,
) -> None:
    stages = quickstart.status()
    assert {stage["status"] for stage in stages.values()} == {"succeeded"}
    assert len(stages) == 10
    page = (quickstart.stage_dir("report") / "outputs" / "report.md").read_text(encoding="utf-8")
    for row in ("DPC", "random weights", "supervised from scratch", "mean colour, no network"):
        assert f"| {row} |" in page
    assert page.count("Test videos: 16.") == 3
    scripts = list(quickstart.store.glob("stages/*/logs/*_submission.sh"))
    assert len(scripts) == 10
    for script in scripts:
        text = script.read_text()
        assert not re.search(r"#SBATCH --(partition|account|qos|gres|gpus)", text)


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_without_a_server_jobs_keep_their_records_and_the_ui_brings_them_in(
    quickstart: CommandLine,
) -> None:
    """Nodes must not share an SQLite file over the network, so nothing is in MLflow before."""
    from mlflow import MlflowClient

    database = quickstart.store / "mlflow.db"
    assert not database.exists()
    process = quickstart.start("ui")
    assert process.stdout is not None
    said = ""
    try:
        said = process.stdout.readline()
    finally:
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=60)[0]
    assert said.startswith("MLflow UI: http://127.0.0.1:"), said
    assert "warning" not in said
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = {
        run.data.tags["orchestrate.stage"]: run
        for run in runs
        if "mlflow.parentRunId" in run.data.tags
    }
    assert set(children) == set(quickstart.status())
    assert len(runs) == len(children) + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    pretrain, probe = children["pretrain"], children["probe"]
    assert probe.data.tags["orchestrate.upstream.encoder"] == pretrain.info.run_id
    lines = (quickstart.stage_dir("pretrain") / "metrics.jsonl").read_text().splitlines()
    history = client.get_metric_history(pretrain.info.run_id, "train/loss")
    assert [point.step for point in history] == [json.loads(line)["step"] for line in lines]
