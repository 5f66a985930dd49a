"""Tells the jobs that wait for this one to do without a bad node as well; best effort."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cluster.evidence import hosts, partition_size
from cluster.exclusion import admit
from cluster.inside import Origin, dependents, downstream, job_fields, scontrol

# What a job may ask for that not every node of its partition has.
_CHOOSY = ("Features", "ReqNodeList", "TresPerNode", "TresPerTask", "TresPerJob", "Reservation")
_ANY_GPU = re.compile(r"gres[:/]gpu[:=]\d+")


def leave_out(origin: Origin, nodes: Sequence[str]) -> None:
    """Add nodes to the excluded ones of what waits for the job, directly or through others.

    Only of jobs of the same store, and only as far as each still has nodes enough: SLURM takes what
    can never be satisfied, and the job would wait for ever. So those stay as they are that ask for
    a kind of node: the partition's size says nothing of them. Later jobs read the records.
    """
    sizes: dict[str, int | None] = {}
    for waiting in downstream(dependents(origin.store), [origin.job_id]):
        name = waiting.name
        fields = job_fields(name)
        if fields is None or is_choosy(fields):
            continue
        partition = fields.get("Partition", "")
        if partition not in sizes:
            sizes[partition] = partition_size(partition)
        excluded = hosts(fields.get("ExcNodeList", ""))
        allowed = _allowed(nodes, fields, excluded, sizes[partition])
        if allowed:
            together = ",".join([*excluded, *allowed])
            scontrol("update", f"JobId={name}", f"ExcNodeList={together}")


def is_choosy(fields: Mapping[str, str]) -> bool:
    """Whether it asks for certain nodes. Of GPUs any type (`gres:gpu:2`) is not a certain one."""
    asked = [fields.get(name, "(null)") for name in _CHOOSY]
    return any(one not in ("", "(null)") and not _ANY_GPU.fullmatch(one) for one in asked)


def _allowed(
    nodes: Sequence[str],
    fields: Mapping[str, str],
    excluded: Sequence[str],
    partition_nodes: int | None,
) -> tuple[str, ...]:
    needed = fields.get("NumNodes", "1").partition("-")[0]
    allowed, _ = admit(
        nodes,
        excluded=excluded,
        by_recipe=excluded,
        partition_nodes=partition_nodes,
        job_nodes=int(needed) if needed.isdigit() else 1,
    )
    return allowed
