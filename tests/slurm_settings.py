"""What a private SLURM is configured with, and the text of its configuration files; pure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The private cluster as its administrator wants it.

    Attributes:
        num_nodes, cpus, gpus: size; GPUs are character devices that do nothing. `gpus=0` gives the
            cluster nobody has configured: no GRES at all.
        preempt_mode: of the whole cluster and of the partition `main`: REQUEUE or CANCEL.
        grace_seconds: `GraceTime` of the partition `main`.
        user_signal: whether preemption sends the user's `--signal` first.
        accounting: whether slurmdbd and a database of its own run beside the controller.
        job_requeue: whether jobs that do not say so themselves may be requeued.
        kill_wait: seconds between TERM and KILL of a job's processes.
        min_job_age: seconds an ended job stays known to the controller.
        cred_expire: seconds that a requeued job waits, less one; below 5 SLURM takes its default.
        slurmd_timeout: seconds after which a silent node counts as lost.
        message_timeout: seconds a client waits for the controller.
        first_job_id: of the first job; ports that jobs choose by it must differ between clusters
            that run at the same time.
        shares: folders that all nodes see besides the cluster's own.
    """

    num_nodes: int = 2
    cpus: int = 8
    gpus: int = 4
    preempt_mode: str = "REQUEUE"
    grace_seconds: int = 0
    user_signal: bool = False
    accounting: bool = False
    job_requeue: bool = True
    kill_wait: int = 10
    min_job_age: int = 300
    cred_expire: int = 5
    slurmd_timeout: int = 20
    message_timeout: int = 10
    first_job_id: int = 1
    shares: tuple[Path, ...] = ()

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes."""
        return [f"n{i + 1}" for i in range(self.num_nodes)]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one private cluster lives; `ports` are the controller's, the nodes' and slurmdbd's."""

    root: Path
    host: str
    name: str
    ports: Sequence[int]

    @property
    def user(self) -> str:
        """Whom all daemons run as: whoever starts them."""
        return "root" if os.geteuid() == 0 else str(os.geteuid())

    @property
    def munge_socket(self) -> Path:
        """How all daemons and clients authenticate."""
        return self.root / "munge" / "socket"


def slurm_conf(settings: Settings, place: Place) -> str:
    """The text of slurm.conf."""
    lines = [*_identity(settings, place), *_behaviour(settings), *_accounting(settings, place)]
    return "\n".join([*lines, *_nodes(settings, place), *_partitions(settings)]) + "\n"


def _identity(settings: Settings, place: Place) -> list[str]:
    root = place.root
    return [
        f"ClusterName={place.name}",
        f"SlurmctldHost={place.host}(127.0.0.1)",
        f"SlurmctldPort={place.ports[0]}",
        f"SlurmUser={place.user}",
        f"SlurmdUser={place.user}",
        "AuthType=auth/munge",
        "CryptoType=crypto/munge",
        f"AuthInfo=socket={place.munge_socket},cred_expire={settings.cred_expire}",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool-%n",
        f"SlurmctldPidFile={root}/slurmctld.pid",
        f"SlurmdPidFile={root}/slurmd-%n.pid",
    ]


def _behaviour(settings: Settings) -> list[str]:
    lines = [
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "PropagateResourceLimits=NONE",
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        "JobAcctGatherType=jobacct_gather/none",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0",
        "PreemptType=preempt/partition_prio",
        f"PreemptMode={settings.preempt_mode}",
        f"FirstJobId={settings.first_job_id}",
        f"JobRequeue={int(settings.job_requeue)}",
        f"KillWait={settings.kill_wait}",
        f"MinJobAge={settings.min_job_age}",
        f"SlurmdTimeout={settings.slurmd_timeout}",
        "SlurmctldTimeout=20",
        f"MessageTimeout={settings.message_timeout}",
        "InactiveLimit=0",
        "CompleteWait=0",
    ]
    if settings.user_signal:
        lines.append("SlurmctldParameters=preempt_send_user_signal")
    if settings.gpus:
        lines.append("GresTypes=gpu")
    return lines


def _accounting(settings: Settings, place: Place) -> list[str]:
    if not settings.accounting:
        return ["AccountingStorageType=accounting_storage/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={place.ports[-2]}",
        f"AccountingStoragePass={place.munge_socket}",
    ]


def _nodes(settings: Settings, place: Place) -> list[str]:
    gres = f" Gres=gpu:{settings.gpus}" if settings.gpus else ""
    return [
        f"NodeName={node} NodeAddr=127.0.0.1 NodeHostname={place.host} Port={port} "
        f"CPUs={settings.cpus} RealMemory=64000{gres} State=UNKNOWN"
        for node, port in zip(settings.nodes, place.ports[1:], strict=False)
    ]


def _partitions(settings: Settings) -> list[str]:
    main = f"PreemptMode={settings.preempt_mode} GraceTime={settings.grace_seconds}"
    common = "Nodes=ALL MaxTime=INFINITE State=UP"
    return [
        f"PartitionName=main Default=YES PriorityTier=1 {main} {common}",
        f"PartitionName=grace PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 {common}",
        f"PartitionName=cancel PriorityTier=1 PreemptMode=CANCEL {common}",
        f"PartitionName=high PriorityTier=10 PreemptMode=OFF {common}",
    ]


def slurmdbd_conf(place: Place) -> str:
    """The text of slurmdbd.conf, which must be readable for its owner only."""
    lines = [
        "AuthType=auth/munge",
        f"AuthInfo=socket={place.munge_socket}",
        "DbdHost=localhost",
        "DbdAddr=127.0.0.1",
        f"DbdPort={place.ports[-2]}",
        f"SlurmUser={place.user}",
        f"PidFile={place.root}/slurmdbd.pid",
        "StorageType=accounting_storage/mysql",
        "StorageHost=127.0.0.1",
        f"StoragePort={place.ports[-1]}",
        "StorageUser=slurm",
        "StoragePass=slurm",
        "StorageLoc=accounting",
    ]
    return "\n".join(lines) + "\n"
