"""Encoders by the names that people give them in MLflow: versions, aliases, files, registration."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import fsio
from tracking import recorder
from tracking.backend import AskedWrongly, TrackingError, spoken_to
from tracking.redact import scrub

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

NEWEST = "newest"
"""The alias of the version that was registered last."""
# models:/NAME@ALIAS, models:/NAME/3, models:/NAME/latest, models:/m-1a2b...
_REFERENCE = re.compile(
    r"models:/(?:(?P<model>m-[0-9a-f]{32})"
    r"|(?P<name>[^/:@'\"`\s][^/:@'\"`]*)(?:@(?P<alias>[^/:@\s]+)|/(?P<version>\d+|latest)))"
)

# What MLflow answers to a name, version or id that it does not have, and to such an alias.
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What a name in MLflow stands for now.

    Attributes:
        uri: the exact version: `models:/NAME/3`, or `models:/m-1a2b` of a model without a version.
        model_id: the logged model it is of; empty where the version is of something else.
        sha256: digest of the encoder's file; empty where it is none that orchestrate delivered.
        stage_key: of the stage that made it; empty likewise.
    """

    uri: str
    model_id: str = ""
    sha256: str = ""
    stage_key: str = ""


def resolve(client: MlflowClient, uri: str) -> Registered:
    """What `models:/NAME@ALIAS`, `models:/NAME/3`, `models:/NAME/latest` or `models:/m-1a2b` is.

    Raises:
        AskedWrongly: it is none of these, or MLflow has no such model.
        TrackingError: MLflow cannot be asked.
    """
    from mlflow.exceptions import MlflowException

    asked = _REFERENCE.fullmatch(uri)
    if asked is None:
        raise AskedWrongly(f"{uri}: expected models:/NAME@ALIAS, models:/NAME/3 or models:/m-ID")
    try:
        if asked["model"]:
            return _of_model(client, asked["model"], uri)
        version = _version(client, asked)
        exact = f"models:/{asked['name']}/{version.version}"
        model_id = str(version.model_id or "")
        if not model_id and str(version.source).startswith("models:/m-"):
            model_id = str(version.source).removeprefix("models:/")
        return _of_model(client, model_id, exact) if model_id else Registered(uri=exact)
    except MlflowException as error:
        kind = AskedWrongly if error.error_code in _NOT_THERE else TrackingError
        raise kind(f"{uri}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return scrub(str(error)).partition("\n")[0]


def _version(client: MlflowClient, asked: re.Match[str]) -> Any:
    if asked["alias"]:
        return client.get_model_version_by_alias(asked["name"], asked["alias"])
    if asked["version"] != "latest":
        return client.get_model_version(asked["name"], asked["version"])
    query, order = f"name = '{asked['name']}'", ["version_number DESC"]
    found = client.search_model_versions(query, max_results=1, order_by=order)
    if not found:
        raise AskedWrongly(f"{asked[0]}: MLflow has no model of that name, or no version of it")
    return found[0]


def _of_model(client: MlflowClient, model_id: str, uri: str) -> Registered:
    model: LoggedModel = client.get_logged_model(model_id)
    return Registered(
        uri=uri,
        model_id=model_id,
        sha256=str(model.tags.get("sha256", "")),
        stage_key=str(model.tags.get(recorder.TAG_KEY, "")),
    )


def digest_of_model(client: MlflowClient, uri: str) -> str:
    """SHA-256 of an encoder by what MLflow calls it.

    Raises:
        AskedWrongly: MLflow has no such model, or it is none of ours.
        TrackingError: MLflow cannot be asked.
    """
    digest = resolve(client, uri).sha256
    if not digest:
        raise AskedWrongly(f"{uri}: not an encoder that orchestrate delivered")
    return digest


def fetch(tracking_uri: str, model: Registered, folder: Path) -> Path:
    """The file of an encoder, downloaded once into `<folder>/<sha256[:16]>/`.

    Raises:
        TrackingError: the server does not give it, it holds no single `.safetensors` file, or that
            is not the one whose digest was recorded.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    for path in folder.glob(f"{model.sha256[:16] or '-'}/*.safetensors"):
        return path
    fsio.make_dir(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as place:
        try:
            with spoken_to(tracking_uri):
                download_artifacts(model.uri, dst_path=place)
        except (MlflowException, OSError) as error:
            raise TrackingError(f"{model.uri} cannot be fetched: {_first_line(error)}") from error
        return _keep(model, Path(place), folder)


def _keep(model: Registered, place: Path, folder: Path) -> Path:
    found = sorted(place.rglob("*.safetensors"))
    if len(found) != 1:
        raise TrackingError(
            f"{model.uri} holds {len(found)} files *.safetensors; an encoder is exactly one"
        )
    digest = fsio.sha256_file(found[0])
    if model.sha256 and digest != model.sha256:
        raise TrackingError(f"{model.uri}: its file changed since it was delivered ({digest})")
    target = fsio.make_dir(folder / digest[:16]) / found[0].name
    if not target.exists():
        shutil.move(found[0], target)
        target.chmod(fsio.PRIVATE_FILE)
    return target


def register(client: MlflowClient, name: str, model_id: str, tags: Mapping[str, str]) -> str:
    """The version of the registered model `name` that is this logged model, made where needed.

    A new version gets the alias `newest`; older ones keep whatever aliases people gave them.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"name = '{name}'", max_results=1000):
        if model_id in (known.model_id, str(known.source).removeprefix("models:/")):
            return str(known.version)
    model = client.get_logged_model(model_id)
    with spoken_to(client.tracking_uri):
        made = client.create_model_version(
            name,
            f"models:/{model_id}",
            run_id=model.source_run_id,
            tags=recorder.clean_tags(tags),
            model_id=model_id,
        )
    client.set_registered_model_alias(name, NEWEST, made.version)
    return str(made.version)
