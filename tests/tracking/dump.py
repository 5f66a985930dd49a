"""Everything an MLflow server says of its experiments, without the ids that it makes up itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

from cluster import fsio


def dump(uri: str) -> dict[str, Any]:
    """Experiments, runs, histories, artifacts, datasets and models, by names instead of ids."""
    client = MlflowClient(uri)
    experiments = {one.experiment_id: one for one in client.search_experiments()}
    runs = client.search_runs(list(experiments), max_results=1000)
    models = client.search_logged_models(list(experiments), max_results=50)
    names = {key: f"<experiment {one.name}>" for key, one in experiments.items()}
    names = {f"experiments/{key}/": f"experiments/{name}/" for key, name in names.items()}
    names |= {run.info.run_id: f"<run {_title(run)}>" for run in runs}
    names |= {one.model_id: f"<model {one.name} of {one.source_run_id}>" for one in models}
    found = {
        "experiments": sorted((one.name, sorted(one.tags.items())) for one in experiments.values()),
        "runs": {_title(run): _run(client, run, experiments) for run in runs},
        "models": sorted((_model(client, one) for one in models), key=json.dumps),
    }
    assert len(found["runs"]) == len(runs), "two runs of one stage"
    return dict(json.loads(_named(json.dumps(found, sort_keys=True), names)))


def _named(text: str, names: Mapping[str, str]) -> str:
    for _ in range(2):  # the name of a model has the id of a run in it
        for key, name in names.items():
            text = text.replace(key, name)
    return text


def _title(run: Run) -> str:
    tags = run.data.tags
    return f"{tags['orchestrate.run_id']}:{tags.get('orchestrate.stage', '')}"


def _run(client: MlflowClient, run: Run, experiments: Mapping[str, Any]) -> dict[str, Any]:
    run_id, inputs, outputs = run.info.run_id, run.inputs, run.outputs
    histories = {
        key: sorted(
            (one.step, repr(one.value), one.timestamp)
            for one in client.get_metric_history(run_id, key)
        )
        for key in run.data.metrics
    }
    return {
        "experiment": experiments[run.info.experiment_id].name,
        "name": run.info.run_name,
        "user": run.info.user_id,
        "status": run.info.status,
        "times": [run.info.start_time, run.info.end_time],
        "params": run.data.params,
        "tags": run.data.tags,
        "histories": histories,
        "last": {key: repr(value) for key, value in run.data.metrics.items()},
        "datasets": [one.to_dictionary() for one in inputs.dataset_inputs],
        "models_in": [one.to_dictionary() for one in inputs.model_inputs],
        "models_out": [one.to_dictionary() for one in outputs.model_outputs],
        "artifacts": _artifacts(client, run_id),
    }


def _artifacts(client: MlflowClient, run_id: str) -> dict[str, str]:
    with TemporaryDirectory() as folder:
        root = Path(client.download_artifacts(run_id, "", folder))
        return _digests(root)


def _digests(root: Path) -> dict[str, str]:
    """Digest of each file; the graph and pages have links with ids and stay readable."""
    return {
        str(path.relative_to(root)): fsio.sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _model(client: MlflowClient, model: LoggedModel) -> dict[str, Any]:
    full = client.get_logged_model(model.model_id)
    metrics = [
        [one.key, one.value, one.timestamp, one.step, one.run_id, one.dataset_name]
        for one in full.metrics or []
    ]
    from mlflow.artifacts import download_artifacts

    with TemporaryDirectory() as folder:
        root = Path(download_artifacts(artifact_uri=full.artifact_location, dst_path=folder))
        files = _digests(root)
    return {
        "name": full.name,
        "of": full.source_run_id,
        "type": full.model_type,
        "status": str(full.status),
        "params": full.params,
        "tags": full.tags,
        "metrics": sorted(metrics, key=repr),
        "files": files,
    }
