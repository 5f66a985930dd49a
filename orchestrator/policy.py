"""What a recipe says of trying again, and the nodes that the attempts of a run were lost to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, field_validator

from cluster.causes import FINAL, Cause, Retry
from cluster.contract import Resources
from cluster.decision import MAX_STALLED_ATTEMPTS
from cluster.evidence import hosts, partition_size
from cluster.exclusion import admit
from orchestrator.store import StageDir, Store
from recipes.config import Strict

_MEMORY: Cause = "out_of_host_memory"


class RuleSpec(Strict):
    """What is done about one cause; what is left out, docs/retries.md says."""

    retry: Retry | None = Field(
        None, description="free: whenever it comes; counted: while steps are gained; stop: never"
    )
    exclude_node: bool | None = Field(
        None, description="leave out the node it is due to, where one can be named"
    )
    more_memory: bool | None = Field(
        None, description="try again with half as much memory again, twice at most; needs mem_gb"
    )


class PolicySpec(Strict):
    """When a stage is started again by itself, by the cause that ended its last attempt.

    Attempts that count and leave no new committed step stop the stage when there were so many in a
    row; preemption and node failure do not count.
    """

    max_restarts_without_progress: Annotated[int, Field(ge=1)] = MAX_STALLED_ATTEMPTS
    causes: dict[Cause, RuleSpec] = Field(
        {}, description="cause: {retry, exclude_node, more_memory}"
    )

    @field_validator("causes")
    @classmethod
    def _possible(cls, causes: dict[Cause, RuleSpec]) -> dict[Cause, RuleSpec]:
        if final := sorted(FINAL & causes.keys()):
            raise ValueError(f"causes other than {final[0]!r}: what a person has said stands")
        wrong = [cause for cause, rule in causes.items() if rule.more_memory and cause != _MEMORY]
        if wrong:
            raise ValueError(f"more_memory for {_MEMORY} only, not for {wrong[0]}")
        return causes


def combined(stage: PolicySpec, default: PolicySpec) -> dict[str, Any]:
    """A stage's policy over that of the cluster, as plain JSON: what its submission records."""
    own, general = (spec.model_dump(mode="json", exclude_unset=True) for spec in (stage, default))
    below, above = general.get("causes", {}), own.get("causes", {})
    causes = {
        cause: {**below.get(cause, {}), **above.get(cause, {})} for cause in {**below, **above}
    }
    known = {"max_restarts_without_progress": MAX_STALLED_ATTEMPTS, **general, **own}
    return {**known, "causes": causes}


def bad_nodes(run_id: str, store: Store) -> tuple[str, ...]:
    """Nodes that attempts of a run were lost to, in jobs that were submitted for this very run.

    A stage that the run shares with others may have had attempts of theirs. Attempts of before the
    run was submitted last no longer count: whoever submits anew begins with all nodes.
    """
    try:
        entries = store.read_plan(run_id)["stages"]
        since = float(store.read_run(run_id).get("submitted_at", 0.0))
    except FileNotFoundError:
        return ()
    found: list[str] = []
    for entry in entries:
        stage = store.stage_dir(entry["kind"], entry["key"])
        for attempt in stage.attempt_records():
            nodes = (attempt["exit"] or {}).get("exclude") or ()
            claim = _claim_of(stage, str(attempt["id"])) if nodes else {}
            began = float((attempt["start"] or {}).get("started_at") or claim.get("at", 0.0))
            if claim.get("run_id") == run_id and began >= since:
                found += nodes
    return tuple(dict.fromkeys(found))


def _claim_of(stage: StageDir, attempt: str) -> dict[str, Any]:
    """The claim an attempt was submitted with; its id begins with the submission's number."""
    number = attempt.removeprefix("s").partition("r")[0]
    return (stage.intent(int(number)) if number.isdigit() else None) or {}


def without(nodes: Sequence[str], resources: Resources, partition_nodes: int | None) -> Resources:
    """The same resources, but none of these nodes, as far as the partition can do without them.

    Args:
        nodes: what `bad_nodes` found.
        resources: of one job.
        partition_nodes: how many nodes its partition has; None where nobody said.
    """
    named = resources.exclude
    already = hosts(named or "")
    allowed, _ = admit(
        nodes,
        excluded=already,
        by_recipe=already,
        partition_nodes=partition_nodes,
        job_nodes=resources.nodes,
    )
    if not allowed:
        return resources
    return replace(resources, exclude=",".join([*([named] if named else []), *allowed]))


def avoiding(run_id: str, store: Store, resources: Sequence[Resources]) -> list[Resources]:
    """The resources of jobs of a run, without the nodes that it lost attempts to.

    The scheduler is asked for the size of the partitions only where there are such nodes. A job
    that asks for a kind of node keeps them all: how many there are of that kind is not known, and
    sbatch would refuse a job that none are left for.
    """
    nodes = bad_nodes(run_id, store)
    if not nodes:
        return list(resources)
    sizes = {name: partition_size(name) for name in {one.partition for one in resources}}
    return [
        one if _is_choosy(one) else without(nodes, one, sizes[one.partition]) for one in resources
    ]


def _is_choosy(one: Resources) -> bool:
    """Whether not every node of its partition will do."""
    other = {key.replace("_", "-") for key in one.extra} & {"gres", "cluster-constraint", "mincpus"}
    return bool(one.constraint or one.nodelist or one.reservation or one.gpu_type or other)
