"""How a stage's next attempt comes about: the same job, requeued, or a successor that waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster import successor
from cluster.doctor import SlurmFacts
from cluster.inside import (
    Changes,
    Origin,
    dependents,
    downstream,
    megabytes,
    scontrol,
    wait_instead_for,
)
from cluster.site import SiteProfile

_REQUEUED_ALREADY = "pending execution"  # "Job is pending execution", 22.05 to 25.05
_SHORT_KILL_WAIT_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Transport:
    """What carries a stage from one attempt to the next, and why that was chosen."""

    name: Literal["requeue", "successor"]
    why: str

    def __str__(self) -> str:
        how = "requeue in place" if self.name == "requeue" else "a successor job"
        return f"{how} ({self.why})"


def choose_transport(
    facts: SlurmFacts | None,
    profile: SiteProfile | None,
    wanted: Literal["auto", "requeue", "successor"] = "auto",
) -> Transport:
    """Which transport the jobs of a submission get; pure.

    A requeue keeps the job, its place in the dependencies of others and its logs, so it is taken
    wherever jobs can ask for it: SLURM grants it to jobs submitted with `--requeue` whatever
    PreemptMode and JobRequeue say. It has to be asked for before the job is killed, which a
    successor need not.

    Args:
        facts: what the controller says; None where it could not be asked.
        profile: what a job found on the nodes; None where none has looked.
        wanted: what the recipe asks for in `cluster.transport`.
    """
    if wanted != "auto":
        return Transport(name=wanted, why=f"cluster.transport={wanted}")
    can_submit = profile is None or profile.sbatch_on_nodes is not False
    if profile is not None and profile.scontrol_on_nodes is False:
        if can_submit:
            return Transport(name="successor", why="scontrol does not work on the nodes")
        why = "neither scontrol nor sbatch works on the nodes: what SLURM does not requeue by"
        return Transport(name="requeue", why=f"{why} itself is continued by `orchestrate resume`")
    if facts is None:
        return Transport(name="requeue", why="no scheduler was asked")
    settings = _settings(facts)
    if can_submit and _killed_at_once(facts):
        return Transport(name="successor", why=f"{settings}: too short to ask for a requeue")
    return Transport(name="requeue", why=settings)


def _killed_at_once(facts: SlurmFacts) -> bool:
    """Whether preemption may end a job before its script can have asked for a requeue."""
    short = (facts.kill_wait_seconds or 0) < _SHORT_KILL_WAIT_SECONDS
    known = facts.kill_wait_seconds is not None
    cancels = any("CANCEL" in mode for mode in facts.preempt_modes)
    return known and short and cancels and not facts.grace_seconds


def _settings(facts: SlurmFacts) -> str:
    parts = [f"PreemptMode={'|'.join(sorted(facts.preempt_modes))}"]
    if facts.kill_wait_seconds is not None:
        parts.append(f"KillWait {facts.kill_wait_seconds} s")
    if facts.grace_seconds:
        parts.append(f"GraceTime {facts.grace_seconds} s")
    return ", ".join(parts)


def go_on(origin: Origin, changes: Changes | None = None) -> str | None:
    """See to another attempt of the stage; what SLURM said where it refused, else None.

    A successor that the attempt queued at its start goes on by itself and is never joined by a
    requeue. Where a requeue is refused and nothing is queued, a successor is queued now.
    """
    changes = changes or Changes()
    queued = successor.recorded(origin, origin.number + 1)
    if queued is not None:
        if changes:
            successor.replace_by(origin, queued, changes)
        return None
    done = scontrol("requeue", origin.job_id)
    if done.returncode == 0 or _REQUEUED_ALREADY in done.stderr:
        change_in_place(origin, changes)
        return None
    refusal = done.stderr.strip() or f"exit {done.returncode}"
    problem = successor.queue(origin, changes=changes, why=f"requeue refused: {refusal}")
    queued = successor.recorded(origin, origin.number + 1)
    if problem is not None or queued is None:
        return f"{refusal}; a successor was refused too: {problem}"
    wait_instead_for(origin, queued.job_id)
    return None


def give_up(origin: Origin, *, failed: bool) -> None:
    """There will be no other attempt: take back what was queued for one.

    Where the stage failed for good, jobs that wait for the end of this one, however it ends, would
    start only to find that: they are cancelled, and what waits for them.
    """
    queued = successor.recorded(origin, origin.number + 1)
    if queued is None:
        return
    unwanted = [queued.job_id]
    if failed:
        ours = downstream(dependents(origin.store), [origin.job_id, queued.job_id])
        unwanted += [one.job_id for one in ours]
    successor.take_back(origin, queued, unwanted)


def change_in_place(origin: Origin, changes: Changes) -> None:
    """Change the job, which has just been requeued, and may be changed from then on.

    SLURM refuses that while a job runs, and takes it as soon as the requeue is accepted, although
    the script still runs (measured). It also takes what can never be satisfied, and the job waits
    for ever then: so it is asked first whether such a job could be.
    """
    if not changes:
        return
    words = []
    if changes.exclude:
        words.append(f"ExcNodeList={','.join(changes.exclude)}")
    if changes.mem_gb is not None:
        words.append(f"MinMemoryNode={megabytes(changes.mem_gb)}")
    refused = successor.refusal_of(origin, changes)
    if refused is None:
        done = scontrol("update", f"JobId={origin.job_id}", *words)
        refused = None if done.returncode == 0 else done.stderr.strip()
    if refused is not None:
        print(f"orchestrate: {' '.join(words)} is not possible: {refused}", flush=True)
