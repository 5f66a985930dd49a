"""All or nothing: takes back the jobs of a submission one of whose jobs was refused."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Mapping, Sequence

from cluster import fsio
from cluster.contract import Executor, JobHandle, Resources, SchedulerError
from cluster.patience import Trouble, UnknownOutcome, trouble_of
from orchestrator.sharing import other_runs
from orchestrator.store import SCHEMA_VERSION, StageDir, Store

Made = tuple[str, StageDir, JobHandle]

# What sbatch says, and the fields of `Resources` that it is about; texts of slurm_errno.c.
_ABOUT: Mapping[str, tuple[str, ...]] = {
    "invalid partition": ("partition",),
    "partition not available": ("partition",),
    "Invalid feature": ("constraint",),
    "Invalid account": ("account", "partition"),
    "Invalid qos": ("qos",),
    "accounting/QOS policy": ("account", "qos", "hours", "nodes"),
    "Requested time limit": ("hours",),
    "Node count": ("nodes",),
    "node configuration": ("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb"),
    "reservation": ("reservation",),
    "license": ("licenses",),
    "generic resource": ("gpu_type", "gpus_per_node"),
    "Invalid node name": ("nodelist", "exclude"),
}


def refusal(stage: str, resources: Resources, error: SchedulerError) -> SchedulerError:
    """The refusal of a stage's job, with what the recipe asks for where it is about that."""
    asked = next((keys for text, keys in _ABOUT.items() if text in str(error)), ())
    values = {key: getattr(resources, key) for key in asked}
    told = ", ".join(f"resources.{key} is {value}" for key, value in values.items() if value)
    return SchedulerError(f"stage {stage}: {error}" + (f" ({told})" if told else ""))


def take_back(
    made: Sequence[Made], error: Exception, executor: Executor, run_id: str, store: Store
) -> Exception:
    """Cancel the jobs made before `error`; the error that tells what became of them.

    Jobs that were attached to are none of them, and those that another run wants as well stay: it
    may have attached to them since. Where the scheduler does not answer all stay: they are
    recorded, and the next submission goes on with them.

    Args:
        made: name of the stage, its folder and its job, in the order of submission.
        error: why the next job was not made.
        executor: whose jobs they are.
        run_id: the run they were made for.
        store: where it lies.
    """
    if not made:
        unknown = isinstance(error, UnknownOutcome)
        return error if unknown else _told(error, "nothing was submitted")
    if trouble_of(error) is not Trouble.REFUSED:
        return _told(error, _stays(made))
    made, kept = _parted(made, run_id, store)
    if not made:
        return _told(error, kept.removeprefix("; "))
    for _, stage, _ in reversed(made):
        _mark(stage, str(error))
    try:
        executor.cancel([handle for _, _, handle in reversed(made)])
    except SchedulerError as silence:
        for _, stage, _ in made:
            stage.cancel_file.unlink(missing_ok=True)
        return _told(error, f"they could not be taken back ({silence}): {_stays(made)}{kept}")
    jobs = ", ".join(f"{name} (job {handle.job_id})" for name, _, handle in made)
    return _told(error, f"what had been submitted before it was taken back: {jobs}{kept}")


def _parted(made: Sequence[Made], run_id: str, store: Store) -> tuple[list[Made], str]:
    """The jobs that only this run wants, and words about the others."""
    keys = {name: str((stage.stage() or {}).get("key")) for name, stage, _ in made}
    shared = other_runs(run_id, keys.values(), store)
    others = [
        f"{name} (job {handle.job_id}) for run {shared[keys[name]][-1]}"
        for name, _, handle in made
        if keys[name] in shared
    ]
    words = f"; what another run wants as well stays: {', '.join(others)}" if others else ""
    return [one for one in made if keys[one[0]] not in shared], words


def _stays(made: Sequence[Made]) -> str:
    names = ", ".join(name for name, _, _ in made)
    return f"{names} stay submitted, and the same command later goes on from there"


def _mark(stage: StageDir, why: str) -> None:
    """Before the signal: a job that ends of it must not come back by itself."""
    who = {"user": getpass.getuser(), "host": socket.gethostname(), "at": time.time()}
    fsio.write_json(
        stage.cancel_file,
        {"schema_version": SCHEMA_VERSION, **who, "reason": f"a job after it was refused: {why}"},
    )


def _told(error: Exception, what: str) -> Exception:
    return type(error)(f"{str(error).rstrip('.')}; {what}")
