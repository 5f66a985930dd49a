"""What a submission finds out about its site before any job waits in a queue."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cluster.contract import GpuRequest
from cluster.executors import make
from cluster.site import SiteProfile, write_profile
from cluster.slurm import SlurmExecutor
from orchestrator.errors import RecipeErrors
from orchestrator.job_schema import ResourcesSpec, job_resources
from orchestrator.jobs import job_request
from orchestrator.schema import Recipe
from orchestrator.site_checks import check_files, gpu_request
from orchestrator.store import StageDir
from tests.orchestrator.recipes_for_tests import ROOT, SMALL, load_text


@pytest.fixture
def login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which sbatch is installed."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def _recipe(tmp_path: Path, more: str) -> Recipe:
    return load_text(tmp_path, SMALL + f"cluster:\n  executor: slurm\n  {more}\n")


@pytest.mark.parametrize(
    ("env", "key"),
    [
        ("{kind: venv, path: /absent}", "path"),
        ("{kind: conda, prefix: /absent}", "prefix"),
        ("{kind: conda, name: a, sh: /absent/conda.sh}", "sh"),
        ("{kind: modules, load: [a], init: /absent/init}", "init"),
        ("{kind: apptainer, image: /absent.sif}", "image"),
        ("{kind: pyxis, image: /absent.sqsh}", "image"),
        ("{kind: pyxis, image: nvcr.io#a, host_python: /absent}", "host_python"),
    ],
)
def test_a_file_that_is_not_there_is_told_before_a_job_waits_for_it(
    tmp_path: Path, login_node: None, env: str, key: str
) -> None:
    with pytest.raises(RecipeErrors) as raised:
        check_files(_recipe(tmp_path, f"env: {env}"))
    (fault,) = raised.value.errors
    assert fault.path == f"cluster.env.{key}"
    assert fault.line == SMALL.count("\n") + 3
    assert fault.value is not None and fault.value.startswith("/absent")
    assert "on_login_node: false" in fault.hint
    check_files(_recipe(tmp_path, f"env: {env[:-1]}, on_login_node: false}}"))


def test_an_image_of_a_registry_and_what_is_there_are_no_faults(
    tmp_path: Path, login_node: None
) -> None:
    check_files(_recipe(tmp_path, "env: {kind: pyxis, image: 'nvcr.io#nvidia/pytorch:25.06-py3'}"))
    env = f"{{kind: venv, path: '{sys.prefix}', host_python: python3.11}}"
    recipe = _recipe(tmp_path, f"env: {env}")
    check_files(recipe)
    assert recipe.cluster.env is not None and recipe.cluster.env.host_python == "python3.11"


def test_where_nothing_can_be_submitted_nothing_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check_files(_recipe(tmp_path, "env: {kind: venv, path: /absent}\n  env_file: /absent"))


def test_a_file_with_credentials_that_others_can_read_is_told(
    tmp_path: Path, login_node: None
) -> None:
    file = tmp_path / "variables"
    file.write_text("MLFLOW_TRACKING_PASSWORD=s3cret\n")
    file.chmod(0o644)
    with pytest.raises(RecipeErrors, match=f"chmod 600 {file}") as raised:
        check_files(_recipe(tmp_path, f"env_file: {file}"))
    assert raised.value.errors[0].path == "cluster.env_file"
    assert "s3cret" not in str(raised.value)
    file.chmod(0o600)
    check_files(_recipe(tmp_path, f"env_file: {file}"))


@pytest.mark.parametrize("found", ["gpus-per-task", "gres", None])
def test_gpus_are_asked_for_as_the_profile_of_the_site_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: GpuRequest | None
) -> None:
    executor = make("slurm")
    assert gpu_request(executor, tmp_path) == "gpus-per-node"  # without asking the controller
    monkeypatch.setattr(SlurmExecutor, "cluster", lambda self: "site")
    write_profile(tmp_path, SiteProfile(cluster="other", checked_at=1.0, gpu_request="gres"))
    assert gpu_request(executor, tmp_path) == "gpus-per-node"
    write_profile(tmp_path, SiteProfile(cluster="site", checked_at=1.0, gpu_request=found))
    assert gpu_request(executor, tmp_path) == (found or "gpus-per-node")
    assert gpu_request(make("local"), tmp_path) == "gpus-per-node"


@pytest.mark.parametrize(("mode", "code"), [(0o600, None), (0o644, 65)])
def test_a_rank_reads_the_private_file_itself(tmp_path: Path, mode: int, code: int | None) -> None:
    file = tmp_path / "variables"
    file.write_text("OMP_NUM_THREADS=17\n")
    file.chmod(mode)
    stage = StageDir(tmp_path / "pretrain-0123456789ab")
    stage.claim(1, "a-name", {"run_id": "r", "resources": {"env_file": str(file)}})
    stage.write_spec({"key": "k" * 64, "kind": "pretrain", "config": {}, "inputs": {}})
    command = [sys.executable, "-m", "orchestrator.entry", str(stage.path), "--submission", "1"]
    shell = ("SLURM", "ORCHESTRATE", "OMP_", "LOCAL_RANK")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(shell)}
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    if code is None:
        assert " 17 threads," in done.stdout
    else:
        assert done.returncode == code
        assert "chmod 600" in done.stderr


def _examples() -> list[str]:
    text = (ROOT / "docs" / "sites.md").read_text(encoding="utf-8")
    return re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(4))
def test_the_sites_of_the_documentation_are_valid_and_give_a_script(
    tmp_path: Path, number: int
) -> None:
    examples = _examples()
    assert len(examples) == 4
    text = SMALL + "cluster:\n" + textwrap.indent(examples[number], "  ")
    recipe = load_text(tmp_path, text.replace("batch_size: 16", "batch_size: 128"))
    asked = job_resources(ResourcesSpec(), recipe.cluster, has_gpus=True)
    stage = StageDir(tmp_path / "stages" / "pretrain-0123456789ab")
    script = SlurmExecutor().render(job_request("a", stage, 1, asked, "/code", ()))
    assert " orchestrator.entry " in script
