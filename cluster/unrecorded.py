"""Attempts that were lost with their batch script: the next one records how they ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.causes import RULES, Cause
from cluster.evidence import (
    attempts_before,
    hosts,
    lost_nodes,
    partition_size,
    read,
    scheduler_view,
)
from cluster.exclusion import admit
from cluster.inside import job_fields
from cluster.progress import committed_step

_SCHEMA_VERSION = 1


def record_lost(stage: Path, submission: int, restart: int) -> None:
    """Write exit.json for earlier attempts of the submission that began and left no end.

    The batch script dies with its node, and its epilogue with it. A job that began again all the
    same was requeued by the scheduler, for a node or a preemption: that does not count. A successor
    begins after any end, also where KillWait was too short for the epilogue: its predecessor counts
    unless the scheduler tells that it was not to blame, which it does for some minutes.

    Args:
        stage: folder of the stage.
        submission: whose attempts.
        restart: the number of the attempt that asks, which comes after all that were lost.
    """
    name = f"s{submission:03d}r{restart:03d}"
    for (owner, _), folder in attempts_before(stage, submission, restart):
        if owner != submission:
            continue
        start = read(folder / "start.json")
        if start is None or any((folder / f"{end}.json").exists() for end in ("end", "exit")):
            continue
        try:
            fsio.create_json(folder / "exit.json", _lost(stage, start, recorded_by=name))
        except OSError as error:
            print(f"orchestrate: no record in {folder}: {error}", file=sys.stderr, flush=True)


def _lost(stage: Path, start: dict[str, Any], *, recorded_by: str) -> dict[str, Any]:
    down = lost_nodes(hosts(str(start.get("hosts", "")))) if start.get("job_id") else ()
    cause, reason = _cause(start.get("job_id"), down)
    return {
        "schema_version": _SCHEMA_VERSION,
        "exit_code": None,
        "job_exit_code": None,
        "decision": "requeue",
        "reason": reason,
        "cause": cause,
        "policy": RULES[cause].retry,
        "exclude": list(_left_out(down)),
        "mem_gb": None,
        "self_ended": False,
        "requeue_asked": False,
        "step": committed_step(stage),
        "finished_at": time.time(),
        "recorded_by": recorded_by,
    }


def _cause(job_id: str | None, down: Sequence[str]) -> tuple[Cause, str]:
    """Why an attempt left no record, by its job and the nodes of it that are down now."""
    again = "it left no record, and the scheduler started it again"
    if down:
        return "node_failure", f"lost with {', '.join(down)}: {again}"
    if not job_id or job_id == os.environ.get("SLURM_JOB_ID"):
        return "node_failure", f"lost with its node, or killed: {again}"
    fields = job_fields(job_id) or {}
    state = fields.get("JobState", "")
    if state.startswith("NODE_FAIL"):
        return "node_failure", f"job {job_id} was lost with a node and left no record"
    if state.startswith("PREEMPTED") or scheduler_view(fields, 0).preempted:
        return "preempted", f"job {job_id} was preempted and left no record"
    if state.startswith("TIMEOUT"):
        return "time_limit", f"job {job_id} ran into its time limit and left no record"
    return "killed", f"job {job_id} was killed before it could leave a record"


def _left_out(down: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the lost nodes that a run may do without; this job has others already."""
    if not down:
        return ()
    allowed, _ = admit(
        down,
        excluded=(),
        partition_nodes=partition_size(os.environ.get("SLURM_JOB_PARTITION")),
        job_nodes=int(os.environ.get("SLURM_JOB_NUM_NODES") or 1),
    )
    return allowed
