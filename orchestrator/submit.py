"""What submit, resume and cancel do: the orders of a plan, and the record of the run they make."""

from __future__ import annotations

import getpass
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.contract import Executor, Resources, SchedulerError
from orchestrator.facts import StoreFacts
from orchestrator.handover import Order, SubmittedRun, SubmittedStage, hand_over
from orchestrator.plan import Plan, PlannedStage, StageFacts, decide, load_recipe, make_plan
from orchestrator.schema import Recipe
from orchestrator.store import SCHEMA_VERSION, StageDir, Store
from recipes.config import PARTS

__all__ = [
    "Prepared",
    "SubmittedRun",
    "SubmittedStage",
    "cancel",
    "executor_for",
    "prepare",
    "resume",
    "submit",
]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe composed, validated and planned against what the store and the scheduler know."""

    recipe: Recipe
    plan: Plan
    executor_name: str
    executor: Executor
    facts: StoreFacts


def prepare(recipe_path: Path, overrides: Sequence[str], store: Store) -> Prepared:
    """Compose, validate and plan; contacts the scheduler for what runs, writes nothing.

    Raises:
        RecipeErrors: all faults of the recipe together.
        SchedulerError: the scheduler is out of reach.
    """
    from cluster.executors import make
    from orchestrator.external import external_stages

    recipe = load_recipe(recipe_path, overrides)
    executor = make(recipe.cluster.executor)
    gpus = _has_gpus(executor.name)
    # Keys do not depend on what exists: planned once for them, then decided with one query.
    bare = make_plan(
        recipe, lambda kind, key: StageFacts(), has_gpus=gpus, external=external_stages(store)
    )
    facts = StoreFacts(store, [(stage.kind, stage.key) for stage in bare.stages])
    plan = decide(bare, facts)
    return Prepared(
        recipe=recipe, plan=plan, executor_name=executor.name, executor=executor, facts=facts
    )


def _has_gpus(executor_name: str) -> bool:
    """Whether jobs can get GPUs; where nobody answers, the recipe is taken at its word."""
    from cluster.doctor import has_gpus

    try:
        return has_gpus(executor_name)
    except SchedulerError:
        return True


def submit(
    prepared: Prepared, store: Store, executor: Executor, argv: Sequence[str]
) -> SubmittedRun:
    """Submit what the plan says; submitting the same recipe again reuses, attaches or continues.

    Raises:
        SchedulerError: a job was refused; what was submitted before it stays and is attached to
            by the next submission.
    """
    from cluster.snapshot import take

    plan = prepared.plan
    fsio.make_dir(store.root)
    code = take(store.code, exclude=(store.root,))
    orders = [
        _order(store, stage, prepared.facts.numbers[stage.kind, stage.key]) for stage in plan.stages
    ]
    run = _write_run(prepared, store, argv, asdict(code))
    return hand_over(orders, run, store, executor)


def resume(run_id: str, store: Store, executor: Executor, stage: str | None = None) -> SubmittedRun:
    """Continue only what is broken in a run, with the code it was submitted with.

    Raises:
        KeyError: the run has no stage of that name.
        SchedulerError: a job was refused.
    """
    run, entries = store.read_run(run_id), store.read_plan(run_id)["stages"]
    named = {entry["name"]: entry for entry in entries}
    if stage is not None and stage not in named:
        raise KeyError(stage)
    facts = StoreFacts(store, [(e["kind"], e["key"]) for e in entries])
    wanted = set(named) if stage is None else _with_upstream(stage, entries)
    known = {entry["name"]: facts(entry["kind"], entry["key"]) for entry in entries}
    orders = []
    for entry in entries:
        fact, whole = known[entry["name"]], known.get(entry.get("part_of"))
        action = "reuse" if fact.result else "attach" if fact.running else "resume"
        asked_for = whole is None or whole.asks_for(entry["key"]) or action != "resume"
        if entry["name"] in wanted and asked_for:
            n = facts.numbers[entry["kind"], entry["key"]]
            orders.append(_order_from_plan(store, entry, action, n, named))
    return hand_over(orders, run, store, executor)


def cancel(run_id: str, store: Store, executor: Executor, stage: str | None = None) -> list[str]:
    """Stop a run's stages that are not finished, dependents first; returns their names.

    With `stage`, only that stage, its parts and what depends on it.
    """
    entries = store.read_plan(run_id)["stages"]
    names = {e["name"] for e in entries} if stage is None else _with_downstream(stage, entries)
    cancelled, handles = [], []
    for entry in reversed(entries):
        folder = store.stage_dir(entry["kind"], entry["key"])
        submission = folder.latest_submission()
        if entry["name"] not in names or folder.result() is not None or submission is None:
            continue
        who = {"user": getpass.getuser(), "host": socket.gethostname(), "at": time.time()}
        # Written before the signal: a job that ends of it must not requeue itself.
        fsio.write_json(folder.cancel_file, {"schema_version": SCHEMA_VERSION, **who})
        cancelled.append(entry["name"])
        if submission.handle is not None:
            handles.append(submission.handle)
    executor.cancel(handles)
    return cancelled


def executor_for(run: Mapping[str, Any]) -> Executor:
    """The executor a run was submitted with."""
    from cluster.executors import make

    return make(run["executor"])


def _write_run(
    prepared: Prepared, store: Store, argv: Sequence[str], code: Mapping[str, Any]
) -> dict[str, Any]:
    import yaml

    plan, recipe = prepared.plan, prepared.recipe
    folder = fsio.make_dir(store.run_dir(plan.run_id))
    earlier = fsio.read_json_or_none(folder / "run.json") or {}
    run = {
        "schema_version": SCHEMA_VERSION,
        "run_id": plan.run_id,
        "created_at": earlier.get("created_at", time.time()),
        "submitted_at": time.time(),
        "recipe": recipe.name,
        "argv": list(argv),
        "user": getpass.getuser(),
        "host": socket.gethostname(),
        "executor": prepared.executor_name,
        "tracking": _tracking_choice(prepared, store),
        "code": dict(code),
        "versions": _versions(),
    }
    fsio.write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.resolved(), sort_keys=False))
    record = plan.record()
    for entry, planned in zip(record["stages"], plan.stages, strict=True):
        entry["upstream"] = list(planned.upstream)
        entry["resources"] = asdict(planned.resources)
        entry["policy"] = dict(planned.policy)
    fsio.write_json(folder / "plan.json", {"schema_version": SCHEMA_VERSION, **record})
    fsio.write_json(folder / "run.json", run)
    return run


def _tracking_choice(prepared: Prepared, store: Store) -> dict[str, Any]:
    """Where jobs ship to. Without a server, jobs of a cluster do not ship (SQLite must not be
    shared over a network file system): `orchestrate sync` delivers their records from the login
    node, as it does for all jobs in mode offline.
    """
    spec = prepared.recipe.tracking
    uri = spec.uri
    if uri is None and prepared.executor_name == "local":
        from tracking.server import default_uri

        uri = default_uri(store.root)
    experiment = spec.experiment or prepared.recipe.name
    return {"enabled": spec.enabled, "mode": spec.mode, "uri": uri, "experiment": experiment}


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "deepspeed", "mlflow", "submitit", "hydra-core", "decord"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _order(store: Store, planned: PlannedStage, n: int) -> Order:
    return Order(
        name=planned.name,
        key=planned.key,
        stage=store.stage_dir(planned.kind, planned.key),
        upstream=tuple(planned.upstream),
        resources=planned.resources,
        action=planned.action,
        reason=planned.reason,
        policy=planned.policy,
        n=n,
        spec=planned.record(),
        part_of=planned.part_of,
        number=planned.part or 0,
    )


def _order_from_plan(
    store: Store, entry: Mapping[str, Any], action: str, n: int, named: Mapping[str, Any]
) -> Order:
    values = dict(entry["resources"])
    values["setup"] = tuple(values["setup"])
    return Order(
        name=entry["name"],
        key=entry["key"],
        stage=store.stage_dir(entry["kind"], entry["key"]),
        upstream=tuple(entry["upstream"]),
        resources=Resources(**values),
        action=action,
        reason="",
        policy=entry.get("policy", {}),
        n=n,
        spec=_spec_with_parts(store.stage_dir(entry["kind"], entry["key"]), entry, named),
        part_of=entry.get("part_of"),
        number=entry.get("part") or 0,
    )


def _spec_with_parts(
    stage: StageDir, entry: Mapping[str, Any], named: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What stage.json is to say where it merges parts: another run may have had another number.

    In this run's plan it may have none, because at that time it was at work for the other one.
    """
    spec = stage.stage()
    if spec is None or PARTS not in spec["inputs"]:
        return None
    parts = []
    for ref in entry["inputs"].get(PARTS, ()):
        name, _, artifact = ref.rpartition(".")
        common = {"ref": ref, "artifact": artifact, "kind": "part"}
        parts.append({**common, "stage": named[name]["stage"], "key": named[name]["key"]})
    return {**spec, "inputs": {**spec["inputs"], PARTS: parts}}


def _with_upstream(stage: str, entries: Sequence[Mapping[str, Any]]) -> set[str]:
    wanted = {stage}
    for entry in reversed(entries):
        if entry["name"] in wanted:
            wanted.update(entry["upstream"])
    return wanted


def _with_downstream(stage: str, entries: Sequence[Mapping[str, Any]]) -> set[str]:
    if stage not in {entry["name"] for entry in entries}:
        raise KeyError(stage)
    wanted = {stage, *(entry["name"] for entry in entries if entry.get("part_of") == stage)}
    for entry in entries:
        if wanted & set(entry["upstream"]):
            wanted.add(entry["name"])
    return wanted
