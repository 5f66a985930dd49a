"""Pure: what a job on compute nodes has found, as checks with advice and as a site profile."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.site import SiteProfile
from orchestrator.checkup import Check
from orchestrator.node_findings import LOOKS, Seen, many, works


def judge(seen: Seen) -> list[Check]:
    """One check for each thing that was looked at, in the order in which it is told."""
    return [*_job(seen), *(check for look in LOOKS for check in look(seen))]


def profile_of(seen: Seen, now: float) -> SiteProfile:
    """What later submissions use of it."""
    asked = seen.resources
    all_seen = {rank["gpus"].get("seen") for rank in seen.ranks if "gpus" in rank}
    given = bool(asked.gpus_per_node) and all_seen and min(all_seen - {None}, default=0) > 0
    hosts = sorted({str(rank["host"]) for rank in seen.ranks})
    return SiteProfile(
        cluster=seen.cluster,
        checked_at=now,
        nodes=tuple(hosts),
        scontrol_on_nodes=works(seen, "scontrol"),
        sbatch_on_nodes=works(seen, "sbatch"),
        gpu_request=asked.gpu_request if given else None,
    )


def _job(seen: Seen) -> Iterator[Check]:
    asked = seen.resources
    shape = f"{many(asked.nodes, 'node')} x {many(asked.tasks_per_node, 'task')}"
    found = f"{seen.job_id}: {shape}"
    missing = asked.world_size - len(seen.ranks)
    stuck = [
        f"rank {rank['rank']} on {rank['host']} ended in `{rank['at_work_on']}`"
        for rank in seen.ranks
        if not rank.get("done")
    ]
    if missing:
        stuck.insert(0, f"{missing} of {asked.world_size} ranks never began")
    if stuck:
        advice = f"read {seen.logs}"
        yield Check(name="job", state="failed", found=f"{found}: {'; '.join(stuck)}", advice=advice)
        return
    hosts = ", ".join(dict.fromkeys(str(rank["host"]) for rank in seen.ranks))
    waited = f", began after {seen.waited_seconds:.0f} s" if seen.waited_seconds else ""
    yield Check(name="job", state="ok", found=f"{found}, on {hosts}{waited}")
