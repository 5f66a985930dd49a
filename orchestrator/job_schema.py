"""Models of `cluster` and of every `resources`: where jobs run and what they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from cluster.batch import EXTRA_KEYS
from cluster.contract import GpuRequest, Resources
from cluster.credentials import looks_secret
from cluster.environment import PATTERN
from cluster.executors import EXECUTORS
from orchestrator.env_schema import EnvSpec, Line, Place, environment_of
from orchestrator.errors import nearest
from orchestrator.policy import PolicySpec
from recipes.config import Strict


def _known_executor(name: str) -> str:
    if name not in EXECUTORS:
        raise ValueError(f"one of the executors: {', '.join(EXECUTORS)}")
    return name


def _passable(name: str) -> str:
    if not PATTERN.fullmatch(name):
        raise ValueError("the name of a variable, or PREFIX_*")
    if not name.endswith("*") and looks_secret(name):
        raise ValueError(
            "no credential: scripts of jobs can be read by others; write it into a private file"
            " and name that in cluster.env_file"
        )
    return name


OptionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Count = Annotated[int, Field(ge=1)]
GpuType = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class ResourcesSpec(Strict):
    """What a job asks the cluster for; what a stage leaves out, `cluster.resources` gives.

    With `device: auto`, GPUs are used where some are asked for or, if nothing is said of them,
    where the cluster has any: one a node. `cuda` asked for and absent is an error, never a quiet
    run on the CPU.
    """

    nodes: Count = 1
    tasks_per_node: Count | None = Field(
        None, description="ranks a node; default: gpus_per_node, or 1 without GPUs"
    )
    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpus_per_node: int | None = Field(None, ge=0)
    gpu_type: GpuType | None = Field(None, description="as the cluster's GRES calls it; null: any")
    gpu_request: Literal["auto", "gpus-per-node", "gpus-per-task", "gres"] = Field(
        "auto",
        description="how GPUs are asked for; auto: as `doctor --job` found, else gpus-per-node",
    )
    cpus_per_task: Count = 1
    cpu_bind: Literal["cores", "threads", "none"] | None = Field(
        "cores", description="what ranks that share a node are bound to; null: as the cluster does"
    )
    mem_gb: float | None = Field(
        None, ge=0.0, description="memory a node, 0 for all of it; default: the cluster's"
    )
    mem_per_gpu_gb: float | None = Field(None, gt=0.0, description="in place of mem_gb")
    hours: float = Field(1.0, gt=0.0, description="time limit")
    partition: Line | None = Field(None, description="one, or several with commas")
    account: Line | None = None
    qos: Line | None = None
    reservation: Line | None = None
    constraint: Line | None = Field(None, description="features of nodes, such as 'a100&ib'")
    nodelist: Line | None = Field(None, description="nodes that must be among those of the job")
    exclude: Line | None = Field(None, description="nodes not to use")
    exclusive: bool | Literal["user"] = Field(
        False, description="whole nodes; user: shared among jobs of one user only"
    )
    licenses: Line | None = Field(None, description="such as scratch:1")
    comment: Line | None = Field(None, description="in place of ours, where a site reads it")
    parts_at_once: Count | None = Field(
        None, description="jobs that may run at once where several share the work of a stage"
    )
    signal_seconds: int = Field(
        300, ge=1, description="warning before the time limit, enough for a checkpoint"
    )
    extra: dict[OptionName, Line | int | bool] = Field(
        {}, description="further options of sbatch, such as {mail-type: END, nice: 100}"
    )

    @field_validator("gpus_per_node")
    @classmethod
    def _fits_device_and_ranks(cls, gpus: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("device") == "cuda" and gpus == 0:
            raise ValueError("device cuda needs gpus_per_node of at least 1")
        ranks = info.data.get("tasks_per_node")
        if gpus and ranks and ranks > gpus and info.data.get("device") != "cpu":
            raise ValueError(f"at least tasks_per_node ({ranks}): two ranks cannot share a GPU")
        return gpus

    @field_validator("gpu_type")
    @classmethod
    def _has_gpus(cls, kind: str | None, info: ValidationInfo) -> str | None:
        if kind is not None and _without_gpus(info.data):
            raise ValueError("no type of GPU where none is asked for (device, gpus_per_node)")
        return kind

    @field_validator("gpu_request")
    @classmethod
    def _can_be_shared_out(cls, request: str, info: ValidationInfo) -> str:
        gpus, ranks = info.data.get("gpus_per_node"), info.data.get("tasks_per_node")
        if request == "gpus-per-task" and gpus and ranks and gpus != ranks:
            raise ValueError(f"not gpus-per-task: {gpus} GPUs for {ranks} ranks are not one each")
        return request

    @field_validator("mem_per_gpu_gb")
    @classmethod
    def _one_memory(cls, memory: float | None, info: ValidationInfo) -> float | None:
        if memory is not None and info.data.get("mem_gb") is not None:
            raise ValueError("either mem_gb or mem_per_gpu_gb")
        if memory is not None and _without_gpus(info.data):
            raise ValueError("mem_gb, where no GPU is asked for (device, gpus_per_node)")
        return memory

    @field_validator("extra")
    @classmethod
    def _known_options(cls, extra: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for key in extra:
            name = key.replace("_", "-")
            if name in EXTRA_KEYS:
                continue
            own = name.replace("-", "_")
            hint = f"`resources.{own}` instead" if own in cls.model_fields else ""
            raise ValueError(
                f"options of sbatch that can be added; {key} is none of them: "
                f"{hint or nearest(name, sorted(EXTRA_KEYS))}"
            )
        return extra


def _without_gpus(data: dict[str, Any]) -> bool:
    return data.get("device") == "cpu" or data.get("gpus_per_node") == 0


class ClusterSpec(Strict):
    """Where jobs run: an executor, defaults of resources, and what makes a node ready for them."""

    executor: Annotated[str, AfterValidator(_known_executor)] = "local"
    resources: ResourcesSpec = ResourcesSpec()
    env: EnvSpec | None = Field(
        None, description="where the Python of the jobs comes from; default: the one that submits"
    )
    setup: tuple[Line, ...] = Field((), description="shell lines of every job, before its ranks")
    transport: Literal["auto", "requeue", "successor"] = Field(
        "auto",
        description="how a stage goes on when SLURM ends its job: the same job again, or another"
        " one that waits for its end; auto: the first, wherever the site lets jobs ask for it",
    )
    pass_env: tuple[Annotated[str, AfterValidator(_passable)], ...] = Field(
        (), description="further variables of this shell that jobs get: NAME or PREFIX_*"
    )
    env_file: Place | None = Field(
        None, description="file with NAME=VALUE lines that only you can read, read by the jobs"
    )
    policy: PolicySpec = Field(PolicySpec(), description="of all stages that say nothing else")

    @field_validator("env")
    @classmethod
    def _on_a_cluster(cls, env: EnvSpec | None, info: ValidationInfo) -> EnvSpec | None:
        if env is not None and info.data.get("executor") == "local":
            raise ValueError(
                "null with the executor local, whose jobs run in the environment of this command"
            )
        return env


def merged(stage: ResourcesSpec, cluster: ClusterSpec, *, cpu_only: bool = False) -> ResourcesSpec:
    """A stage's resources over those of the cluster.

    A kind that is `cpu_only` takes no nodes, ranks or GPUs from the cluster's defaults: one
    process, unless the stage says more.

    Raises:
        pydantic.ValidationError: the two do not fit together.
    """
    defaults = cluster.resources.model_dump(exclude_unset=True)
    own = stage.model_dump(exclude_unset=True)
    if cpu_only:
        defaults |= {"device": "cpu", "nodes": 1, "tasks_per_node": None, "gpus_per_node": None}
    asked = {**defaults, **own, "extra": {**defaults.get("extra", {}), **own.get("extra", {})}}
    # What goes with GPUs, or says the same otherwise, falls where the stage decides otherwise.
    for key in ("gpu_type", "mem_per_gpu_gb"):
        if key not in own and _without_gpus(asked):
            asked.pop(key, None)
    if own.get("mem_gb") is not None:
        asked.pop("mem_per_gpu_gb", None)
    if own.get("mem_per_gpu_gb") is not None:
        asked.pop("mem_gb", None)
    return ResourcesSpec(**asked)


def job_resources(
    stage: ResourcesSpec,
    cluster: ClusterSpec,
    *,
    has_gpus: bool,
    cpu_only: bool = False,
    gpu_request: GpuRequest = "gpus-per-node",
    data: Sequence[str] = (),
) -> Resources:
    """What one stage's job asks for: its own resources over those of the cluster.

    Args:
        stage: of the stage.
        cluster: of the recipe.
        has_gpus: whether the machine or cluster has any.
        cpu_only: whether its kind has no use for GPUs.
        gpu_request: what `auto` means on this cluster, where the ranks have a GPU each.
        data: folders of videos.
    """
    spec = merged(stage, cluster, cpu_only=cpu_only)
    device = _device(spec.device, spec.gpus_per_node, has_gpus)
    gpus = 0 if device == "cpu" else spec.gpus_per_node or 1
    ranks = spec.tasks_per_node or gpus or 1
    if gpu_request == "gpus-per-task" and ranks != gpus:
        gpu_request = "gpus-per-node"
    memory = spec.mem_gb
    if spec.mem_per_gpu_gb is not None and gpus:
        memory = spec.mem_per_gpu_gb * gpus
    decided = {"device", "gpus_per_node", "tasks_per_node", "gpu_request", "gpu_type"}
    fields = spec.model_dump(exclude={*decided, "mem_gb", "mem_per_gpu_gb"})
    seen = [*data, *([cluster.env_file] if cluster.env_file else [])]
    return Resources(
        **fields,
        device=device,
        gpus_per_node=gpus,
        gpu_type=spec.gpu_type if gpus else None,
        gpu_request=gpu_request if spec.gpu_request == "auto" else spec.gpu_request,
        tasks_per_node=ranks,
        mem_gb=memory,
        setup=cluster.setup,
        pass_env=cluster.pass_env,
        env_file=cluster.env_file,
        environment=None if cluster.env is None else environment_of(cluster.env, seen),
    )


def _device(asked: str, gpus: int | None, has_gpus: bool) -> Literal["cuda", "cpu"]:
    if asked == "auto":
        return "cuda" if (has_gpus if gpus is None else gpus > 0) else "cpu"
    return "cuda" if asked == "cuda" else "cpu"
