"""Ready-made views of an experiment's run table, and its description with links to them.

MLflow keeps the columns of a table in the browser of each person, who begins with none of ours. A
view that somebody shares is a tag of the experiment, which a link opens; these are such tags.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "mlflow.sharedViewState."
_NOTE = "mlflow.note.content"
# Name, what it shows, the filter, the order, and the columns behind name, age and duration. Ordered
# by age, the UI folds stages under their pipeline, even where a filter leaves that out.
_VIEWS: Sequence[tuple[str, str, str, str, Sequence[str]]] = (
    (
        "pipelines",
        "one row a pipeline run; its stages unfold",
        "tags.`orchestrate.role` = 'pipeline'",
        "attributes.start_time",
        ("tags.`orchestrate.run_id`", "tags.`mlflow.user`", "tags.`orchestrate.code_version`"),
    ),
    (
        "stages",
        "one row a stage, with its job, attempts and progress",
        "tags.`orchestrate.role` = 'stage'",
        "tags.`orchestrate.run_id`",
        (
            *("tags.`orchestrate.run_id`", "tags.`orchestrate.kind`", "tags.`orchestrate.state`"),
            *("tags.`orchestrate.job_id`", "tags.`orchestrate.attempts`"),
            *("tags.`orchestrate.progress`", "tags.`orchestrate.reason`"),
        ),
    ),
    (
        "results",
        "what was measured, by protocol and data",
        "tags.`summary.protocol` LIKE '%'",
        "metrics.`top1`",
        (
            *("tags.`summary.protocol`", "tags.`summary.data`", "tags.`summary.split`"),
            *("metrics.`top1`", "metrics.`R_at_1`", "tags.`orchestrate.run_id`"),
        ),
    ),
)


def describe_experiment(client: MlflowClient, experiment_id: str) -> None:
    """Give an experiment its views and, where nobody wrote one, a description that links them."""
    known = client.get_experiment(experiment_id).tags
    for name, _, query, order, columns in _VIEWS:
        text = _packed(_state(query, order, columns))
        if known.get(f"{_TAG}{name}") != text:
            client.set_experiment_tag(experiment_id, f"{_TAG}{name}", text)
    if not known.get(_NOTE):
        client.set_experiment_tag(experiment_id, _NOTE, _note(experiment_id))


def view_url(experiment_id: str, name: str) -> str:
    """Link to a view inside the MLflow UI."""
    mode = "workflowType=machine_learning"
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={name}&{mode}"


def _note(experiment_id: str) -> str:
    links = [f"- [{name}]({view_url(experiment_id, name)}): {text}" for name, text, *_ in _VIEWS]
    return "\n".join(["The runs of a recipe, as tables:", *links])


def _state(query: str, order: str, columns: Sequence[str]) -> dict[str, Any]:
    """What the UI keeps of a table, as far as it is not what a new one has."""
    return {
        "searchFilter": query,
        "orderByKey": order,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(columns),
        "viewMaximized": False,
        "runListHidden": False,
    }


def _packed(state: Mapping[str, Any]) -> str:
    """As the UI packs a view: zlib, then base64."""
    packed = zlib.compress(json.dumps(state, sort_keys=True).encode())
    return f"deflate;{base64.b64encode(packed).decode()}"
