"""Pure: a job request as submitit's parameters, every value validated before any shell sees it."""

from __future__ import annotations

import math
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.contract import ExitCode, JobHandle, JobRequest, Resources
from cluster.env_blocks import Wrapping, wrapping

# sbatch options a recipe or site may add under `extra`; what has a key of its own or is set here is
# not among them, and nothing that runs a command, redirects output or changes the environment.
EXTRA_KEYS = frozenset(
    {
        "begin",
        "bb",
        "chassis",
        "cluster-constraint",
        "contiguous",
        "core-spec",
        "cores-per-socket",
        "cpu-freq",
        "deadline",
        "delay-boot",
        "distribution",
        "extra-node-info",
        "gpu-bind",
        "gpu-freq",
        "gres",
        "gres-flags",
        "hint",
        "mail-type",
        "mail-user",
        "mem-bind",
        "mem-per-cpu",
        "mincpus",
        "network",
        "nice",
        "oversubscribe",
        "prefer",
        "priority",
        "profile",
        "sockets-per-node",
        "spread-job",
        "switches",
        "thread-spec",
        "threads-per-core",
        "tmp",
        "tres-per-task",
        "use-min-nodes",
        "wckey",
    }
)
_OPTIONS = ("partition", "account", "qos", "constraint", "exclude")  # known to submitit
_MORE_OPTIONS = ("nodelist", "reservation", "licenses")
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_LONGEST_VALUE = 32_000
_TRAPS = ("trap on_term TERM", "trap signalled=1 USR2")


class RequestError(ValueError):
    """A request holds a value no batch script may contain; the message names field and remedy."""


def check_text(field: str, value: str) -> str:
    """The value, if it fits on one line of a script whatever reads that line.

    Raises:
        RequestError: control characters, line or paragraph separators, lone surrogates, too long.
    """
    for position, char in enumerate(value):
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            raise RequestError(
                f"{field}: character {position} is {char!a}, which a job script cannot hold safely;"
                " remove it"
            )
    if len(value) > _LONGEST_VALUE:
        raise RequestError(f"{field}: {len(value)} characters; at most {_LONGEST_VALUE} are taken")
    return value


def _check_all(field: str, values: Sequence[str]) -> list[str]:
    return [check_text(f"{field}[{i}]", value) for i, value in enumerate(values)]


def check_job_name(name: str) -> str:
    """The name, if it is plain enough for squeue, file names and lists. Raises RequestError."""
    if not _JOB_NAME.fullmatch(name):
        raise RequestError(
            f"job name {name!a}: 1 to 64 of letters, digits, '.', '_', '-', the first a letter or"
            " digit"
        )
    return name


def parameters(request: JobRequest, passed_on: Mapping[str, str]) -> dict[str, Any]:
    """The keyword arguments of submitit's `SlurmExecutor.update_parameters` for this request.

    Args:
        request: the job.
        passed_on: variables of the submitting shell that the job receives; `request.env` wins.

    Raises:
        RequestError: a value that a script cannot hold, or an `extra` key that is not allowed.
    """
    resources, around = request.resources, _wrapping(request)
    _check_counts(resources)
    minutes = max(1, math.ceil(resources.hours * 60))
    values: dict[str, Any] = {
        "job_name": check_job_name(request.name),
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "time": minutes,
        "stderr_to_stdout": True,
        # submitit's own default would file our jobs under its name where sites account by key.
        "wckey": None,
        "additional_parameters": _additional(request, minutes),
        "srun_args": [*_srun_args(resources), *_check_all("env", around.srun_args)],
        "setup": [*_setup(request, passed_on, around), *_site_setup(resources), *_before(request)],
        "teardown": _teardown(request),
    }
    if resources.mem_gb is not None:
        values["mem"] = f"{math.ceil(resources.mem_gb * 1024)}M" if resources.mem_gb else 0
    for field in _OPTIONS:
        text = getattr(resources, field)
        if text is not None:
            values[field] = _check_option(field, text)
    if request.comment:
        values["comment"] = check_text("comment", request.comment)
    if request.after:
        # A job that is replaced by another one has failed, in SLURM's eyes, whatever comes of it.
        kind = "afterok" if resources.requeue else "afterany"
        values["dependency"] = f"{kind}:" + ":".join(_ids_to_wait_for(request.after))
    return values


def _ids_to_wait_for(handles: Sequence[JobHandle]) -> list[str]:
    """Ids of the jobs; an array that is waited for as a whole is named once, by its own id."""
    tasks: dict[tuple[str, int], set[str]] = {}
    for handle in handles:
        if handle.array_size:
            array = check_text("after", handle.job_id).partition("_")[0], handle.array_size
            tasks.setdefault(array, set()).add(handle.job_id)
    whole = {job for (array, size), jobs in tasks.items() if len(jobs) == size for job in jobs}
    ids = (
        handle.job_id.partition("_")[0] if handle.job_id in whole else handle.job_id
        for handle in handles
    )
    return list(dict.fromkeys(check_text("after", job_id) for job_id in ids))


def _check_counts(resources: Resources) -> None:
    for field in ("nodes", "tasks_per_node", "cpus_per_task", "signal_seconds"):
        if getattr(resources, field) < 1:
            raise RequestError(f"{field}: {getattr(resources, field)}; at least 1 is needed")
    if resources.gpus_per_node < 0:
        raise RequestError(f"gpus_per_node: {resources.gpus_per_node}; 0 or more")
    if not (math.isfinite(resources.hours) and resources.hours > 0):
        raise RequestError(f"hours: {resources.hours}; a number above 0 is needed")
    memory = resources.mem_gb
    if memory is not None and not (math.isfinite(memory) and memory >= 0):
        raise RequestError(f"mem_gb: {memory}; a number above 0, or 0 for all of a node's memory")


def _check_option(field: str, text: str) -> str:
    if not text.strip():
        raise RequestError(f"{field}: empty; leave it out to take the site's default")
    return check_text(field, text)


def _gpus(resources: Resources) -> dict[str, str | int | bool]:
    """How GPUs are asked for, and `gres` of the recipe beside them."""
    given = resources.extra.get("gres", False)
    other = [] if given is False else [check_text("extra.gres", str(given))]
    if not resources.gpus_per_node:
        return {"gres": other[0]} if other else {}
    if any(part.strip().startswith("gpu") for text in other for part in text.split(",")):
        raise RequestError("extra.gres: asks for GPUs again; gpus_per_node and gpu_type do that")
    kind = "" if resources.gpu_type is None else f"{_check_option('gpu_type', resources.gpu_type)}:"
    if resources.gpu_request == "gres":
        return {"gres": ",".join([f"gpu:{kind}{resources.gpus_per_node}", *other])}
    asked: dict[str, str | int | bool] = {"gres": other[0]} if other else {}
    if resources.gpu_request == "gpus-per-task":
        if resources.gpus_per_node != resources.tasks_per_node:
            raise RequestError(
                f"gpu_request gpus-per-task: {resources.gpus_per_node} GPUs for"
                f" {resources.tasks_per_node} ranks a node are not one each"
            )
        return asked | {"gpus-per-task": f"{kind}1"}
    return asked | {"gpus-per-node": f"{kind}{resources.gpus_per_node}"}


def _additional(request: JobRequest, minutes: int) -> dict[str, str | int | bool]:
    folder = check_text("log_dir", str(request.log_dir))
    if not request.log_dir.is_absolute() or "%" in folder or "\\" in folder:
        raise RequestError(
            f"log_dir {folder!r}: SLURM needs an absolute path, and gives '%' and '\\' in file"
            " names a meaning of its own; choose another place for the store"
        )
    values: dict[str, str | int | bool] = {
        "chdir": folder,
        "export": "NONE",
        "kill-on-invalid-dep": "yes",
        "requeue" if request.resources.requeue else "no-requeue": True,
        # submitit takes the signal from a variable of the environment; ours is fixed. Of a short
        # job no more than a third may be warning, else it would be asked to stop at its start.
        "signal": f"USR2@{min(request.resources.signal_seconds, minutes * 20)}",
    }
    values |= _gpus(request.resources)
    for field in _MORE_OPTIONS:
        text = getattr(request.resources, field)
        if text is not None:
            values[field] = _check_option(field, text)
    if request.resources.exclusive:
        values["exclusive"] = request.resources.exclusive
    for key, value in request.resources.extra.items():
        name = key.replace("_", "-")
        if name not in EXTRA_KEYS:
            raise RequestError(
                f"extra.{key!a}: not an sbatch option that can be added here; known:"
                f" {', '.join(sorted(EXTRA_KEYS))}"
            )
        if value is not False and name != "gres":
            text = value if value is True else check_text(f"extra.{key}", str(value))
            values[name] = text
    return values


def _srun_args(resources: Resources) -> list[str]:
    """srun is told all numbers again: since 22.05 it does not take --cpus-per-task from sbatch, and
    where sbatch was told the type of GPUs, tasks get none by --gpus-per-task unless srun asks too.

    Ranks that share a node are bound each to CPUs of its own: by default all of them may run on any
    CPU of the job.
    """
    more = []
    if resources.gpus_per_node and resources.gpu_request == "gpus-per-task":
        more.append("--gpus-per-task=1")
    # A hint binds by itself, and SLURM takes one of the two only.
    bound = resources.cpu_bind is not None and "hint" not in resources.extra
    if bound and resources.tasks_per_node > 1:
        more.append(f"--cpu-bind={resources.cpu_bind}")
    return [
        *more,
        "--open-mode=append",
        "--kill-on-bad-exit=1",
        f"--nodes={resources.nodes}",
        f"--ntasks={resources.world_size}",
        f"--ntasks-per-node={resources.tasks_per_node}",
        f"--cpus-per-task={resources.cpus_per_task}",
    ]


def _wrapping(request: JobRequest) -> Wrapping:
    """What the environment puts around the ranks. Raises RequestError."""
    environment, host = request.resources.environment, request.epilogue[:1]
    if environment is None or not host:
        return Wrapping()
    for folder in request.folders:
        if environment.kind in ("apptainer", "pyxis") and set(str(folder)) & {":", ","}:
            raise RequestError(
                f"{str(folder)!r} cannot be mounted in a container, which gives ':' and ',' a"
                " meaning of their own: choose another place"
            )
    return wrapping(
        environment,
        request.env,
        request.folders,
        cuda=request.resources.gpus_per_node > 0,
        host=host[0],
    )


def _setup(request: JobRequest, passed_on: Mapping[str, str], around: Wrapping) -> list[str]:
    """Take only our variables and outlive the stop signals; the site's own lines come after that.

    TERM is acted on at once, while the ranks still save: where they cannot within KillWait, the
    script is killed with them, and a job that was preempted by cancelling (PreemptMode=CANCEL) or
    ran into its time limit would be lost if the requeue had waited for their end. That is why srun
    runs in the background: a shell looks at its traps only between foreground commands.
    """
    lines = ["umask 077", "unset SLURM_EXPORT_ENV"]
    for name, value in sorted({**passed_on, **request.env}.items()):
        if not _VARIABLE.fullmatch(name):
            raise RequestError(f"env: {name!a} is not the name of a variable")
        lines.append(f"export {name}={shlex.quote(check_text(f'env.{name}', value))}")
    # The copy of the script that runs: what goes on in another job is submitted from it.
    lines.append('export ORCHESTRATE_SCRIPT="$0"')
    lines += _check_all("env", around.setup)
    # A second TERM would reach the epilogue before it can ignore it. Where nobody has ended the job
    # (code 0), the next TERM may.
    decide, again = f"{epilogue(request)} --exit-code 143 --signalled", "; ".join(_TRAPS)
    on_term = f"trap '' TERM USR2; signalled=1; if {decide}; then {again}; fi"
    return [*lines, f"on_term() {{ {on_term}; }}", *_on_exit(request), *_TRAPS]


def _on_exit(request: JobRequest) -> list[str]:
    """A site's line that ends the script (`|| exit 1`, `set -e`) leads to the epilogue as well."""
    if not request.resources.setup:
        return []
    end = f"code=$?; trap '' TERM USR2; trap - EXIT; {epilogue(request)} --exit-code \"$code\""
    return [f"on_exit() {{ {end}; exit $?; }}", "trap on_exit EXIT"]


def _site_setup(resources: Resources) -> list[str]:
    """The site's own lines, and after them a shell as it was: none of its ways may end the script
    before the epilogue."""
    lines = _check_all("setup", resources.setup)
    return [*lines, "set +eu; trap - EXIT ERR DEBUG RETURN", *_TRAPS] if lines else []


def _before(request: JobRequest) -> list[str]:
    """The prologue; behind the setup, so that a setup that fails leaves no job behind it."""
    if not request.prologue:
        return []
    leaves = int(ExitCode.SUPERSEDED)
    prologue = _words("prologue", request.prologue, request)
    return [f"{prologue}; [ $? -ne {leaves} ] || exit {leaves}"]


def _teardown(request: JobRequest) -> list[str]:
    """Wait for srun; the epilogue decides on its exit code, and nothing may interrupt that.

    `wait` returns early when a trap has run, so it is repeated; bash keeps the status of a process
    that ended meanwhile.
    """
    return [
        "ranks=$!",
        'signalled=1; while [ -n "$signalled" ]; do signalled=; wait "$ranks"; rc=$?; done',
        "trap '' TERM USR2",
        f'{epilogue(request)} --exit-code "$rc"',
        "exit $?",
    ]


def epilogue(request: JobRequest) -> str:
    """The epilogue's command as shell words. Raises RequestError."""
    return _words("epilogue", request.epilogue, request)


def command(request: JobRequest) -> str:
    """The ranks' command as shell words. Raises RequestError."""
    if not request.argv or not request.epilogue:
        raise RequestError("argv and epilogue: both need a program to run")
    return _words("argv", (*_wrapping(request).words, *request.argv), request)


def _words(field: str, words: Sequence[str], request: JobRequest) -> str:
    """A command with its target; in the script of an array, that of the task it runs as."""
    if request.task is not None:
        return f'{shlex.join(_check_all(field, words))} "${{target[@]}}"'
    return shlex.join([*_check_all(field, words), *_check_all("target", request.target)])
