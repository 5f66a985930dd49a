"""Tells the jobs that wait for this one to do without a bad node as well; best effort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.evidence import hosts, partition_size
from cluster.exclusion import admit
from cluster.inside import dependents, downstream, job_fields, scontrol

_OURS = "orchestrate"  # how the comment of every job of ours begins


def leave_out(job_id: str, nodes: Sequence[str]) -> None:
    """Add nodes to the excluded ones of what waits for the job, directly or through others.

    Only of our jobs, and only as far as each still has nodes enough: SLURM takes what can never be
    satisfied, and the job would wait for ever. Jobs that are submitted later read the records.
    """
    sizes: dict[str, int | None] = {}
    for waiting in downstream(dependents(), [job_id]):
        name = waiting.job_id.partition("_[")[0]  # of an array all tasks that wait
        fields = job_fields(name) or {}
        if not fields.get("Comment", "").startswith(_OURS):
            continue
        partition = fields.get("Partition", "")
        if partition not in sizes:
            sizes[partition] = partition_size(partition)
        excluded = hosts(fields.get("ExcNodeList", ""))
        allowed = _allowed(nodes, fields, excluded, sizes[partition])
        if allowed:
            together = ",".join([*excluded, *allowed])
            scontrol("update", f"JobId={name}", f"ExcNodeList={together}")


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
