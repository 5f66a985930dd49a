"""Finds what an input names outside of its recipe: stages of other runs, models of MLflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.planned import ExternalStage, RegisteredEncoder
from orchestrator.store import Store

if TYPE_CHECKING:
    from tracking.registry import Registered


def external_stages(store: Store) -> Callable[[str, str], ExternalStage | None]:
    """A function that looks up a stage by run id and stage name; for `make_plan`.

    It answers None where the store has no such run or the run no such stage.
    """

    def find(run_id: str, stage: str) -> ExternalStage | None:
        try:
            entries = store.read_plan(run_id)["stages"]
        except FileNotFoundError:
            return None
        for entry in entries:
            if entry["name"] == stage:
                kind, key = str(entry["kind"]), str(entry["key"])
                finished = store.stage_dir(kind, key).result() is not None
                return ExternalStage(kind=kind, key=key, finished=finished)
        return None

    return find


def registered_encoders(store: Store, uri: str | None) -> Callable[[str], RegisteredEncoder]:
    """A function that asks MLflow what a name such as `models:/dpc@best` stands for now.

    The encoder of a stage in this store is taken from there. Any other one is downloaded once, into
    `<store>/models`, so that jobs need no server; its digest becomes part of the key.

    Args:
        store: where the recipe's stages lie.
        uri: the recipe's server; by default the database in the store.

    Raises (the function):
        TrackingError: MLflow is out of reach, has no such model (`AskedWrongly`), or it is no
            encoder.
    """

    def find(reference: str) -> RegisteredEncoder:
        from cluster import fsio
        from tracking.backend import connect_to_ask
        from tracking.registry import fetch, resolve
        from tracking.server import default_uri

        server = uri or default_uri(store.root)
        model = resolve(connect_to_ask(server), reference)
        stage = _stage_of(store, model)
        if stage is not None:
            return RegisteredEncoder(stage=stage, sha256=model.sha256, model_id=model.model_id)
        file = fetch(server, model, store.root.absolute() / "models")
        digest = fsio.sha256_file(file)
        return RegisteredEncoder(file=file, sha256=digest, model_id=model.model_id)

    return find


def _stage_of(store: Store, model: Registered) -> ExternalStage | None:
    """The stage of this store that made the model, if it still has that very file."""
    for folder in store.iter_stage_dirs() if model.stage_key else ():
        spec, result = folder.stage() or {}, folder.result() or {}
        made = {str(one["sha256"]) for one in result.get("artifacts", {}).values()}
        if spec.get("key") == model.stage_key and model.sha256 in made:
            return ExternalStage(kind=str(spec["kind"]), key=model.stage_key, finished=True)
    return None
