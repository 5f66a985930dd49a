"""Continues what is broken in a run, and only that, with the code it was submitted with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from cluster.batch import check_text
from cluster.contract import Executor, JobHandle, Phase, Resources, resources_from
from orchestrator.errors import Refused
from orchestrator.explain import Commands
from orchestrator.facts import StoreFacts, to_stderr
from orchestrator.handover import Order, SubmittedRun, hand_over
from orchestrator.pending import NEVER
from orchestrator.sharing import cancel_file_of
from orchestrator.store import StageDir, Store
from recipes.config import PARTS


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a stage is to get otherwise than before; None leaves it. None of it is in its key."""

    nodes: int | None = None
    hours: float | None = None
    partition: str | None = None
    mem_gb: float | None = None

    def made(self) -> dict[str, Any]:
        """The fields of `Resources` that change."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.made().items())


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What was submitted; `left` are stages that stay broken because they were not asked for."""

    run: SubmittedRun
    left: tuple[str, ...] = ()


def resume(
    run_id: str,
    store: Store,
    executor: Executor,
    stage: str | None = None,
    changes: Changes | None = None,
) -> Resumed:
    """Submit again what has no result and no job that will come to one.

    A job that waits for one that is submitted anew here waits for the wrong one: SLURM is about to
    end it, or never will. It is replaced.

    Args:
        run_id: the run, in full.
        store: where it lies.
        executor: the run's.
        stage: only this stage and what it needs.
        changes: for `stage`, or without it for the one stage that broke.

    Raises:
        KeyError: the run has no stage of that name.
        Refused: a stage was never submitted, the changes do not fit, or it is not clear to what
            stage they belong; nothing was changed.
        SchedulerError: a job was refused.
    """
    work = _Resumption(run_id=run_id, store=store)
    wanted = set(work.named) if stage is None else work.with_upstream(stage)
    actions = work.actions(wanted)
    work.refuse_unknown(actions)
    changed = work.changed(stage, actions, changes or Changes())
    orders = [work.order(name, action, changed.get(name)) for name, action in actions.items()]
    replaced = [handle for name in actions if (handle := work.replaced.get(name)) is not None]

    def begin() -> None:
        if replaced:
            executor.cancel(replaced)
        cancel_file_of(run_id, store).unlink(missing_ok=True)

    run = hand_over(orders, work.run, store, executor, begin)
    return Resumed(run=run, left=tuple(work.broken(set(work.named) - wanted)))


@dataclass(kw_only=True)
class _Resumption:
    """What is known of a run that is to go on; the stores and schedulers are asked once."""

    run_id: str
    store: Store
    run: dict[str, Any] = field(init=False)
    named: dict[str, Mapping[str, Any]] = field(init=False)
    facts: StoreFacts = field(init=False)
    replaced: dict[str, JobHandle] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run = self.store.read_run(self.run_id)
        entries = self.store.read_plan(self.run_id)["stages"]
        self.named = {entry["name"]: entry for entry in entries}
        wanted = [(entry["kind"], entry["key"]) for entry in entries]
        self.facts = StoreFacts(self.store, wanted, to_stderr)

    def folder(self, name: str) -> StageDir:
        """The folder of a stage."""
        return self.store.stage_dir(self.named[name]["kind"], self.named[name]["key"])

    def with_upstream(self, stage: str) -> set[str]:
        """The stage and all it needs. Raises KeyError."""
        wanted = {self.named[stage]["name"]}
        for name, entry in reversed(self.named.items()):
            if name in wanted:
                wanted.update(entry["upstream"])
        return wanted

    def actions(self, wanted: Collection[str]) -> dict[str, str]:
        """What is done about each wanted stage; parts that nobody asks for are left out."""
        known = {name: self._fact(name) for name in self.named}
        actions: dict[str, str] = {}
        for name, entry in self.named.items():
            if name not in wanted:
                continue
            fact, whole = known[name], known.get(str(entry.get("part_of")))
            action = "reuse" if fact.result else "attach" if fact.running else "resume"
            if action == "attach" and (handle := self._in_vain(name, actions)):
                self.replaced[name] = handle
                action = "resume"
            elif action == "attach" and self._has_stopped(name):
                action = "resume"
            if whole is None or whole.asks_for(entry["key"]) or action != "resume":
                actions[name] = action
        return actions

    def refuse_unknown(self, actions: Mapping[str, str]) -> None:
        """Refuse stages of which no stage.json says what to do: only submit can write that."""
        unknown = [
            name
            for name, action in actions.items()
            if action == "resume" and self.folder(name).stage() is None
        ]
        if unknown:
            again = Commands.of(self.run_id, self.store).submit()
            was = "was" if len(unknown) == 1 else "were"
            raise Refused(
                f"{', '.join(unknown)} {was} never submitted, or the folder is gone; `{again}`"
                " submits what is missing and goes on with the rest"
            )

    def broken(self, names: Collection[str]) -> list[str]:
        """Of these the stages that neither have a result nor a job."""
        found = {name: self._fact(name) for name in self.named if name in names}
        return [name for name, fact in found.items() if not (fact.result or fact.running)]

    def _fact(self, name: str) -> Any:
        entry = self.named[name]
        return self.facts(entry["kind"], entry["key"])

    def _in_vain(self, name: str, actions: Mapping[str, str]) -> JobHandle | None:
        """The stage's job, where it waits for one that has failed."""
        entry = self.named[name]
        job = self.facts.jobs.get((entry["kind"], entry["key"]))
        if job is None or job[1].phase is not Phase.PENDING:
            return None
        parent_is_new = any(actions.get(upstream) == "resume" for upstream in entry["upstream"])
        return job[0] if parent_is_new or NEVER in job[1].reason else None

    def _has_stopped(self, name: str) -> bool:
        """Whether its job is only being cleaned up: the end is decided, no attempt follows."""
        folder = self.folder(name)
        n = (folder.latest_intent() or {"n": 0})["n"]
        mine = [a for a in folder.attempt_records() if str(a["id"]).startswith(f"s{n:03d}r")]
        return bool(mine) and (mine[-1]["exit"] or {}).get("decision") == "stop"

    def changed(
        self, stage: str | None, actions: Mapping[str, str], changes: Changes
    ) -> dict[str, Resources]:
        """The resources of the stages that the changes are for, which are checked."""
        if not changes.made():
            return {}
        name = stage or self._the_broken_one(actions, changes)
        commands = Commands.of(self.run_id, self.store)
        if actions[name] == "attach":
            raise Refused(
                f"{name} has a job that waits or runs, and a job does not change on its way:"
                f" first `{commands.cancel(name)}`"
            )
        if actions[name] == "reuse":
            raise Refused(f"{name} is finished: there is nothing to continue with {changes}")
        if changes.partition is not None:
            check_text("--partition", changes.partition)
        parts = [part for part, entry in self.named.items() if entry.get("part_of") == name]
        found = {}
        for one in (name, *(part for part in parts if actions.get(part) == "resume")):
            before = self.resources(one)
            found[one] = replace(before, **changes.made())
            if found[one].world_size != before.world_size:
                self._check_batch(one, found[one])
        return found

    def _the_broken_one(self, actions: Mapping[str, str], changes: Changes) -> str:
        roots = [
            name
            for name, action in actions.items()
            if action == "resume"
            and not self.named[name].get("part_of")
            and not any(self._broken_upstream(up, actions) for up in self.named[name]["upstream"])
        ]
        if len(roots) == 1:
            return roots[0]
        if not roots:
            raise Refused(f"nothing is broken in this run: nothing is to go on with {changes}")
        raise Refused(
            f"several stages are to go on: {', '.join(roots)}; name the one that is to have"
            f" {changes} with --stage"
        )

    def _broken_upstream(self, name: str, actions: Mapping[str, str]) -> bool:
        """Parts break with their stage: they are no cause of their own."""
        return actions.get(name) == "resume" and not self.named[name].get("part_of")

    def _check_batch(self, name: str, resources: Resources) -> None:
        """The global batch must still be shared out evenly, as `plan` demands it."""
        from orchestrator.schema import config_class

        spec = self.folder(name).stage() or {}
        config = config_class(self.named[name]["kind"]).model_validate(spec.get("config", {}))
        if getattr(config, "sync_batch_norm", False) and self.folder(name).has_committed():
            raise Refused(
                f"{name} has sync_batch_norm: what it learns depends on the number of ranks, so"
                f" its checkpoints go on with the {self.resources(name).world_size} they were"
                " made with"
            )
        accumulation = getattr(config, "accumulation", None)
        if accumulation is None:
            return
        try:
            accumulation(resources.world_size)
        except ValueError as error:
            ranks = f"{resources.nodes} nodes x {resources.tasks_per_node} ranks"
            fits = _fitting(accumulation, resources)
            raise Refused(f"{name} with {ranks}: {error}{fits}") from None

    def resources(self, name: str) -> Resources:
        """What the stage asked for last in this run, with the memory it has come to."""
        entry, folder = self.named[name], self.folder(name)
        submission, values = folder.latest_submission(), dict(entry["resources"])
        since = float(self.run.get("submitted_at", 0.0))
        claim = folder.intent(submission.n) if submission else None
        mine = submission is not None and submission.run_id == self.run_id
        if submission is not None and mine and claim and float(claim["at"]) >= since:
            values = dict(submission.resources)  # an earlier `resume` may have changed them
        resources = resources_from(values)
        grown = [one["exit"].get("mem_gb") for one in self.attempts[name] if one["exit"]]
        if resources.mem_gb is not None:
            resources = replace(resources, mem_gb=max([resources.mem_gb, *filter(None, grown)]))
        return resources

    @cached_property
    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        """Of each stage the attempts since the run was submitted last."""
        since = float(self.run.get("submitted_at", 0.0))
        return {
            name: [one for one in self.folder(name).attempt_records() if _began(one) >= since]
            for name in self.named
        }

    def order(self, name: str, action: str, resources: Resources | None) -> Order:
        """What is to be done about a stage, with these resources or those it had."""
        entry, folder = self.named[name], self.folder(name)
        return Order(
            name=name,
            key=entry["key"],
            stage=folder,
            upstream=tuple(entry["upstream"]),
            resources=resources or self.resources(name),
            action=action,
            reason=self._reason(name, action),
            policy=entry.get("policy", {}),
            n=self.facts.numbers[entry["kind"], entry["key"]],
            spec=self._spec(name),
            part_of=entry.get("part_of"),
            number=entry.get("part") or 0,
        )

    def _reason(self, name: str, action: str) -> str:
        if action == "attach":
            return f"submitted before: {self._fact(name).detail}"
        if action == "reuse":
            return "finished"
        step = self.folder(name).committed_step()
        return f"continues from step {step}" if step else "from the beginning"

    def _spec(self, name: str) -> dict[str, Any] | None:
        """What stage.json is to say where it merges parts: another run may have other ones.

        In this run's plan it may have none, because then it was at work for the other one.
        """
        entry, spec = self.named[name], self.folder(name).stage()
        if spec is None or PARTS not in spec["inputs"]:
            return None
        parts = []
        for ref in entry["inputs"].get(PARTS, ()):
            part, _, artifact = ref.rpartition(".")
            common = {"ref": ref, "artifact": artifact, "kind": "part"}
            found = self.named[part]
            parts.append({**common, "stage": found["stage"], "key": found["key"]})
        return {**spec, "inputs": {**spec["inputs"], PARTS: parts}}


def _began(attempt: Mapping[str, Any]) -> float:
    return float((attempt["start"] or {}).get("started_at") or 0.0)


def _fitting(accumulation: Any, resources: Resources, most: int = 128) -> str:
    """The numbers of nodes that would do, with as many ranks on each as now."""
    fits: Sequence[str] = [
        str(nodes) for nodes in range(1, most + 1) if _fits(accumulation, nodes, resources)
    ]
    return f"; --nodes may be {', '.join(fits)}" if fits else ""


def _fits(accumulation: Any, nodes: int, resources: Resources) -> bool:
    try:
        accumulation(nodes * resources.tasks_per_node)
    except ValueError:
        return False
    return True
