"""Loads an encoder by the name that it has in an MLflow registry."""

from __future__ import annotations

import tempfile
from pathlib import Path

from recipes.contract import InputError
from recipes.models.config import EncoderConfig
from recipes.models.encoder import VideoEncoder, load_encoder


def load_registered(name: str) -> tuple[VideoEncoder, EncoderConfig]:
    """The encoder that `models:/NAME@ALIAS`, `models:/NAME/3` or `models:/m-ID` stands for.

    MLflow is asked where MLFLOW_TRACKING_URI says. On the CPU and in evaluation mode.

    Raises:
        InputError: MLflow has no such model, or it is no encoder of a pretrain stage.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            download_artifacts(name, dst_path=folder)
        except (MlflowException, OSError) as error:
            raise InputError(f"{name}: MLflow does not give it: {error}") from error
        found = sorted(Path(folder).rglob("*.safetensors"))
        if len(found) != 1:
            raise InputError(f"{name} holds {len(found)} files *.safetensors, not one encoder")
        return load_encoder(found[0])
