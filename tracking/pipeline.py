"""The parent run of a pipeline in MLflow: made once, whoever comes first, and kept up to date."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import fsio
from tracking import artifacts, lineage, recorder
from tracking.backend import TrackingError, artifact_root
from tracking.lease import Lease, describe_holder
from tracking.lineage import Node
from tracking.points import Point, metric_name
from tracking.redact import redacted
from tracking.stagefiles import StageFiles, State, Target
from tracking.views import describe_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LEASE = ".mlflow-lease"
_PATIENCE_SECONDS = 60.0
_STOPPED = frozenset({"failed", "cancelled", "lost", "blocked"})


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A pipeline's run in MLflow."""

    experiment_id: str
    run_id: str


def ensure_parent(client: MlflowClient, target: Target) -> Parent:
    """The parent run of a pipeline; two stages that start at once make one.

    Raises:
        TrackingError: another process has been making it for a minute.
    """
    known = _recorded(client, target)
    if known is not None:
        return known
    with _lease(target.run_dir):
        known = _recorded(client, target)
        if known is not None:
            return known
        folder = artifact_root(target.uri, target.store_root)
        experiment_id = recorder.ensure_experiment(client, target.experiment, folder)
        describe_experiment(client, experiment_id)
        run = fsio.read_json_or_none(target.run_dir / "run.json") or {}
        run_id = recorder.ensure_run(
            client,
            experiment_id,
            name=target.run_name,
            identity={
                recorder.TAG_RUN: target.run_id,
                recorder.TAG_ROLE: "pipeline",
                recorder.TAG_ORIGIN: recorder.origin(target.run_dir),
            },
            tags=_tags(run, target),
            started_at=run.get("created_at"),
        )
        record = {"experiment_id": experiment_id, "parent_run_id": run_id}
        fsio.write_json(
            target.run_dir / "mlflow.json",
            {"schema_version": 1, "uri": target.uri, "created_at": time.time(), **record},
        )
        return Parent(experiment_id=experiment_id, run_id=run_id)


def _recorded(client: MlflowClient, target: Target) -> Parent | None:
    record = fsio.read_json_or_none(target.run_dir / "mlflow.json") or {}
    if record.get("uri") != target.uri:
        return None
    parent = Parent(experiment_id=record["experiment_id"], run_id=record["parent_run_id"])
    return parent if recorder.is_active(client, parent.run_id) else None


def _lease(run_dir: Path) -> Lease:
    lease = Lease.acquire(run_dir / _LEASE, patience_seconds=_PATIENCE_SECONDS)
    if lease is None:
        raise TrackingError(
            f"{run_dir}: {describe_holder(run_dir / _LEASE)} is busy with this run in MLflow; "
            f"it will be tried again"
        )
    return lease


def _tags(run: Mapping[str, Any], target: Target) -> dict[str, str]:
    return {
        "mlflow.user": run.get("user", ""),
        "mlflow.source.name": "orchestrate",
        "mlflow.source.type": "JOB",
        "orchestrate.recipe": run.get("recipe", ""),
        "orchestrate.executor": run.get("executor", ""),
        "orchestrate.host": run.get("host", ""),
        "orchestrate.run_dir": str(target.run_dir),
        "orchestrate.code_version": str((run.get("code") or {}).get("version") or ""),
        **{f"version.{name}": text for name, text in run.get("versions", {}).items()},
    }


def _log_recipe(client: MlflowClient, run_id: str, run_dir: Path) -> None:
    """The resolved recipe as an artifact, its secrets hidden."""
    import yaml

    path = run_dir / "recipe.yaml"
    if path.is_file():
        recipe = redacted(yaml.safe_load(path.read_text(encoding="utf-8")))
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        artifacts.log_text(client, run_id, text, "recipe.yaml")


def _log_environment(client: MlflowClient, run_id: str, run: Mapping[str, Any]) -> None:
    """With what the run was submitted: the command, versions and code, for people to read."""
    names = ("argv", "user", "host", "executor", "code", "versions")
    shown = redacted({name: run[name] for name in names if name in run})
    artifacts.log_text(client, run_id, fsio.to_json(shown), "environment.json")


def refresh_parent(
    client: MlflowClient,
    target: Target,
    states: Mapping[str, State] | None = None,
    pages: Mapping[str, str] | None = None,
) -> str:
    """Write the stages' states, results and the graph into the parent run; returns its status.

    `pages` are further texts to keep with it, by the name of their file.

    Reading the stages and writing their sum happen under one lease, so that of two stages that end
    together the later one sees both.
    """
    parent = ensure_parent(client, target)
    if not (target.run_dir / "plan.json").is_file():
        return "RUNNING"
    with _lease(target.run_dir):
        nodes = lineage.read_pipeline(target.run_dir, states)
        note = f"{lineage.as_markdown(nodes, target.uri)}\n\nFolder: `{target.run_dir}`"
        run = fsio.read_json_or_none(target.run_dir / "run.json") or {}
        tags = {**_tags(run, target), "mlflow.note.content": note}
        recorder.set_tags(client, parent.run_id, tags)
        _log_recipe(client, parent.run_id, target.run_dir)
        _log_environment(client, parent.run_id, run)
        for name, text in {"pipeline.svg": lineage.as_svg(nodes), **(pages or {})}.items():
            artifacts.log_text(client, parent.run_id, text, name)
        recorder.log_points(client, parent.run_id, _results(nodes))
        status = pipeline_status(nodes)
        recorder.set_status(client, parent.run_id, status, _ended_at(nodes))
    return status


def _results(nodes: Sequence[Node]) -> list[Point]:
    """The telling numbers of every stage, named `<stage>/<metric>`; the same each time."""
    return [
        Point(
            metric=metric_name(f"{node.name}/{name}"),
            value=float(value),
            step=0,
            time_ms=round((_finished(node) or 0.0) * 1000),
            attempt="",
        )
        for node in nodes
        for name, value in lineage.key_metrics(node.metrics).items()
    ]


def _finished(node: Node) -> float | None:
    result = fsio.read_json_or_none(node.folder / "result.json") or {}
    return recorder.seconds(result.get("finished_at"))


def _ended_at(nodes: Sequence[Node]) -> float | None:
    moments = (_finished(node) or StageFiles(node.folder).last_moment() for node in nodes)
    return max((moment for moment in moments if moment is not None), default=None)


def pipeline_status(nodes: Sequence[Node]) -> recorder.RunStatus:
    """MLflow status of a pipeline: running as long as a stage is, then the worst that came out.

    Stages behind a failed or cancelled one will not start and do not keep the pipeline running.
    """
    stopped: set[str] = set()
    moving = False
    for node in nodes:
        behind_one = not node.attempts and bool(stopped & set(node.upstream))
        if node.state.name == "succeeded":
            continue
        if behind_one or node.state.name in _STOPPED:
            stopped.add(node.name)
        else:
            moving = True
    if moving:
        return "RUNNING"
    names = {node.state.name for node in nodes}
    if names & {"failed", "lost"}:
        return "FAILED"
    return "KILLED" if stopped else "FINISHED"
