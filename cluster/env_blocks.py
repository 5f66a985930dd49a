"""Pure: how the Python of the ranks is reached on a node: what runs before, around and inside.

Modules and conda change variables that other programs read as well, PYTHONPATH and LD_LIBRARY_PATH
among them. So they are taken up only by the process that becomes srun; the batch script, and with
it the prologue and the epilogue, keep what the job was given.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.contract import ExitCode, PythonEnvironment

# Where Lmod and Environment Modules leave the file that defines `module`: a batch script is no
# login shell, which alone reads it by itself.
_MODULE_FILES = (
    '"${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash"',
    '"${MODULESHOME:-/usr/share/modules}/init/bash"',
    "/etc/profile.d/lmod.sh",
    "/etc/profile.d/modules.sh",
    "/etc/profile.d/z00_lmod.sh",
)
# A hook of enroot sets these for PyTorch's images, with one port for all attempts of a job; the
# ranks read SLURM's own variables, and choose the port by attempt.
_SET_BY_IMAGES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True, kw_only=True)
class Wrapping:
    """What is put around the ranks' command.

    Attributes:
        setup: lines of the batch script, before anything else runs in it.
        srun_args: further arguments of srun.
        words: what stands before the command.
    """

    setup: tuple[str, ...] = ()
    srun_args: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def rank_python(environment: PythonEnvironment | None, submitting: str) -> str:
    """The program of the ranks, where `submitting` is the Python that submits."""
    if environment is None:
        return submitting
    return (
        environment.python
        or {
            "venv": f"{environment.place}/bin/python",
            "conda": f"{environment.place}/bin/python" if _is_prefix(environment) else "python",
            "modules": submitting,
            "apptainer": "python3",
            "pyxis": "python3",
        }[environment.kind]
    )


def host_python(environment: PythonEnvironment | None, submitting: str) -> str:
    """The program of the prologue and the epilogue: they need Python 3.11 and no package at all."""
    chosen = environment.host_python if environment is not None else None
    return chosen or submitting


def wrapping(
    environment: PythonEnvironment | None,
    variables: Mapping[str, str],
    folders: Sequence[Path],
    *,
    cuda: bool,
    host: str,
) -> Wrapping:
    """What a job needs around its ranks.

    Args:
        environment: None needs nothing.
        variables: of the job; they hold for the ranks whatever the environment sets.
        folders: what the ranks must see in a container.
        cuda: whether the job has GPUs.
        host: the program of the epilogue.
    """
    if environment is None:
        return Wrapping()
    inside = _container(environment, folders, cuda=cuda)
    before = _before(environment, {} if inside else variables)
    setup = [_check_of(host), *(_srun_with(before) if before else ())]
    if inside is None:
        return Wrapping(setup=tuple(setup))
    srun_args, words = inside
    return Wrapping(
        setup=tuple(setup), srun_args=tuple(srun_args), words=(*words, *_inner_env(variables))
    )


def _is_prefix(environment: PythonEnvironment) -> bool:
    return "/" in environment.place


def _check_of(host: str) -> str:
    """A job whose epilogue cannot run would lose the requeue when it matters: told at once."""
    major, minor = _OLDEST_PYTHON
    test = f"import sys; sys.exit(sys.version_info < ({major}, {minor}))"
    words = (
        f"orchestrate: this node has no Python {major}.{minor} at {host}, which must decide what"
        " becomes of the job: set cluster.env.host_python"
    )
    command = f"{shlex.quote(host)} -c {shlex.quote(test)}"
    refusal = f"{{ echo {shlex.quote(words)} >&2; exit {int(ExitCode.CONFIGURATION)}; }}"
    return f"{command} || {refusal}"


def _srun_with(before: Sequence[str]) -> list[str]:
    """srun as a function that runs the lines and becomes the program.

    A line that fails ends it with the code for files that cannot be reached, which is tried again:
    most often it is one node on which a file system is not mounted.
    """
    message = '"orchestrate: $(hostname): cannot prepare the environment: $1"'
    return [
        f"unprepared() {{ echo {message} >&2; exit {int(ExitCode.COMMUNICATION)}; }}",
        "srun() {",
        *(f"  {line}" for line in before),
        '  exec srun "$@"',
        "}",
    ]


def _before(environment: PythonEnvironment, variables: Mapping[str, str]) -> list[str]:
    lines = [*_modules(environment), *_activation(environment)]
    if not lines:
        return []
    for name, value in sorted(variables.items()):
        # What modules put there stays reachable, behind our code.
        behind = '"${PYTHONPATH:+:$PYTHONPATH}"' if name == "PYTHONPATH" else ""
        lines.append(f"export {name}={shlex.quote(value)}{behind}")
    return lines


def _modules(environment: PythonEnvironment) -> list[str]:
    if not environment.load:
        return []
    if environment.init is not None:
        lines = [_or_fail(f". {shlex.quote(environment.init)}", environment.init)]
    else:
        files = " ".join(_MODULE_FILES)
        look = f'for f in {files}; do if [ -r "$f" ]; then . "$f"; break; fi; done'
        lines = [f"type module > /dev/null 2>&1 || {look}"]
    return lines + [
        _or_fail(f"module load {shlex.quote(name)}", f"module load {name}")
        for name in environment.load
    ]


def _activation(environment: PythonEnvironment) -> list[str]:
    place = environment.place
    if environment.kind == "venv":
        return [*_folder_first(place), f"export VIRTUAL_ENV={shlex.quote(place)}"]
    if environment.kind == "conda":
        return [*_conda(environment), "export PYTHONNOUSERSITE=1"]
    if environment.kind == "pyxis":
        return ["unset VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH PYTHONHOME"]
    if environment.kind == "apptainer":
        return ["unset VIRTUAL_ENV CONDA_PREFIX PYTHONHOME"]
    return []


def _conda(environment: PythonEnvironment) -> list[str]:
    """Activated by conda where there is one; a prefix alone works without, as far as packages do
    not need what their activation scripts set."""
    place, sh = environment.place, environment.conda_sh
    activate = _or_fail(f"conda activate {shlex.quote(place)}", f"conda activate {place}")
    if sh is not None:
        return [_or_fail(f". {shlex.quote(sh)}", sh), activate]
    if environment.load or not _is_prefix(environment):
        hook = 'eval "$(conda shell.bash hook)"'
        return [_or_fail(hook, "conda shell.bash hook"), activate]
    return [*_folder_first(place), f"export CONDA_PREFIX={shlex.quote(place)}"]


def _folder_first(place: str) -> list[str]:
    python = shlex.quote(f"{place}/bin/python")
    return [
        _or_fail(f"[ -x {python} ]", f"{place}/bin/python is not there"),
        f'export PATH={shlex.quote(f"{place}/bin")}:"$PATH"',
        "unset PYTHONHOME",
    ]


def _or_fail(command: str, what: str) -> str:
    return f"{command} || unprepared {shlex.quote(what)}"


def _container(
    environment: PythonEnvironment, folders: Sequence[Path], *, cuda: bool
) -> tuple[list[str], list[str]] | None:
    """Arguments of srun and words before the command; None without a container."""
    binds = [*environment.binds, *(str(folder) for folder in _outermost(folders))]
    if environment.kind == "pyxis":
        both = ",".join(bind if ":" in bind else f"{bind}:{bind}" for bind in binds)
        mounts = [f"--container-mounts={both}"] if both else []
        return [f"--container-image={environment.place}", *mounts, *environment.arguments], []
    if environment.kind == "apptainer":
        nv = ["--nv"] if (cuda if environment.gpus is None else environment.gpus) else []
        mounted = [word for bind in binds for word in ("--bind", bind)]
        words = [environment.program, "exec", *nv, *mounted, *environment.arguments]
        return [], [*words, environment.place]
    return None


def _outermost(folders: Sequence[Path]) -> list[Path]:
    """Without those that lie in another one."""
    unique = list(dict.fromkeys(folders))
    return [f for f in unique if not any(f != o and f.is_relative_to(o) for o in unique)]


def _inner_env(variables: Mapping[str, str]) -> list[str]:
    """The job's variables win over those of the image, in which a PYTHONPATH may be set.

    A home folder that is mounted brings packages of `pip install --user` along, made for another
    Python; they would be found before those of the image.
    """
    unset = [word for name in _SET_BY_IMAGES for word in ("-u", name)]
    ours = {**variables, "PYTHONNOUSERSITE": "1"}
    return ["env", *unset, *(f"{name}={value}" for name, value in sorted(ours.items()))]
