"""Opens, fills and closes MLflow runs, with explicit ids and never through the fluent API.

Every function may be repeated: what is there already is found by its tags and left as it is.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster import fsio
from tracking.points import Point
from tracking.redact import flatten, redacted, scrub

if TYPE_CHECKING:
    from mlflow import MlflowClient

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]

TAG_RUN = "orchestrate.run_id"
TAG_KEY = "orchestrate.stage_key"
TAG_ROLE = "orchestrate.role"
TAG_ORIGIN = "orchestrate.origin"
_BATCH = 1000  # MLflow's limit for one request
PARAM_LENGTH = 1000
_TAG_LENGTH = 5000  # below the 8000 of MLflow; some databases take less


def ensure_experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """Id of the experiment of that name, created (or restored from the bin) where needed.

    Args:
        client: the server or database.
        name: of the experiment.
        artifacts: folder for the files of its runs; None where the server has a place for them.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if artifacts is not None:
            location = fsio.make_dir(artifacts / fsio.sha256_text(name)[:12]).as_uri()
        try:
            return str(
                client.create_experiment(
                    name,
                    artifact_location=location,
                    # Without it, the UI opens the page for language models, not the run table.
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
            )
        except MlflowException:  # somebody was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Whether the run exists and nobody has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def find_run(client: MlflowClient, experiment_id: str, identity: Mapping[str, str]) -> str | None:
    """The run with these tags; of two, which a request that timed out may make, the first."""
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    found = client.search_runs(
        [experiment_id], query, order_by=["attributes.start_time ASC", "attributes.run_id ASC"]
    )
    for extra in found[1:]:
        if not extra.data.metrics and not extra.data.params:
            client.delete_run(extra.info.run_id)
    return str(found[0].info.run_id) if found else None


def ensure_run(
    client: MlflowClient,
    experiment_id: str,
    *,
    name: str,
    identity: Mapping[str, str],
    tags: Mapping[str, str],
    started_at: float | None = None,
) -> str:
    """Id of the run with the tags `identity`; without one it is created, with `tags` as well."""
    found = find_run(client, experiment_id, identity)
    if found is None:
        run = client.create_run(
            experiment_id,
            start_time=None if started_at is None else round(started_at * 1000),
            tags=clean_tags({**tags, **identity}),
            run_name=name,
        )
        return str(run.info.run_id)
    set_tags(client, found, tags)
    return found


def clean_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as text, secrets hidden, long values cut, empty ones left out."""
    shown = {name: shorten(scrub(str(value)), _TAG_LENGTH) for name, value in tags.items()}
    return {name: value for name, value in shown.items() if value}


def shorten(text: str, length: int) -> str:
    """The text, cut where it is longer than `length`, with a sign that it was."""
    return text if len(text) <= length else text[: length - 1] + "…"


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, Any]) -> None:
    """Set tags in one request."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(*item) for item in clean_tags(tags).items()])


def drop_tags(client: MlflowClient, run_id: str, names: Sequence[str]) -> None:
    """Remove tags that are no longer true."""
    known = client.get_run(run_id).data.tags
    for name in names:
        if name in known:
            client.delete_tag(run_id, name)


def flat_params(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration as MLflow shows it: dotted names, secrets hidden, long values cut."""
    return {name: shorten(text, PARAM_LENGTH) for name, text in flatten(redacted(config))}


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters (`flat_params`) that are not there yet; MLflow cannot change one."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(name, text) for name, text in params.items() if name not in known]
    client.log_batch(run_id, params=new)


def log_points(
    client: MlflowClient,
    run_id: str,
    points: Sequence[Point],
    *,
    model_id: str | None = None,
    dataset: tuple[str, str] | None = None,
) -> None:
    """Log metric values; the same (name, step, time, value) sent again is stored once.

    With a model and a dataset (name, digest), the values also appear on the page of that model.
    """
    from mlflow.entities import Metric

    origin: dict[str, Any] = {"model_id": model_id}
    if dataset is not None:
        origin |= dict(zip(("dataset_name", "dataset_digest"), dataset, strict=True))
    metrics = [
        Metric(one.metric, one.value, one.time_ms, one.step, run_id=run_id, **origin)
        for one in points
    ]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def set_status(
    client: MlflowClient, run_id: str, status: RunStatus, ended_at: float | None = None
) -> None:
    """Set a run's status; an end belongs to FINISHED, FAILED and KILLED only."""
    if status in ("RUNNING", "SCHEDULED"):
        client.update_run(run_id, status=status)
        return
    client.set_terminated(
        run_id, status=status, end_time=None if ended_at is None else round(ended_at * 1000)
    )


def origin(folder: Path) -> str:
    """Tells runs of two stores on one server apart: a digest of where the folder lies."""
    return fsio.sha256_text(str(folder.absolute()))[:16]


def seconds(moment: float | str | None) -> float | None:
    """A recorded moment, Unix seconds or ISO 8601, as Unix seconds."""
    if moment is None or isinstance(moment, int | float):
        return moment
    return datetime.datetime.fromisoformat(moment).timestamp()
