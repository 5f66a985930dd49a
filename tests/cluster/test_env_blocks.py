"""Environments of the ranks: each kind as a golden script, and run where this machine has it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import fsio
from cluster.batch import RequestError, parameters
from cluster.contract import JobRequest, PythonEnvironment, Resources
from cluster.env_blocks import host_python, rank_python
from cluster.slurm import SlurmExecutor
from tests.cluster.bench import REPOSITORY, Bench, Job
from tests.cluster.test_batch import GOLDEN, PAYLOADS, plain_shell, request
from tests.slurm_cluster import PrivateSlurm

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


def test_a_variable_of_the_job_wins_over_what_modules_and_images_set(plain_shell: None) -> None:
    script = SlurmExecutor().render(CASES["env_modules"])
    own = 'export PYTHONPATH=/store/code/0123"${PYTHONPATH:+:$PYTHONPATH}"'
    assert script.index("module load cuda/12.4") < script.index(own)
    for case in ("env_apptainer", "env_pyxis"):
        inside = SlurmExecutor().render(CASES[case]).partition(" env -u RANK ")[2]
        assert "PYTHONPATH=/store/code/0123 python3 -P -m orchestrator.entry" in inside


@pytest.mark.parametrize("kind", ["apptainer", "pyxis"])
@pytest.mark.parametrize("folder", ["/st:ore", "/st,ore"])
def test_a_folder_that_no_container_can_mount_is_refused(kind: Any, folder: str) -> None:
    environment = PythonEnvironment(kind=kind, place="/images/video.sif")
    job = replace(in_environment(environment), folders=(Path(folder),))
    with pytest.raises(RequestError, match="cannot be mounted in a container"):
        parameters(job, {})


def test_a_script_that_cannot_prepare_its_node_ends_before_its_ranks(tmp_path: Path) -> None:
    """The code is that for files out of reach, and the epilogue hears it as that of the ranks."""
    environment = PythonEnvironment(kind="venv", place=str(tmp_path / "absent"))
    job = replace(
        in_environment(environment),
        epilogue=(sys.executable, "-c", "import sys; print(sys.argv[1:])"),
        log_dir=tmp_path,
    )
    done = subprocess.run(
        ["/bin/bash", "-c", SlurmExecutor().render(job)], capture_output=True, text=True, cwd="/"
    )
    assert done.stdout.strip() == "['--exit-code', '74']"
    assert f"cannot prepare the environment: {tmp_path}/absent/bin/python is not" in done.stderr


@pytest.mark.parametrize("host", ["/nonexistent/python3.11", "/bin/false"])
def test_a_node_without_python_for_the_epilogue_is_told_at_once(host: str, tmp_path: Path) -> None:
    environment = PythonEnvironment(kind="venv", place="/nowhere", host_python=host)
    job = replace(in_environment(environment), log_dir=tmp_path)
    text = "srun() { echo srun ran; }\n" + SlurmExecutor().render(job)
    done = subprocess.run(["/bin/bash", "-c", text], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (65, "")
    assert f"no Python 3.11 at {host}" in done.stderr and "cluster.env.host_python" in done.stderr


HOSTILE: dict[str, Callable[[str], PythonEnvironment]] = {
    "venv": lambda v: PythonEnvironment(kind="venv", place=v, load=(v,), init=v),
    "conda": lambda v: PythonEnvironment(kind="conda", place=v, conda_sh="/dev/null"),
    "conda.sh": lambda v: PythonEnvironment(kind="conda", place="a", conda_sh=v),
    "modules": lambda v: PythonEnvironment(kind="modules", load=(v,), init="/dev/null", python=v),
    "apptainer": lambda v: PythonEnvironment(
        kind="apptainer", place=v, binds=(v,), arguments=(v,), python=v
    ),
    "pyxis": lambda v: PythonEnvironment(kind="pyxis", place=v, binds=(v,), arguments=(v,)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_hostile_value_of_an_environment_is_executed(kind: str, tmp_path: Path) -> None:
    """Each script that is not refused runs in an empty folder, with an srun that does nothing."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    (tmp_path / "empty").mkdir()
    shell = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path / "empty")}
    refused = 0
    for payload in PAYLOADS:
        job = in_environment(HOSTILE[kind](payload))
        job = replace(job, epilogue=("/bin/true",), log_dir=tmp_path / "logs")
        try:
            text = SlurmExecutor().render(job)
        except RequestError as error:
            assert str(error).isprintable()
            refused += 1
            continue
        subprocess.run(
            ["/bin/bash", "-c", text], cwd=tmp_path / "empty", env=shell, capture_output=True
        )
        assert not list((tmp_path / "empty").iterdir()), payload
    assert 8 <= refused < len(PAYLOADS)


# -- on a private SLURM ----------------------------------------------------------------------------

# What a rank is, written where the test can read it; a result, so that the epilogue finds it done.
LOOK = """
import json, os, pathlib, sys
import cluster.contract
stage = pathlib.Path(sys.argv[1])
found = {"prefix": sys.prefix, "code": cluster.contract.__file__, "env": dict(os.environ),
         "cpus": len(os.sched_getaffinity(0)), "path": sys.path}
(stage / f"rank{os.environ['SLURM_PROCID']}.json").write_text(json.dumps(found))
(stage / "result.json").write_text(json.dumps({"key": "k" * 64}))
"""

# Stands in for Apptainer, which Debian 12 does not have: takes its command line apart, needs the
# image and what is to be mounted, and runs the command where no scontrol is and without the PATH
# and the PYTHONPATH of the node.
CONTAINER = """#!/bin/bash
set -e
[ "$1" = exec ]; shift
while [[ $1 == --* ]]; do
  case $1 in
    --bind) [ -e "${2%%:*}" ]; shift 2 ;;
    --nv) shift; touch "$STAND_IN/nv" ;;
    *) exit 64 ;;
  esac
done
[ -f "$1" ]; shift
export PATH="$STAND_IN/image:/usr/bin:/bin" PYTHONPATH=/image RANK=7
exec unshare --mount bash -c \
  'mount --make-rprivate / && mount --bind /dev/null /usr/bin/scontrol && exec "$@"' inside "$@"
"""


def _look(bench: Bench, name: str, environment: PythonEnvironment, **asked: Any) -> JobRequest:
    job = bench.request(name, resources=Resources(environment=environment, **asked))
    program = bench.root / "look.py"
    program.write_text(LOOK)
    return replace(
        job,
        argv=(rank_python(environment, sys.executable), "-P", str(program)),
        folders=(bench.root,),
    )


def _seen(job: Job, rank: int = 0) -> dict[str, Any]:
    assert (job.stage / f"rank{rank}.json").exists(), job.log()
    return fsio.read_json(job.stage / f"rank{rank}.json")


@pytest.fixture
def module_files(slurm_shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that does what many do: sets variables that Python and ours read as well."""
    known = ("/usr/share/modules/init/bash", "/usr/share/lmod/lmod/init/bash")
    if not any(Path(file).exists() for file in known):
        pytest.skip("needs environment modules or Lmod: apt-get install environment-modules")
    folder = slurm_shared / "modulefiles"
    folder.mkdir()
    (folder / "site").write_text(
        "#%Module\n"
        "setenv SITE_LOADED yes\nsetenv OMP_NUM_THREADS 1\nprepend-path PYTHONPATH /site/python\n"
    )
    monkeypatch.setenv("MODULEPATH", str(folder))
    for name in ("MODULESHOME", "LMOD_PKG"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.mark.slurm
def test_ranks_run_in_a_venv_with_modules_and_the_stored_code(
    slurm_bench: Bench, slurm_shared: Path, module_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(slurm_shared / "my venv", with_pip=False, symlinks=True)
    monkeypatch.setenv("SITE_SCRATCH", "/scratch")
    monkeypatch.setenv("SITE_API_KEY", "secret")
    monkeypatch.setenv("SITE_PROXY", "http://ann:secret@proxy:3128")
    env = PythonEnvironment(kind="venv", place=str(slurm_shared / "my venv"), load=("site",))
    passed = ("SITE_*", "MODULEPATH")
    request = _look(slurm_bench, "venv", env, pass_env=passed, tasks_per_node=2, cpu_bind="cores")
    job = slurm_bench.submit_request(replace(request, env={**request.env, "OMP_NUM_THREADS": "3"}))
    plain = PythonEnvironment(kind="modules", load=("site",))
    other = slurm_bench.submit_request(_look(slurm_bench, "modules", plain, pass_env=passed))
    # A prefix alone is used without conda, and what has a bin/python is one.
    conda = PythonEnvironment(kind="conda", place=str(slurm_shared / "my venv"))
    third = slurm_bench.submit_request(_look(slurm_bench, "conda", conda))
    states = slurm_bench.wait(job, other, third)
    assert [state.exit_code for state in states] == [0, 0, 0], job.log() + other.log() + third.log()
    assert _seen(third)["prefix"] == _seen(third)["env"]["CONDA_PREFIX"] == conda.place
    for each, prefix in ((job, slurm_shared / "my venv"), (other, Path(sys.prefix))):
        seen = _seen(each)
        assert Path(seen["prefix"]) == prefix
        assert seen["env"]["SITE_LOADED"] == "yes"
        assert seen["env"]["SITE_SCRATCH"] == "/scratch"
        assert not any("secret" in value for value in seen["env"].values())
        assert seen["code"] == str(REPOSITORY / "cluster" / "contract.py")
        assert seen["path"][:2] == [str(REPOSITORY), "/site/python"]
        assert each.ended(0)["decision"] == "finished"
    assert _seen(job, 1)["env"]["OMP_NUM_THREADS"] == "3"
    script = next((job.stage / "logs").glob("*_submission.sh")).read_text()
    assert "secret" not in script


@pytest.mark.slurm
def test_an_epilogue_outside_a_container_requeues_where_inside_there_is_no_scontrol(
    slurm_bench: Bench, slurm: PrivateSlurm, slurm_shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not slurm.isolated:
        pytest.skip("this user may not create mount namespaces")
    (slurm_shared / "image").mkdir()
    (slurm_shared / "image" / "python3").symlink_to(sys.executable)
    (slurm_shared / "video.sif").touch()
    program = slurm_shared / "apptainer"
    program.write_text(CONTAINER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slurm_shared}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(slurm_shared))
    monkeypatch.setenv("VIRTUAL_ENV", "/home/ann/venv")
    environment = PythonEnvironment(kind="apptainer", place=str(slurm_shared / "video.sif"))
    asked = Resources(
        environment=environment,
        nodes=2,
        tasks_per_node=2,
        device="cuda",
        gpus_per_node=2,
        gpu_request="gpus-per-task",
        pass_env=("STAND_IN",),
    )
    # The ranks find their stage, their code and the Python of the image; they hear the warning.
    steps = ("--endless-first", "--steps", "3")
    base = slurm_bench.request("contained", *steps, resources=asked)
    argv = (rank_python(environment, sys.executable), "-m", "tests.cluster.stage", *steps)
    job = slurm_bench.submit_request(replace(base, argv=argv, folders=(slurm_bench.root,)))
    slurm_bench.until(lambda: job.started(0, ranks=4))
    slurm.run("scancel", "--signal=USR2", job.handle.job_id)
    (state,) = slurm_bench.wait(job, seconds=120)
    assert state.exit_code == 0, job.log()
    assert job.attempts() == ["s001r000", "s001r001"]
    assert [job.ended(n)["decision"] for n in (0, 1)] == ["requeue", "finished"]
    assert "after SIGUSR2" in job.log(3)
    for rank in range(4):
        seen = job.rank(1, rank)
        assert seen["ranks"]["RANK"] == str(rank)  # not that of the image
        assert seen["env"]["CUDA_VISIBLE_DEVICES"] == str(rank % 2)
        assert seen["env"]["PYTHONPATH"] == str(REPOSITORY)
        assert "VIRTUAL_ENV" not in seen["env"]
    assert (slurm_shared / "nv").exists()
