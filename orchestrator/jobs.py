"""The job of one submission of a stage: command, environment, name; the same shown or submitted."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator

from cluster.contract import JobHandle, JobRequest, Resources
from orchestrator.plan import Plan
from orchestrator.store import StageDir, Store

# Variables of the submitting shell that a job receives: switches of ours, never credentials.
_PASSED_ON = ("ORCHESTRATE_FAULT", "ORCHESTRATE_FAULT_RANK", "ORCHESTRATE_INPUT_WAIT_SECONDS")


def job_request(
    name: str,
    stage: StageDir,
    n: int,
    resources: Resources,
    code: str | None,
    after: tuple[JobHandle, ...],
) -> JobRequest:
    """The job of one submission of a stage; the same whether it is submitted or only shown."""
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
    python = (sys.executable, "-P", "-m")
    target = (str(stage.path), "--submission", str(n))
    return JobRequest(
        name=name,
        argv=(*python, "orchestrator.entry", *target),
        epilogue=(*python, "cluster.epilogue", *target),
        resources=resources,
        log_dir=stage.logs,
        env=environment,
        after=after,
        comment=f"orchestrate {stage.path.name}",
    )


def job_name(stage_name: str, stage: StageDir, n: int, nonce: str | None = None) -> str:
    """Readable in squeue, and of one submission alone, so that a lost one can be found by it.

    The nonce tells apart submissions of the same stage in another store or after its folder was
    deleted; the name is kept in the claim.
    """
    nonce = nonce or secrets.token_hex(3)
    return f"{stage_name.replace('/', '.')[:36]}-{stage.path.name.rpartition('-')[2]}-s{n}-{nonce}"


def requests_to_show(plan: Plan, store: Store) -> Iterator[tuple[str, JobRequest]]:
    """The jobs a plan would submit, in order; in place of job ids stand stage names."""
    jobs = {stage.name for stage in plan.stages if stage.action in ("run", "resume")}
    for planned in plan.stages:
        if planned.name not in jobs:
            continue
        stage = store.stage_dir(planned.kind, planned.key)
        after = tuple(
            JobHandle(executor="", cluster="", job_id=f"<{name}>", submitted_at=0.0)
            for name in planned.upstream
            if name in jobs
        )
        n, code = stage.next_number(), str(store.code / "<digest>")
        name = job_name(planned.name, stage, n, nonce="new")
        yield planned.name, job_request(name, stage, n, planned.resources, code, after)
