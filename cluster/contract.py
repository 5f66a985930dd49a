"""What every executor is asked and answers: resources, requests, handles, states, the protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol


class ExitCode:
    """Exit codes of a stage's process, as the epilogue and `status` read them (after sysexits)."""

    SUCCESS = 0
    CONFIGURATION = 65
    INPUT = 66
    USER_CODE = 70
    OUT_OF_MEMORY = 71
    DIVERGED = 72
    HANG = 73
    COMMUNICATION = 74  # a peer, device or file server was out of reach: not this rank's fault
    PREEMPTED = 75
    SUPERSEDED = 76  # a newer submission owns the stage: this job leaves before it works
    CANCELLED = 77  # a person cancelled the stage, but its job came back: it leaves before it works


class Phase(StrEnum):
    """Where a job is in the scheduler's eyes; `gone` covers ended and never known alike."""

    PENDING = "pending"
    RUNNING = "running"
    GONE = "gone"


GpuRequest = Literal["gpus-per-node", "gpus-per-task", "gres"]
EnvironmentKind = Literal["venv", "conda", "modules", "apptainer", "pyxis"]


@dataclass(frozen=True, kw_only=True)
class PythonEnvironment:
    """Where the Python of the ranks comes from, and what is done on the node before it runs.

    Attributes:
        python: program of the ranks; None for what the kind gives.
        host_python: program of what runs outside a container, before and after the ranks; None for
            the one that submits.
        load: environment modules, loaded in this order before anything else.
        init: file that defines the command `module`; None looks at the usual places.
        place: folder of a venv, name or prefix of a conda environment, image of a container.
        conda_sh: conda's own `conda.sh`; None for the conda that modules or PATH give.
        binds: `SOURCE` or `SOURCE:TARGET[:OPTIONS]`, mounted in a container.
        gpus: whether Apptainer is asked for NVIDIA GPUs; None where the job has some.
        program: the command of Apptainer.
        arguments: further ones of `apptainer exec`, or of srun for pyxis.
    """

    kind: EnvironmentKind
    python: str | None = None
    host_python: str | None = None
    load: tuple[str, ...] = ()
    init: str | None = None
    place: str = ""
    conda_sh: str | None = None
    binds: tuple[str, ...] = ()
    gpus: bool | None = None
    program: str = "apptainer"
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job asks for. `tasks_per_node` counts ranks: one a GPU, or one a CPU share.

    Attributes:
        mem_gb: memory a node; 0 asks for all of it, None for the cluster's default.
        gpu_type: as the cluster's GRES calls it; None takes any.
        exclusive: whole nodes; `user` shares them among jobs of one user.
        cpu_bind: how srun binds ranks to CPUs; None leaves it to the cluster.
        requeue: whether the scheduler may start the job again under its id. Where it may not, a
            successor goes on, and what comes after waits for the end of jobs, however they end.
        parts_at_once: for jobs that share the work of one stage: how many may run together.
        setup: shell lines of the batch script, before the ranks.
        pass_env: further variables of the submitting shell, by name or `PREFIX_*`.
        env_file: private file of variables that each rank reads itself.
        environment: None for the Python that submits, as it is.
    """

    nodes: int = 1
    tasks_per_node: int = 1
    device: Literal["cuda", "cpu"] = "cpu"
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    mem_gb: float | None = None
    hours: float = 1.0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    reservation: str | None = None
    licenses: str | None = None
    comment: str | None = None
    exclusive: bool | Literal["user"] = False
    gpu_request: GpuRequest = "gpus-per-node"
    gpu_type: str | None = None
    cpu_bind: Literal["cores", "threads", "none"] | None = None
    signal_seconds: int = 300
    requeue: bool = True
    parts_at_once: int | None = None
    setup: tuple[str, ...] = ()
    extra: Mapping[str, str | int | bool] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    env_file: str | None = None
    environment: PythonEnvironment | None = None

    @property
    def world_size(self) -> int:
        """Number of ranks over all nodes."""
        return self.nodes * self.tasks_per_node


def resources_from(record: Mapping[str, Any]) -> Resources:
    """The resources that `dataclasses.asdict` turned into a record and JSON kept."""
    values = {name: _tuples(value) for name, value in record.items()}
    environment = values.get("environment")
    if environment is not None:
        fields = {name: _tuples(value) for name, value in environment.items()}
        values["environment"] = PythonEnvironment(**fields)
    return Resources(**values)


def _tuples(value: Any) -> Any:
    """JSON knows lists only."""
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class JobHandle:
    """Names one submitted job for good; ids repeat, so the time of submission belongs to it.

    `array_size` is how many jobs were submitted together with it, as one array; 0 where it was
    submitted by itself or that is not known. `submitted_at` is true to `margin_seconds`. `before`
    is the job that this one goes on for when it fails: while it lives, it is the one that counts.
    """

    executor: str
    cluster: str
    job_id: str
    submitted_at: float
    array_size: int = 0
    margin_seconds: float = 2.0
    before: JobHandle | None = None


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What the scheduler says of a job now.

    `start_at` is when it started, or of one that waits when the scheduler expects to start it or
    may at the earliest, in unix seconds; None where it says nothing of it.
    """

    phase: Phase
    reason: str = ""
    restarts: int = 0
    exit_code: int | None = None
    start_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job: `argv` runs once a rank, `epilogue` once after all ranks, with `--exit-code RC`.

    `prologue`, where there is one, runs once before the ranks; they start unless it ends with
    `ExitCode.SUPERSEDED`, which is that of the job then. All get `target` behind their own words.
    `log_dir` receives one file a rank, appended across restarts. `after` are jobs that must succeed
    first, or just end where this one must not be requeued (see `Resources`). `env` is set for the
    ranks and the epilogue, on top of what the executor passes on. `task` is the job's number in an
    array. `folders` are what the ranks must see, also where they run in a container.
    """

    name: str
    argv: tuple[str, ...]
    epilogue: tuple[str, ...]
    resources: Resources
    log_dir: Path
    prologue: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    after: tuple[JobHandle, ...] = ()
    comment: str = ""
    task: int | None = None
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ArrayRequest:
    """Jobs of one name submitted together: equal but for `target`, `log_dir` and `task`.

    `folder` is the array's own; a script and links to the log folders may be left there.
    """

    folder: Path
    tasks: tuple[JobRequest, ...]


class Executor(Protocol):
    """A back end. `submit` never blocks on a job; `wait` does, and drives the local ones."""

    name: str

    def submit(self, request: JobRequest) -> JobHandle:
        """Hand the job over. Raises `SchedulerError` with command, exit code and stderr."""

    def submit_array(self, array: ArrayRequest) -> list[JobHandle]:
        """Hand the jobs over together, in the order of the tasks. Raises `SchedulerError`."""

    def array_limit(self) -> int:
        """How many jobs one array may have, and above all their numbers; 1 without arrays."""

    def render(self, request: JobRequest | ArrayRequest) -> str:
        """The script that would be handed over, for people to read."""

    def query(self, handles: Sequence[JobHandle]) -> dict[JobHandle, JobState]:
        """State of each job, in one call to the scheduler however many there are."""

    def find(self, name: str, task: int | None = None) -> JobHandle | None:
        """The newest pending or running job of that name and number, if the scheduler knows one."""

    def cancel(self, handles: Sequence[JobHandle]) -> None:
        """Stop the jobs; unknown ones are ignored."""

    def wait(
        self,
        handles: Sequence[JobHandle],
        on_tick: Callable[[Mapping[JobHandle, JobState]], None] | None = None,
        timeout: float | None = None,
    ) -> dict[JobHandle, JobState]:
        """Block until all jobs are gone or `timeout` seconds passed; `on_tick` twice a second."""


class SchedulerError(RuntimeError):
    """The scheduler refused or was out of reach; the message has command, code and stderr."""
