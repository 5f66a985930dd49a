"""The encoder that pretraining leaves and every later stage builds again from its one file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cluster import fsio
from recipes.catalog import BACKBONES, load
from recipes.contract import InputError
from recipes.models.config import BackboneConfig, EncoderConfig
from recipes.models.conv_gru import ConvGRU

_METADATA_KEY = "encoder"


def build_backbone(config: BackboneConfig) -> nn.Module:
    """The backbone a config names, through the catalog; it has an int attribute `feature_dim`."""
    backbone: nn.Module = load(BACKBONES[config.name].target)(config)
    return backbone


def block_features(backbone: nn.Module, clips: Tensor) -> Tensor:
    """Features of every block, averaged over time, before the last ReLU.

    Clips (B, N, C, T, H, W) to (B, N, D, h, w).
    """
    features: Tensor = backbone(clips.flatten(0, 1)).mean(dim=2)
    return features.view(*clips.shape[:2], *features.shape[1:])


class VideoEncoder(nn.Module):
    """Backbone and, where the method trained one, a context network over blocks."""

    def __init__(self, backbone: nn.Module, context: ConvGRU | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.context = context

    @property
    def feature_dims(self) -> dict[str, int]:
        """Width of every kind of feature `forward` gives."""
        dim = int(self.backbone.feature_dim)  # type: ignore[arg-type]
        return {"pooled": dim} if self.context is None else {"pooled": dim, "context": dim}

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Normalized clips (B, N, C, T, H, W) to features (B, D) by kind.

        `pooled`: mean over blocks, time and space of the backbone's features, before a last ReLU.
        `context`: the context network's state after ReLU of all blocks in order, mean over space.
        """
        blocks = block_features(self.backbone, clips)
        features = {"pooled": blocks.mean(dim=(1, 3, 4))}
        if self.context is not None:
            features["context"] = self.context(torch.relu(blocks)).mean(dim=(2, 3))
        return features


def build_encoder(config: EncoderConfig) -> VideoEncoder:
    """An encoder with new random weights from torch's generator."""
    backbone = build_backbone(config.backbone)
    if config.context is None:
        return VideoEncoder(backbone)
    dim = int(backbone.feature_dim)  # type: ignore[arg-type]
    return VideoEncoder(backbone, ConvGRU(dim, config.context.dropout))


def random_encoder(config: EncoderConfig, seed: int) -> VideoEncoder:
    """An untrained encoder that is a pure function of `seed`; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(config)


def save_encoder(encoder: VideoEncoder, config: EncoderConfig, path: Path) -> None:
    """Write weights and config as one safetensors file, and the config beside it for people.

    The sidecar has the name of the file with suffix `.json`; nothing reads it.
    """
    description = config.model_dump_json()
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()
    }
    fsio.write_bytes(path, save(tensors, metadata={_METADATA_KEY: description}))
    fsio.write_json(path.with_suffix(".json"), json.loads(description))


def load_encoder(path: Path) -> tuple[VideoEncoder, EncoderConfig]:
    """Build an encoder from its file, on the CPU and in evaluation mode. Reads tensors only.

    Raises:
        InputError: not a file of ours, damaged, or weights that do not fit the config in it.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as an encoder ({error})") from error
    if _METADATA_KEY not in metadata:
        raise InputError(
            f"{path}: carries no {_METADATA_KEY!r} description in its metadata; only encoders "
            "written by a pretrain stage can be used"
        )
    try:
        config = EncoderConfig.model_validate_json(metadata[_METADATA_KEY])
        encoder = random_encoder(config, seed=0)
        encoder.load_state_dict(tensors, strict=True)
    except (ValidationError, RuntimeError) as error:
        raise InputError(f"{path}: description and weights do not fit: {error}") from error
    return encoder.eval(), config
