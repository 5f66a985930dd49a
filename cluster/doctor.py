"""What this cluster offers and what of its settings matters to jobs that are stopped and go on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.contract import SchedulerError
from cluster.queue import parse_scontrol_config, parse_scontrol_job

_SECONDS = 60
_DEFAULT_CRED_EXPIRE = 120  # slurm.conf(5), AuthInfo; a requeued job waits one second more


@dataclass(frozen=True, kw_only=True)
class PartitionFacts:
    """Settings of one partition; None where it sets no bound or does not say.

    Attributes:
        up: whether its jobs start.
        num_nodes: all its nodes, busy and broken ones included.
        preempt_mode: what becomes of its jobs when others take their place, if the cluster preempts
            by partition.
        grace_seconds: from the first signal of a preemption to its TERM; 0 is none.
        max_hours, max_nodes: the most one job may ask for.
    """

    name: str
    default: bool
    up: bool
    num_nodes: int | None
    preempt_mode: str
    grace_seconds: int
    max_hours: float | None
    max_nodes: int | None


@dataclass(frozen=True, kw_only=True)
class SlurmFacts:
    """Settings of a SLURM controller; None where it does not say.

    Attributes:
        preempt_type: `preempt/none`, `preempt/partition_prio` or `preempt/qos`.
        preempt_mode: `OFF`, `REQUEUE`, `CANCEL`, ...; a partition may differ.
        kill_wait_seconds: from TERM to KILL: what a checkpoint must fit into.
        job_requeue: whether jobs may be requeued by default; ours ask for it themselves.
        min_job_age_seconds: how long an ended job stays known to squeue.
        user_signal: whether preemption with a grace time sends the job's own signal first.
        kill_invalid_depend: whether the site itself removes jobs whose dependency cannot be
            satisfied any more; ours ask for it themselves.
        max_array_size: one more than the highest number in a job array; 0 without arrays.
        accounting: whether sacct has something to tell.
        slurmd_timeout_seconds: until a silent node counts as lost.
        requeue_wait_seconds: how long a requeued job has to wait at least.
        partitions: those that were asked for and exist.
    """

    version: str
    cluster: str
    preempt_type: str
    preempt_mode: str
    kill_wait_seconds: int | None
    job_requeue: bool | None
    min_job_age_seconds: int | None
    user_signal: bool
    kill_invalid_depend: bool
    max_array_size: int | None
    accounting: bool
    slurmd_timeout_seconds: int | None
    requeue_wait_seconds: int
    partitions: tuple[PartitionFacts, ...] = ()

    @property
    def preempt_modes(self) -> frozenset[str]:
        """What preemption may do to a job in the partitions asked for: that of the cluster where
        it preempts by QOS (a QOS may differ, which only accounting tells), nothing where it never
        preempts."""
        if self.preempt_type == "preempt/none":
            return frozenset({"OFF"})
        if self.preempt_type == "preempt/qos" or not self.partitions:
            return frozenset({self.preempt_mode})
        return frozenset(partition.preempt_mode for partition in self.partitions)

    @property
    def grace_seconds(self) -> int:
        """The shortest grace time of the partitions asked for."""
        return min((partition.grace_seconds for partition in self.partitions), default=0)


def has_gpus(executor_name: str) -> bool:
    """Whether jobs of that executor can get GPUs.

    On a machine without SLURM's commands a `slurm` recipe is only planned or shown, and nobody can
    be asked: it is then taken at its word, so the answer is yes.

    Raises:
        SchedulerError: SLURM is installed and does not answer.
    """
    if executor_name != "slurm":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        return visible not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))
    if shutil.which("sinfo") is None:
        return True
    return "gpu" in _ask("sinfo", "--noheader", "--format=%G").lower()


def slurm_facts(partition: str | None = None) -> SlurmFacts:
    """Read `scontrol show config` and `scontrol show partition`: two questions to the controller.

    Args:
        partition: as sbatch takes it, several with commas between; None for where a job goes that
            names none: `SBATCH_PARTITION` of this shell, else the cluster's default.

    Raises:
        SchedulerError: SLURM is not installed or does not answer.
    """
    config = parse_scontrol_config(_ask("scontrol", "show", "config"))
    known = parse_partitions(_ask("scontrol", "--all", "--oneliner", "show", "partition"))
    named = (partition or os.environ.get("SBATCH_PARTITION", "")).split(",")
    chosen = [one for one in known if one.name in named or (named == [""] and one.default)]
    return parse_facts(config, chosen)


def parse_facts(config: Mapping[str, str], partitions: Sequence[PartitionFacts] = ()) -> SlurmFacts:
    """The facts in `scontrol show config`; pure."""
    flags = config.get("SlurmctldParameters", "") + "," + config.get("PreemptParameters", "")
    requeue = _first_number(config.get("JobRequeue", ""))
    expiry = re.search(r"\bcred_expire=(\d+)", config.get("AuthInfo", ""))
    delay = re.search(r"\brequeue_delay=(\d+)", config.get("SchedulerParameters", ""))
    wait = int(expiry[1]) + 1 if expiry else _DEFAULT_CRED_EXPIRE + 1
    storage = config.get("AccountingStorageType", "")
    return SlurmFacts(
        version=config.get("SLURM_VERSION", "unknown"),
        cluster=config.get("ClusterName", "unknown"),
        preempt_type=config.get("PreemptType", "unknown"),
        preempt_mode=config.get("PreemptMode", "unknown"),
        kill_wait_seconds=_first_number(config.get("KillWait", "")),
        job_requeue=None if requeue is None else bool(requeue),
        min_job_age_seconds=_first_number(config.get("MinJobAge", "")),
        user_signal="send_user_signal" in flags,
        kill_invalid_depend="kill_invalid_depend" in config.get("DependencyParameters", ""),
        max_array_size=_first_number(config.get("MaxArraySize", "")),
        accounting=storage not in ("", "(null)") and not storage.endswith("/none"),
        slurmd_timeout_seconds=_first_number(config.get("SlurmdTimeout", "")),
        requeue_wait_seconds=int(delay[1]) if delay else wait,
        partitions=tuple(partitions),
    )


def parse_partitions(text: str) -> list[PartitionFacts]:
    """Read `scontrol --oneliner show partition`; pure."""
    return [_partition(parse_scontrol_job(line)) for line in text.splitlines() if line.strip()]


def _partition(fields: Mapping[str, str]) -> PartitionFacts:
    return PartitionFacts(
        name=fields.get("PartitionName", ""),
        default=fields.get("Default") == "YES",
        up=fields.get("State", "UP") == "UP",
        num_nodes=_first_number(fields.get("TotalNodes", "")),
        preempt_mode=fields.get("PreemptMode", "unknown"),
        grace_seconds=_first_number(fields.get("GraceTime", "")) or 0,
        max_hours=_hours(fields.get("MaxTime", "")),
        max_nodes=_first_number(fields.get("MaxNodes", "")),
    )


def _hours(text: str) -> float | None:
    """SLURM's `days-hours:minutes:seconds`, of which days may be missing; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return 24 * days + hours + minutes / 60 + seconds / 3600


def send_signal(job_id: str, name: str) -> None:
    """Send a signal to all ranks of a job and not to its batch script. Raises SchedulerError."""
    _ask("scancel", f"--signal={name}", job_id)


def requeue(job_id: str) -> None:
    """Have a running job ended and queued again, as preemption does. Raises SchedulerError."""
    _ask("scontrol", "requeue", job_id)


def _first_number(text: str) -> int | None:
    match = re.match(r"\s*(\d+)", text)
    return int(match.group(1)) if match else None


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise SchedulerError(
            f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout
