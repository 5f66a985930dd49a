"""What MLflow keeps beside params and metrics: files, datasets as inputs, encoders as models."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import fsio
from tracking import recorder
from tracking.redact import scrub

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DIGEST_LENGTH = 32  # MLflow stores at most 36 characters


@dataclass(frozen=True, kw_only=True)
class DatasetRef:
    """A dataset as an index stage recorded it; `sha256` is the digest of the index file."""

    name: str
    sha256: str
    path: str
    context: str
    profile: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The part of the digest that fits MLflow's column."""
        return self.sha256[:_DIGEST_LENGTH]


def log_datasets(client: MlflowClient, run_id: str, datasets: Sequence[DatasetRef]) -> None:
    """Log datasets as inputs of a run, by name and digest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(
                name=one.name,
                digest=one.digest,
                source_type="orchestrate",
                source=fsio.to_json({"path": one.path, "sha256": one.sha256}),
                profile=fsio.to_json(dict(one.profile)),
            ),
            [InputTag("mlflow.data.context", one.context)],
        )
        for one in datasets
    ]
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def ensure_model(
    client: MlflowClient,
    run_id: str,
    *,
    name: str,
    path: Path,
    step: int,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Id of the logged model `name` of a run, made from a file and marked as the run's output."""
    from mlflow.entities import LoggedModelOutput

    experiment_id = client.get_run(run_id).info.experiment_id
    query = f"source_run_id = '{run_id}' and name = '{name}'"
    found = client.search_logged_models([experiment_id], query)
    model = found[0] if found else None
    if model is None:
        model = client.create_logged_model(
            experiment_id,
            name=name,
            source_run_id=run_id,
            params=recorder.flat_params(params),
            tags=recorder.clean_tags(tags),
            model_type="encoder",
        )
    model_id = str(model.model_id)
    if str(model.status) != "READY":
        _upload_model(client, model_id, path)
        client.finalize_logged_model(model_id, "READY")
    outputs = client.get_run(run_id).outputs
    if model_id not in {one.model_id for one in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return model_id


def _upload_model(client: MlflowClient, model_id: str, path: Path) -> None:
    """With what lies beside it for those who use it: the files of its name, and its card.

    MLflow takes a folder, and the file's own folder holds more than the model.
    """
    described = [*path.parent.glob(f"{path.stem}.*"), path.parent / "README.md"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".model-") as folder:
        for source in (one for one in described if one.is_file()):
            try:
                os.link(source, Path(folder) / source.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, Path(folder) / source.name)
        client.log_model_artifacts(model_id, folder)


def link_models(client: MlflowClient, run_id: str, model_ids: Sequence[str]) -> None:
    """Mark logged models as inputs of a run."""
    from mlflow.entities import LoggedModelInput

    if model_ids:
        models = [LoggedModelInput(model_id) for model_id in model_ids]
        client.log_inputs(run_id, models=models)


def model_exists(client: MlflowClient, model_id: str) -> bool:
    """Whether the server has that logged model; one of a database that is gone it has not."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def log_file(client: MlflowClient, run_id: str, path: Path, folder: str | None = None) -> None:
    """Upload a file as an artifact of a run."""
    client.log_artifact(run_id, str(path), folder)


def log_text(client: MlflowClient, run_id: str, text: str, name: str) -> None:
    """Upload a text as an artifact of a run, secrets hidden."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_text(scrub(text), encoding="utf-8")
        parent = str(Path(name).parent)
        log_file(client, run_id, path, None if parent == "." else parent)
