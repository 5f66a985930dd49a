"""Closes a stage's MLflow run: results, encoder, figures, a page for people, the status."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import fsio
from tracking import artifacts, recorder, registry
from tracking.lineage import cell, key_metrics, run_url
from tracking.points import Point, metric_name
from tracking.redact import redacted, scrub
from tracking.shipping import Shipment
from tracking.stagefiles import Attempt, State

_LOG_BYTES = 1_000_000
STATUSES: Mapping[str, recorder.RunStatus] = {
    "running": "RUNNING",
    "succeeded": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
    "lost": "KILLED",
}


def close(shipment: Shipment, state: State) -> None:
    """Write results, figures and status of a stage that has ended or will go on later."""
    result = shipment.files.result()
    if result is not None:
        _log_result(shipment, result)
    attempts = shipment.files.attempts()
    for attempt in attempts:
        _log_failure(shipment, attempt)
    for path in shipment.files.figures():
        _upload(shipment, path)
    for path in shipment.files.job_files():
        _log_job_file(shipment, path)
    tags = {
        "orchestrate.state": state.name,
        "mlflow.note.content": _note(shipment, state, attempts),
    }
    if state.reason:
        tags["orchestrate.reason"] = state.reason
    recorder.set_tags(shipment.client, shipment.run_id, {**shipment.attempt_tags(), **tags})
    outdated = ["orchestrate.progress", *([] if state.reason else ["orchestrate.reason"])]
    recorder.drop_tags(shipment.client, shipment.run_id, outdated)
    ended = recorder.seconds(result["finished_at"]) if result else shipment.files.last_moment()
    shipment.set_status(STATUSES.get(state.name, "SCHEDULED"), ended)
    shipment.delivery.closed = shipment.fingerprint(state)
    shipment.save()


def _log_result(shipment: Shipment, result: Mapping[str, Any]) -> None:
    for name, record in result.get("artifacts", {}).items():
        if record["kind"] == "encoder" and name not in shipment.delivery.models:
            model_id = _log_encoder(shipment, name, record, result)
            if shipment.target.registered_model:
                tags = _encoder_tags(shipment, record, result)
                registry.register(shipment.client, shipment.target.registered_model, model_id, tags)
            shipment.delivery.models[name] = model_id
            shipment.save()
    artifacts.log_datasets(shipment.client, shipment.run_id, shipment.datasets())
    datasets = shipment.datasets()
    models = shipment.known_models() or list(shipment.delivery.models.values())
    points = _result_points(shipment, result)
    telling = {metric_name(name) for name in key_metrics(result.get("metrics", {}))}
    recorder.log_points(
        shipment.client,
        shipment.run_id,
        [point for point in points if point.metric in telling],
        model_id=models[0] if models else None,
        dataset=(datasets[0].name, datasets[0].digest) if datasets else None,
    )
    others = [point for point in points if point.metric not in telling]
    recorder.log_points(shipment.client, shipment.run_id, others)
    text = fsio.to_json(redacted(result))
    artifacts.log_text(shipment.client, shipment.run_id, text, "result.json")
    summary = {f"summary.{k}": v for k, v in result.get("summary", {}).items() if v is not None}
    recorder.set_tags(shipment.client, shipment.run_id, summary)


def _log_encoder(
    shipment: Shipment, name: str, record: Mapping[str, Any], result: Mapping[str, Any]
) -> str:
    path = shipment.files.path / record["path"]
    return artifacts.ensure_model(
        shipment.client,
        shipment.run_id,
        name=f"{shipment.target.stage}-{name}".replace("/", "-"),
        path=path,
        step=int(result.get("steps", 0)),
        params=record.get("meta", {}),
        tags=_encoder_tags(shipment, record, result),
    )


def _encoder_tags(
    shipment: Shipment, record: Mapping[str, Any], result: Mapping[str, Any]
) -> dict[str, str]:
    """What identifies an encoder, on its model and on its registered version."""
    return {
        "sha256": record["sha256"],
        "path": str(shipment.files.path / record["path"]),
        recorder.TAG_KEY: result["key"],
        recorder.TAG_RUN: shipment.target.run_id,
        "orchestrate.stage": shipment.target.stage,
    }


def _result_points(shipment: Shipment, result: Mapping[str, Any]) -> list[Point]:
    """The final numbers.

    One that was also logged during the run takes that point's time: MLflow then stores it once.
    """
    step = int(result.get("steps", 0))
    finished = round((recorder.seconds(result.get("finished_at")) or 0.0) * 1000)
    points = []
    for name, value in sorted(result.get("metrics", {}).items()):
        if not isinstance(value, int | float):
            continue
        key = metric_name(name)
        history = shipment.client.get_metric_history(shipment.run_id, key)
        times = [one.timestamp for one in history if (one.step, one.value) == (step, value)]
        points.append(
            Point(
                metric=key,
                value=float(value),
                step=step,
                time_ms=times[0] if times else finished,
                attempt=str(result.get("attempt", "")),
            )
        )
    return points


def _log_failure(shipment: Shipment, attempt: Attempt) -> None:
    """What the ranks of an attempt say of its end."""
    texts = [
        f"rank {one.get('rank')} on {one.get('host')}: {one.get('cause')}: {one.get('message')}"
        f"\n{one.get('traceback', '')}"
        for one in attempt.failures
    ]
    name, text = f"failure-{attempt.id}.txt", "\n\n".join(texts)
    digest = fsio.sha256_text(text)
    if not texts or shipment.delivery.files.get(name) == digest:
        return
    artifacts.log_text(shipment.client, shipment.run_id, text, name)
    shipment.delivery.files[name] = digest
    shipment.save()


def _upload(shipment: Shipment, path: Path) -> None:
    name = str(path.relative_to(shipment.files.path))
    digest = fsio.sha256_file(path)
    if shipment.delivery.files.get(name) == digest:
        return
    folder = str(Path(name).parent).removeprefix("outputs").strip("/.")
    artifacts.log_file(shipment.client, shipment.run_id, path, folder or None)
    if shipment.files.stage().get("kind") == "report":
        artifacts.log_file(shipment.client, shipment.delivery.parent_run_id, path, "report")
    shipment.delivery.files[name] = digest
    shipment.save()


def _log_job_file(shipment: Shipment, path: Path) -> None:
    """A script or a log of a job, secrets hidden; of a long one the end, which says most."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _LOG_BYTES))
        text = stream.read().decode(errors="replace").replace("\0", "")
    if not text.strip():
        return
    if size > _LOG_BYTES:
        text = f"... {size - _LOG_BYTES} bytes before this are in {path}\n{text}"
    name, digest = f"jobs/{path.name.lstrip('.')}", fsio.sha256_text(text)
    if shipment.delivery.files.get(name) != digest:
        artifacts.log_text(shipment.client, shipment.run_id, text, name)
        shipment.delivery.files[name] = digest
        shipment.save()


def _note(shipment: Shipment, state: State, attempts: list[Attempt]) -> str:
    """What a person reads on the run's page: state, where it came from, its attempts."""
    lines = [f"**{state.name}**" + (f": {cell(state.reason, 400)}" if state.reason else "")]
    links = [
        f"[{one.ref}]({run_url(one.tracking['experiment_id'], run_id)})"
        for one in shipment.files.upstream()
        if (run_id := one.mlflow_run_id(shipment.target.uri)) is not None
    ]
    if links:  # in the first line, because the UI folds all but a few
        lines[0] += f" · takes from {', '.join(links)}"
    lines += ["", "| attempt | job | hosts | ended | step |", "|---|---|---|---|---|"]
    for attempt in attempts:
        end, start = attempt.end, attempt.start
        ended = end.get("outcome") or attempt.exit.get("reason") or "-"
        cells = [attempt.id, start.get("job_id", ""), start.get("hosts", ""), ended]
        cells.append(end.get("step", ""))
        lines.append("| " + " | ".join(cell(scrub(str(one))) or "-" for one in cells) + " |")
    return "\n".join([*lines, "", f"Folder: `{shipment.files.path}`"])
