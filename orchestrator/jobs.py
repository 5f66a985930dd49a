"""The job of one submission of a stage: command, environment, name; the same shown or submitted."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.contract import ArrayRequest, JobHandle, JobRequest, Resources
from cluster.env_blocks import host_python, rank_python
from orchestrator.groups import collapsed, pattern
from orchestrator.planned import Plan, PlannedStage
from orchestrator.store import StageDir, Store

# Variables of the submitting shell that a job receives: switches of ours, never credentials.
_PASSED_ON = (
    "ORCHESTRATE_FAULT",
    "ORCHESTRATE_FAULT_RANK",
    "ORCHESTRATE_HANG_SECONDS",
    "ORCHESTRATE_INPUT_WAIT_SECONDS",
)


def job_request(
    name: str,
    stage: StageDir,
    n: int,
    resources: Resources,
    code: str | None,
    after: tuple[JobHandle, ...],
    *,
    task: int | None = None,
    part_of: str | None = None,
) -> JobRequest:
    """The job of one submission of a stage; the same whether it is submitted or only shown.

    `task` is its number in an array, all jobs of which are parts of the stage `part_of`.
    """
    environment = {
        "OMP_NUM_THREADS": str(resources.cpus_per_task),
        # Threads that spin while they wait take the cores from decoders and from other ranks: with
        # two threads on two busy cores a training step took ten times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }
    environment |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if code:
        environment["PYTHONPATH"] = code
    # -P: the folder the job starts in must not shadow the snapshot with today's working tree.
    ranks = (rank_python(resources.environment, sys.executable), "-P", "-m")
    host = (host_python(resources.environment, sys.executable), "-P", "-m")
    store = stage.path.parent.parent
    about = stage.path.name if task is None else f"parts of {part_of}"
    return JobRequest(
        name=name,
        argv=(*ranks, "orchestrator.entry"),
        prologue=() if resources.requeue else (*host, "cluster.prologue"),
        epilogue=(*host, "cluster.epilogue"),
        target=(str(stage.path), "--submission", str(n)),
        resources=resources,
        log_dir=stage.logs,
        env=environment,
        after=after,
        comment=resources.comment or f"orchestrate {about}",
        task=task,
        folders=(store, *([Path(code)] if code else [])),
    )


def job_name(stage_name: str, stage: StageDir, n: int, nonce: str | None = None) -> str:
    """Readable in squeue, and of one submission alone, so that a lost one can be found by it.

    The nonce tells apart submissions of the same stage in another store or after its folder was
    deleted; the name is kept in the claim.
    """
    nonce = nonce or secrets.token_hex(3)
    return f"{stage_name.replace('/', '.')[:36]}-{stage.path.name.rpartition('-')[2]}-s{n}-{nonce}"


def array_name(whole: str, first: StageDir, n: int, nonce: str | None = None) -> str:
    """The name of an array: that of the stage its jobs are parts of, made one by its first part."""
    return job_name(f"{whole[:30]}.parts", first, n, nonce)


def requests_to_show(plan: Plan, store: Store) -> Iterator[tuple[str, JobRequest | ArrayRequest]]:
    """The jobs a plan would submit, in order; in place of job ids stand stage names.

    Parts are shown as one array; a scheduler that takes only few jobs in one gets several.
    """
    jobs = {stage.name: stage for stage in plan.stages if stage.action in ("run", "resume")}
    parts = {whole.name: [p for p in parts if p.name in jobs] for whole, parts in plan.divided()}
    for planned in jobs.values():
        stage = store.stage_dir(planned.kind, planned.key)
        together = parts.get(planned.part_of or "", [])
        after = _stand_ins(planned, jobs)
        if len(together) < 2:
            name = job_name(planned.name, stage, stage.next_number(), nonce="new")
            yield planned.name, _to_show(planned, name, store, after)
        elif planned is together[0]:
            name = array_name(str(planned.part_of), stage, stage.next_number(), nonce="new")
            tasks = (_to_show(p, name, store, after, p.part) for p in together)
            array = ArrayRequest(folder=store.array_dir(name), tasks=tuple(tasks))
            yield pattern(str(planned.part_of)), array


def _stand_ins(planned: PlannedStage, jobs: Mapping[str, PlannedStage]) -> tuple[JobHandle, ...]:
    """Handles of jobs that do not exist yet: their names in place of ids."""
    return tuple(
        JobHandle(executor="", cluster="", job_id=f"<{name}>", submitted_at=0.0)
        for name in collapsed([name for name in planned.upstream if name in jobs])
    )


def _to_show(
    planned: PlannedStage,
    name: str,
    store: Store,
    after: tuple[JobHandle, ...],
    task: int | None = None,
) -> JobRequest:
    stage = store.stage_dir(planned.kind, planned.key)
    return job_request(
        name,
        stage,
        stage.next_number(),
        planned.resources,
        str(store.code / "<digest>"),
        after,
        task=task,
        part_of=planned.part_of,
    )
