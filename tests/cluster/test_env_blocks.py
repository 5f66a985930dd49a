"""Environments of the ranks: each kind as a golden script, and run where this machine has it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.contract import JobRequest, PythonEnvironment, Resources
from cluster.env_blocks import host_python, rank_python
from cluster.slurm import SlurmExecutor
from tests.cluster.test_batch import GOLDEN, plain_shell, request

__all__ = ["plain_shell"]

SUBMITTING = "/env/bin/python"
MODULES = ("gcc/13.2", "cuda/12.4")
ENVIRONMENTS = {
    "venv": PythonEnvironment(kind="venv", place="/home/ann/it's/venv", load=("cuda/12.4",)),
    "conda_name": PythonEnvironment(
        kind="conda", place="video", conda_sh="/opt/conda/etc/profile.d/conda.sh"
    ),
    "conda_module": PythonEnvironment(kind="conda", place="video", load=("anaconda3/2024.06",)),
    "conda_prefix": PythonEnvironment(kind="conda", place="/home/ann/envs/video"),
    "modules": PythonEnvironment(
        kind="modules", load=MODULES, init="/etc/profile.d/lmod.sh", python="python3"
    ),
    "apptainer": PythonEnvironment(
        kind="apptainer",
        place="/images/video ssl.sif",
        load=("apptainer",),
        binds=("/data/k400:/data:ro",),
        arguments=("--no-home",),
        host_python="/usr/bin/python3.11",
    ),
    "singularity_cpu": PythonEnvironment(
        kind="apptainer", place="/images/video.sif", program="singularity", python="/opt/py/python"
    ),
    "pyxis": PythonEnvironment(
        kind="pyxis",
        place="nvcr.io#nvidia/pytorch:25.06-py3",
        binds=("/data/k400", "/scratch:/scratch:ro"),
        arguments=("--no-container-mount-home",),
    ),
}


def in_environment(environment: PythonEnvironment, **resources: Any) -> JobRequest:
    base = request()
    asked = Resources(environment=environment, **resources)
    return replace(
        base,
        argv=(rank_python(environment, SUBMITTING), *base.argv[1:]),
        epilogue=(host_python(environment, SUBMITTING), *base.epilogue[1:]),
        env={**base.env, "OMP_NUM_THREADS": "8"},
        resources=asked,
        folders=(Path("/store"), Path("/store/code/0123")),
    )


GPUS: dict[str, Any] = {"device": "cuda", "gpus_per_node": 4, "tasks_per_node": 4}
CASES = {
    f"env_{name}": in_environment(environment, **({} if name == "singularity_cpu" else GPUS))
    for name, environment in ENVIRONMENTS.items()
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_scripts_of_environments_are_as_agreed(case: str, plain_shell: None) -> None:
    text = SlurmExecutor().render(CASES[case])
    assert text == (GOLDEN / f"{case}.sh").read_text(encoding="utf-8")
    done = subprocess.run(["/bin/bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
