"""Encoders under the names that people give them in MLflow: registered, taken into recipes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from cluster import fsio
from recipes.contract import InputError
from recipes.data.clip_config import ClipConfig
from recipes.models.config import EncoderConfig, R2D3DTinyConfig
from recipes.models.encoder import random_encoder, save_encoder
from recipes.models.registered import load_registered
from recipes.models.standalone import standalone_code
from tests.tracking.conftest import Invoke
from tests.tracking.fabricate import Pipeline, make_pipeline
from tracking import registry
from tracking.backend import TrackingError
from tracking.server import Server
from tracking.sync import sync_run

RECIPE = """\
name: transfer
data:
  motion: {format: synthetic, name: motion}
stages:
  probe:
    kind: probe
    data: ${data.motion}
    inputs: {encoder: ENCODER}
"""
CONFIG = EncoderConfig(
    backbone=R2D3DTinyConfig(),
    clip=ClipConfig(blocks=2, frames=4, stride=1, size=32),
    method="dpc",
    pretrain_data="toy",
    pretrain_steps=6,
)


def _pretrained(store: Path, run_id: str, uri: str, seed: int = 0) -> Pipeline:
    """A finished pretraining with a real encoder, of a recipe that registers what it makes."""
    pipeline = make_pipeline(store, run_id, uri, ["pretrain"])
    stage = pipeline.stages["pretrain"]
    stage.submission(1, {**pipeline.tracking("pretrain"), "registered_model": "dpc"})
    stage.start("s001r000")
    stage.metrics("s001r000", range(5))
    path = fsio.make_dir(stage.path / "outputs") / "encoder.safetensors"
    save_encoder(random_encoder(CONFIG, seed), CONFIG, path)
    (path.parent / "encoder.py").write_text(standalone_code(CONFIG))
    encoder = {"kind": "encoder", "file": path.name, "content": path.read_bytes()}
    stage.result("s001r000", {"train/loss": 2.0}, {"encoder": encoder}, 4)
    stage.end("s001r000", "succeeded", 4)
    assert sync_run(store, run_id).problems == ()
    return pipeline


def _encoder_digest(pipeline: Pipeline) -> str:
    return fsio.sha256_file(pipeline.stages["pretrain"].path / "outputs" / "encoder.safetensors")


def _model_id(pipeline: Pipeline) -> str:
    return str(pipeline.stages["pretrain"].tracking()["models"]["encoder"])


@pytest.fixture
def two(tmp_path: Path, sqlite_uri: str) -> tuple[Pipeline, Pipeline]:
    """Two pretrainings in the embedded store, both versions of `dpc`."""
    store = tmp_path / "store"
    return _pretrained(store, "r1", sqlite_uri), _pretrained(store, "r2", sqlite_uri, seed=1)


def _planned(
    orchestrate: Invoke, folder: Path, uri: str, reference: str, code: int = 0
) -> dict[str, Any]:
    recipe = folder / "transfer.yaml"
    recipe.write_text(RECIPE.replace("ENCODER", reference))
    result = orchestrate("plan", str(recipe), f"+tracking.uri={uri}", "--json")
    assert result.exit_code == code, result.output
    if code:
        return {"message": result.stderr}
    return {one["name"]: one for one in json.loads(result.stdout)["stages"]}["probe"]


def test_every_encoder_of_a_recipe_that_says_so_becomes_a_version_and_the_last_one_is_newest(
    two: tuple[Pipeline, Pipeline], sqlite_uri: str
) -> None:
    client = MlflowClient(sqlite_uri)
    found = sorted(client.search_model_versions("name = 'dpc'"), key=lambda one: int(one.version))
    assert [one.source for one in found] == [f"models:/{_model_id(one)}" for one in two]
    newest = client.get_model_version_by_alias("dpc", "newest")
    assert int(newest.version) == 2
    assert newest.tags["sha256"] == _encoder_digest(two[1])
    assert newest.tags["orchestrate.run_id"] == "r2"
    assert newest.run_id == two[1].stages["pretrain"].tracking()["mlflow_run_id"]
    client.set_registered_model_alias("dpc", "best", "1")
    assert sync_run(two[0].store, "r1", anew=True).problems == ()
    assert len(client.search_model_versions("name = 'dpc'")) == 2
    assert int(client.get_model_version_by_alias("dpc", "newest").version) == 2
    assert int(client.get_model_version_by_alias("dpc", "best").version) == 1


def test_a_recipe_takes_a_registered_encoder_as_if_it_named_the_stage_that_made_it(
    tmp_path: Path, two: tuple[Pipeline, Pipeline], sqlite_uri: str, orchestrate: Invoke
) -> None:
    MlflowClient(sqlite_uri).set_registered_model_alias("dpc", "best", "1")
    first = _planned(orchestrate, tmp_path, sqlite_uri, "run:r1:pretrain.encoder")["key"]
    for way in ("models:/dpc@best", "models:/dpc/1", f"models:/{_model_id(two[0])}"):
        assert _planned(orchestrate, tmp_path, sqlite_uri, way)["key"] == first, way
    second = _planned(orchestrate, tmp_path, sqlite_uri, "models:/dpc/latest")["key"]
    assert second != first
    MlflowClient(sqlite_uri).set_registered_model_alias("dpc", "best", "2")
    assert _planned(orchestrate, tmp_path, sqlite_uri, "models:/dpc@best")["key"] == second


def test_another_store_fetches_the_encoder_once_and_knows_it_by_its_digest(
    tmp_path: Path,
    mlflow_server: Server,
    orchestrate: Invoke,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = _pretrained(tmp_path / "store", "r1", mlflow_server.url)
    other = tmp_path / "other"
    monkeypatch.setenv("ORCHESTRATE_STORE", str(other))
    reference = f"models:/{_model_id(made)}"
    planned = _planned(orchestrate, tmp_path, mlflow_server.url, reference)
    (file,) = (other / "models").rglob("*.safetensors")
    assert fsio.sha256_file(file) == _encoder_digest(made)
    assert file.stat().st_mode & 0o077 == 0
    stamp = file.stat().st_mtime_ns
    assert _planned(orchestrate, tmp_path, mlflow_server.url, reference)["key"] == planned["key"]
    assert file.stat().st_mtime_ns == stamp
    assert [one.name for one in (other / "models").iterdir()] == [file.parent.name]


def test_a_consumer_of_a_fetched_encoder_shows_it_as_its_input_in_mlflow(
    tmp_path: Path, two: tuple[Pipeline, Pipeline], sqlite_uri: str
) -> None:
    other = make_pipeline(tmp_path / "other", "r3", sqlite_uri, ["probe"])
    stage = other.stages["probe"]
    spec = fsio.read_json(stage.path / "stage.json")
    entry = {"ref": "models:/dpc/1", "artifact": "encoder", "kind": "encoder", "file": "/e.x"}
    entry |= {"sha256": _encoder_digest(two[0]), "model_id": _model_id(two[0])}
    fsio.write_json(stage.path / "stage.json", {**spec, "inputs": {"encoder": [entry]}})
    stage.start("s001r000")
    stage.result("s001r000", {"top1": 0.5}, {}, 1)
    stage.end("s001r000", "succeeded", 1)
    assert sync_run(other.store, "r3").problems == ()
    client = MlflowClient(sqlite_uri)
    run = client.get_run(stage.tracking()["mlflow_run_id"])
    assert [one.model_id for one in run.inputs.model_inputs] == [_model_id(two[0])]
    measured = client.get_logged_model(_model_id(two[0])).metrics
    assert ("top1", 0.5) in {(one.key, one.value) for one in measured}


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("models:/dpc@worst", 2, "worst"),
        ("models:/nothing/latest", 2, "no model of that name"),
        ("models:/dpc", 2, "models:/<name>@<alias>"),
    ],
)
def test_a_name_that_mlflow_does_not_have_is_said_before_anything_is_submitted(
    tmp_path: Path,
    two: tuple[Pipeline, Pipeline],
    sqlite_uri: str,
    orchestrate: Invoke,
    reference: str,
    code: int,
    words: str,
) -> None:
    assert words in _planned(orchestrate, tmp_path, sqlite_uri, reference, code)["message"]


def test_a_file_that_changed_in_mlflow_since_it_was_delivered_is_refused(
    tmp_path: Path, two: tuple[Pipeline, Pipeline], sqlite_uri: str
) -> None:
    client = MlflowClient(sqlite_uri)
    model = registry.resolve(client, "models:/dpc/1")
    place = Path(client.get_logged_model(model.model_id).artifact_location.removeprefix("file://"))
    (place / "encoder.safetensors").write_bytes(b"other weights")
    with pytest.raises(TrackingError, match="changed since it was delivered"):
        registry.fetch(sqlite_uri, model, tmp_path / "models")


def test_a_model_that_a_person_registered_from_a_file_is_an_input_too(
    tmp_path: Path, sqlite_uri: str, orchestrate: Invoke
) -> None:
    client = MlflowClient(sqlite_uri)
    place = (tmp_path / "mine").as_uri()
    run = client.create_run(client.create_experiment("by hand", artifact_location=place))
    save_encoder(random_encoder(CONFIG, 5), CONFIG, tmp_path / "mine.safetensors")
    client.log_artifact(run.info.run_id, str(tmp_path / "mine.safetensors"), "encoder")
    client.create_registered_model("mine")
    client.create_model_version("mine", f"runs:/{run.info.run_id}/encoder", run.info.run_id)
    assert _planned(orchestrate, tmp_path, sqlite_uri, "models:/mine/1")["key"]
    (file,) = (tmp_path / "store" / "models").rglob("*.safetensors")
    assert fsio.sha256_file(file) == fsio.sha256_file(tmp_path / "mine.safetensors")


def test_a_registered_encoder_is_loaded_by_its_name_with_this_package_and_without(
    tmp_path: Path,
    two: tuple[Pipeline, Pipeline],
    sqlite_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    clips = torch.rand(1, 2, 3, 4, 32, 32)
    with torch.inference_mode():
        expected = random_encoder(CONFIG, 1).eval()(clips)["pooled"]
        encoder, config = load_registered("models:/dpc@newest")
        assert config == CONFIG
        assert torch.equal(encoder(clips)["pooled"], expected)
        (tmp_path / "alone").mkdir()
        (tmp_path / "alone" / "encoder_alone.py").write_text(standalone_code(CONFIG))
        monkeypatch.syspath_prepend(str(tmp_path / "alone"))
        from encoder_alone import load  # type: ignore[import-not-found]

        assert torch.equal(load("models:/dpc@newest")(clips)["pooled"], expected)
    sys.modules.pop("encoder_alone")
    with pytest.raises(InputError, match="worst"):
        load_registered("models:/dpc@worst")
