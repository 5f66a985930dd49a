"""What is known of a SLURM site that only a job on its nodes can find out, kept in the store."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from cluster import fsio

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SiteProfile:
    """What a job on the compute nodes found (`doctor --job`); None where that is not known.

    Attributes:
        cluster: ClusterName of the controller.
        checked_at: unix seconds.
        nodes: where the job ran.
        scontrol_on_nodes: whether a job can run scontrol and is answered.
        sbatch_on_nodes: whether a job may submit jobs.
        gpu_request: the spelling by which GPUs were given; None without GPUs.
    """

    cluster: str
    checked_at: float
    nodes: tuple[str, ...] = ()
    scontrol_on_nodes: bool | None = None
    sbatch_on_nodes: bool | None = None
    gpu_request: Literal["gpus-per-node", "gpus-per-task", "gres"] | None = None


def profile_file(store: Path, cluster: str) -> Path:
    """Where the profile of a cluster lies in a store."""
    return store / "sites" / f"{cluster}.json"


def read_profile(store: Path, cluster: str) -> SiteProfile | None:
    """The profile of a cluster, None where no job has looked; unknown fields are passed over."""
    raw = fsio.read_json_or_none(profile_file(store, cluster))
    if raw is None:
        return None
    known = {field.name for field in fields(SiteProfile)}
    values = {name: value for name, value in raw.items() if name in known}
    return SiteProfile(**{**values, "nodes": tuple(values.get("nodes", ()))})


def write_profile(store: Path, profile: SiteProfile) -> None:
    """Keep a profile for all later submissions from this store."""
    path = profile_file(store, profile.cluster)
    fsio.make_dir(path.parent)
    fsio.write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(profile)})
