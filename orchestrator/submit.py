"""Walks a plan in order: writes what each stage needs, claims it, hands it to the executor."""

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
from cluster.contract import Executor, JobHandle, Resources, SchedulerError
from orchestrator.facts import StoreFacts, live_handle
from orchestrator.jobs import job_name, job_request
from orchestrator.plan import Plan, PlannedStage, StageFacts, decide, load_recipe, make_plan
from orchestrator.schema import Recipe
from orchestrator.store import SCHEMA_VERSION, StageDir, Store, Submission


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe composed, validated and planned against what the store and the scheduler know."""

    recipe: Recipe
    plan: Plan
    executor_name: str
    executor: Executor
    facts: StoreFacts


@dataclass(frozen=True, kw_only=True)
class SubmittedStage:
    """What was done about one stage; `after` are the stages its job waits for."""

    name: str
    action: str
    job_id: str
    reason: str
    key: str
    after: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SubmittedRun:
    """One submission of a run: its stages in order and the handles of the jobs that are in."""

    run_id: str
    stages: tuple[SubmittedStage, ...]
    handles: Mapping[str, JobHandle]


@dataclass(frozen=True, kw_only=True)
class _Order:
    """One stage to see to, from a fresh plan or from the plan.json of a run."""

    name: str
    key: str
    stage: StageDir
    upstream: tuple[str, ...]
    resources: Resources
    action: str
    reason: str
    policy: Mapping[str, Any]
    n: int


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
    for planned, order in zip(plan.stages, orders, strict=True):
        _write_stage(order.stage, planned)
    run = _write_run(prepared, store, argv, asdict(code))
    return _submit_orders(orders, run, store, executor)


def resume(run_id: str, store: Store, executor: Executor, stage: str | None = None) -> SubmittedRun:
    """Continue only what is broken in a run, with the code it was submitted with.

    Raises:
        KeyError: the run has no stage of that name.
        SchedulerError: a job was refused.
    """
    run, plan = store.read_run(run_id), store.read_plan(run_id)
    names = [entry["name"] for entry in plan["stages"]]
    if stage is not None and stage not in names:
        raise KeyError(stage)
    facts = StoreFacts(store, [(e["kind"], e["key"]) for e in plan["stages"]])
    wanted = None if stage is None else _with_upstream(stage, plan["stages"])
    orders = []
    for entry in plan["stages"]:
        if wanted is not None and entry["name"] not in wanted:
            continue
        fact = facts(entry["kind"], entry["key"])
        action = "reuse" if fact.result else "attach" if fact.running else "resume"
        n = facts.numbers[entry["kind"], entry["key"]]
        orders.append(_order_from_plan(store, entry, action, n))
    return _submit_orders(orders, run, store, executor)


def cancel(run_id: str, store: Store, executor: Executor, stage: str | None = None) -> list[str]:
    """Stop a run's stages that are not finished, dependents first; returns their names.

    With `stage`, only that stage and what depends on it.
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


def _submit_orders(
    orders: Sequence[_Order], run: Mapping[str, Any], store: Store, executor: Executor
) -> SubmittedRun:
    handles: dict[str, JobHandle] = {}
    done: list[SubmittedStage] = []
    for order in orders:
        action, handle = order.action, None
        after = tuple(name for name in order.upstream if name in handles)
        if action in ("run", "resume"):
            action, handle = _hand_over(
                order, run, store, executor, tuple(handles[n] for n in after)
            )
        elif action == "attach":
            handle = live_handle(order.stage)
        if handle is not None:
            handles[order.name] = handle
        done.append(
            SubmittedStage(
                name=order.name,
                action=action,
                job_id=handle.job_id if handle else "",
                reason=order.reason,
                key=order.key,
                after=after,
            )
        )
    return SubmittedRun(run_id=run["run_id"], stages=tuple(done), handles=handles)


def _hand_over(
    order: _Order,
    run: Mapping[str, Any],
    store: Store,
    executor: Executor,
    after: tuple[JobHandle, ...],
) -> tuple[str, JobHandle | None]:
    """Claim the stage and submit it, or attach to whoever was first."""
    stage, n = order.stage, order.n
    name = job_name(order.name, stage, n)
    details = {
        "run_id": run["run_id"],
        "stage": order.name,
        "resources": asdict(order.resources),
        "tracking": _tracking(run, order, store),
        "code": run["code"]["path"],
    }
    if not stage.claim(n, name, {**details, "policy": dict(order.policy)}):
        return "attach", _await_handle(stage, n)
    stage.cancel_file.unlink(missing_ok=True)
    fsio.make_dir(stage.logs)
    request = job_request(name, stage, n, order.resources, run["code"]["path"], after)
    record = Submission(
        n=n,
        job_name=name,
        handle=None,
        dependencies=tuple(handle.job_id for handle in after),
        **details,
    )
    try:
        handle = executor.submit(request)
    except SchedulerError:
        stage.record_submission(record)
        raise
    stage.record_submission(Submission(**{**vars(record), "handle": handle}))
    return order.action, handle


def _await_handle(stage: StageDir, n: int, patience_seconds: float = 20.0) -> JobHandle | None:
    """The handle the other submitter records a moment after its claim."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        submission = stage.submission(n)
        if submission is not None:
            return submission.handle
        time.sleep(0.1)
    return None


def _tracking(run: Mapping[str, Any], order: _Order, store: Store) -> dict[str, Any] | None:
    tracking = run["tracking"]
    if not tracking["enabled"]:
        return None
    return {
        "uri": tracking["uri"],
        "experiment": tracking["experiment"],
        "run_id": run["run_id"],
        "run_name": run["run_id"],
        "stage": order.name,
        "store_run_dir": str(store.run_dir(run["run_id"])),
        "code_version": run["code"]["version"],
    }


def _write_stage(stage: StageDir, planned: PlannedStage) -> None:
    """stage.json, once: whoever comes later with the same key finds the same content."""
    fsio.make_dir(stage.path)
    fsio.create_json(stage.stage_file, {"schema_version": SCHEMA_VERSION, **planned.record()})


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
    shared over a network file system): `orchestrate ui` brings their records in on the login node.
    """
    spec = prepared.recipe.tracking
    uri = spec.uri
    if uri is None and prepared.executor_name == "local":
        from tracking.server import default_uri

        uri = default_uri(store.root)
    experiment = spec.experiment or prepared.recipe.name
    return {"enabled": spec.enabled, "uri": uri, "experiment": experiment}


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "deepspeed", "mlflow", "submitit", "hydra-core", "decord"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _order(store: Store, planned: PlannedStage, n: int) -> _Order:
    return _Order(
        name=planned.name,
        key=planned.key,
        stage=store.stage_dir(planned.kind, planned.key),
        upstream=tuple(planned.upstream),
        resources=planned.resources,
        action=planned.action,
        reason=planned.reason,
        policy=planned.policy,
        n=n,
    )


def _order_from_plan(store: Store, entry: Mapping[str, Any], action: str, n: int) -> _Order:
    values = dict(entry["resources"])
    values["setup"] = tuple(values["setup"])
    return _Order(
        name=entry["name"],
        key=entry["key"],
        stage=store.stage_dir(entry["kind"], entry["key"]),
        upstream=tuple(entry["upstream"]),
        resources=Resources(**values),
        action=action,
        reason="",
        policy=entry.get("policy", {}),
        n=n,
    )


def _with_upstream(stage: str, entries: Sequence[Mapping[str, Any]]) -> set[str]:
    wanted = {stage}
    for entry in reversed(entries):
        if entry["name"] in wanted:
            wanted.update(entry["upstream"])
    return wanted


def _with_downstream(stage: str, entries: Sequence[Mapping[str, Any]]) -> set[str]:
    if stage not in {entry["name"] for entry in entries}:
        raise KeyError(stage)
    wanted = {stage}
    for entry in entries:
        if wanted & set(entry["upstream"]):
            wanted.add(entry["name"])
    return wanted
