"""Attempts that were lost with their batch script: the next one records how they ended."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.causes import RULES
from cluster.evidence import ATTEMPT, hosts, lost_nodes, partition_size, read
from cluster.exclusion import admit
from cluster.progress import committed_step

_SCHEMA_VERSION = 1


def record_lost(stage: Path, submission: int, restart: int) -> None:
    """Write exit.json for earlier attempts of the submission that began and left no end.

    The batch script dies with its node, and its epilogue with it. That somebody started the job
    again all the same says that the scheduler did; whether the node failed, the scheduler tells as
    long as it is down. A node failure and a kill from outside count alike: not at all.

    Args:
        stage: folder of the stage.
        submission: whose attempts.
        restart: the number of the attempt that asks, which comes after all that were lost.
    """
    name = f"s{submission:03d}r{restart:03d}"
    for folder in sorted((stage / "attempts").glob(f"s{submission:03d}r*")):
        if ATTEMPT.fullmatch(folder.name) is None or folder.name >= name:
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
    reason = f"lost with {', '.join(down)}" if down else "lost with its node, or killed"
    return {
        "schema_version": _SCHEMA_VERSION,
        "exit_code": None,
        "job_exit_code": None,
        "decision": "requeue",
        "reason": f"{reason}: it left no record, and the scheduler started it again",
        "cause": "node_failure",
        "policy": RULES["node_failure"].retry,
        "exclude": list(_left_out(down)),
        "mem_gb": None,
        "self_ended": False,
        "requeue_asked": False,
        "step": committed_step(stage),
        "finished_at": time.time(),
        "recorded_by": recorded_by,
    }


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
