"""How the stages of a plan go on after their jobs have ended: asked of the site, put into jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cluster.contract import Executor, SchedulerError
from cluster.doctor import SlurmFacts, slurm_facts
from cluster.site import read_profile
from cluster.transport import Transport, choose_transport
from orchestrator.planned import Plan


def transport_of(plan: Plan, executor: Executor, store: Path) -> Transport | None:
    """What carries the stages of a plan from one attempt to the next; None without SLURM.

    Asked are the controller's settings and those of the partitions that the plan names, and what a
    job has found on the nodes. Where SLURM does not answer here, the plan is shown all the same.
    """
    if executor.name != "slurm":
        return None
    wanted = plan.recipe.cluster.transport
    if wanted != "auto":
        return choose_transport(None, None, wanted)
    facts = _facts(plan)
    return choose_transport(facts, read_profile(store, facts.cluster) if facts else None)


def _facts(plan: Plan) -> SlurmFacts | None:
    named = {stage.resources.partition for stage in plan.stages} - {None}
    try:
        return slurm_facts(",".join(sorted(str(one) for one in named)) or None)
    except SchedulerError:
        return None


def carried_by(plan: Plan, transport: Transport | None) -> Plan:
    """The plan with jobs of that kind."""
    if transport is None or transport.name == "requeue":
        return plan
    stages = (
        replace(stage, resources=replace(stage.resources, requeue=False)) for stage in plan.stages
    )
    return replace(plan, stages=tuple(stages))
