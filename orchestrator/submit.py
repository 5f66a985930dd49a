"""What submit does: the orders of a plan, and the record of the run that they make."""

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
from cluster.contract import Executor, SchedulerError
from cluster.patience import Patience, answered
from cluster.transport import Transport
from orchestrator.facts import StoreFacts, to_stderr
from orchestrator.handover import Order, SubmittedRun, SubmittedStage, hand_over
from orchestrator.plan import Plan, PlannedStage, StageFacts, decide, load_recipe, make_plan
from orchestrator.schema import Recipe
from orchestrator.store import SCHEMA_VERSION, Store
from tracking.redact import redacted, redacted_words

__all__ = [
    "Prepared",
    "SubmittedRun",
    "SubmittedStage",
    "executor_for",
    "prepare",
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
    transport: Transport | None = None


def prepare(
    recipe_path: Path, overrides: Sequence[str], store: Store, *, patient: bool = False
) -> Prepared:
    """Compose, validate and plan; contacts the scheduler for what runs, writes nothing.

    Args:
        recipe_path: the recipe.
        overrides: in Hydra's grammar.
        store: what is known of its stages.
        patient: whether to wait for a scheduler that is away, as who submits does.

    Raises:
        RecipeErrors: all faults of the recipe together.
        SchedulerError: the scheduler is out of reach.
    """
    from cluster.executors import make
    from orchestrator.external import external_stages, registered_encoders
    from orchestrator.site_checks import check_files, gpu_request
    from orchestrator.transports import carried_by, transport_of

    recipe = load_recipe(recipe_path, overrides)
    check_files(recipe)
    executor = make(recipe.cluster.executor)
    gpus = _has_gpus(executor.name)
    # Keys do not depend on what exists: planned once for them, then decided with one query.
    bare = make_plan(
        recipe,
        lambda kind, key: StageFacts(),
        has_gpus=gpus,
        gpu_request=gpu_request(executor, store.root),
        external=external_stages(store),
        registered=registered_encoders(store, recipe.tracking.uri),
    )
    wanted = [(stage.kind, stage.key) for stage in bare.stages]
    patience = Patience(say=to_stderr) if patient else Patience(seconds=0.0)
    say = to_stderr if patient else None
    facts = answered(lambda: StoreFacts(store, wanted, say), patience)
    plan = decide(bare, facts)
    transport = transport_of(plan, executor, store.root)
    return Prepared(
        recipe=recipe,
        plan=carried_by(plan, transport),
        executor_name=executor.name,
        executor=executor,
        facts=facts,
        transport=transport,
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
        Refused: a job that this site will never start; nothing was submitted.
        SchedulerError: a job was refused, and what was submitted before it was taken back; or
            nobody answered, and the next submission goes on from there.
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
        "argv": redacted_words(argv),
        "user": getpass.getuser(),
        "host": socket.gethostname(),
        "executor": prepared.executor_name,
        "tracking": _tracking_choice(prepared, store),
        "code": dict(code),
        "versions": _versions(),
    }
    shown = redacted(recipe.resolved())  # for people: jobs read stage.json
    # The same text as that of SafeDumper, ten times as fast: a hundred stages took a second.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    fsio.write_text(folder / "recipe.yaml", yaml.dump(shown, Dumper=dumper, sort_keys=False))
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
    return {
        "enabled": spec.enabled,
        "mode": spec.mode,
        "uri": uri,
        "experiment": experiment,
        "registered_model": spec.registered_model,
        "system_metrics": spec.system_metrics,
    }


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
