"""The model card beside an encoder: what it is, how it came about, how to use it, its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from recipes.contract import Artifact, Origin
from recipes.models.config import EncoderConfig

_CARD = """---
license: unknown  # yours to choose before you publish it; the data's licence may limit the choice
library_name: pytorch
pipeline_tag: feature-extraction
tags: {tags}
datasets: {datasets}
---

# {title}

A video encoder, {backbone} with {parameters:,} parameters, trained without labels by `{method}` on
{data_name}. `encoder.safetensors` has {weights}.

## Use

{usage}

In training, clips had {blocks} blocks of {frames} frames, {apart}, at
{size} x {size} pixels. `pooled` is the mean over blocks, time and space; one block is enough for
it{context}.

## Intended use and limits

Features for retrieval and linear probes, and a start for fine-tuning on labelled videos. What it
learned is what {data_name} shows: its kinds of scenes, people and cameras, with their biases. It
has seen clips of the length and size above only. Nothing here measures it on a task: evaluate it on
yours before you rely on it, above all where people are affected.

## Training

| | |
|---|---|
{facts}

What was logged last:

| metric | value |
|---|---|
{metrics}

As the recipe resolved it, without the data:

```yaml
{config}```

## Provenance

| | |
|---|---|
{provenance}

Empty fields are unknown: the stage was run by hand.
"""
_USAGE = """`encoder.py` holds the network in plain PyTorch (needs `torch` and `safetensors`):

```python
import sys

import torch

sys.path.insert(0, ".")  # the folder of encoder.py
from encoder import load, normalize

encoder = load("encoder.safetensors")
clips = torch.rand(2, {blocks}, 3, {frames}, {size}, {size})  # (B, blocks, RGB, T, H, W) in [0, 1]
with torch.inference_mode():
    features = encoder(normalize(clips))  # {shapes}
```"""
_USAGE_OURS = """With orchestrate installed, `load_encoder("encoder.safetensors")` of
`recipes.models.encoder`, and `normalize` of `recipes.data.augment` for clips in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an encoder came about.

    Attributes:
        origin: recipe, run, stage, key and code.
        config: the stage's configuration as it was used, plain JSON.
        data: the index its videos were listed in.
        num_videos: of them that it was trained on.
        coverage: their share of those listed.
        steps: optimizer steps.
        metrics: what was logged last.
        ranks: how many devices it ran on.
        device: their kind.
    """

    origin: Origin
    config: Mapping[str, Any]
    data: Artifact
    num_videos: int
    coverage: float
    steps: int
    metrics: Mapping[str, float]
    ranks: int
    device: str


def model_card(
    encoder: EncoderConfig,
    feature_dims: Mapping[str, int],
    num_parameters: int,
    training: Training,
    *,
    standalone: bool,
) -> str:
    """Markdown with the YAML front matter of model hubs; a function of its arguments alone.

    Args:
        encoder: the description inside the encoder's file.
        feature_dims: width of each kind of feature.
        num_parameters: of the encoder.
        training: how it came about.
        standalone: `encoder.py` lies beside it.
    """
    clip, backbone = encoder.clip, encoder.backbone.name
    decay = training.config.get("ema_decay")
    shapes = {name: (2, dim) for name, dim in feature_dims.items()}
    sizes = {"blocks": clip.blocks, "frames": clip.frames, "size": clip.size}
    data_name = encoder.pretrain_data or "unnamed data"
    return _CARD.format(
        tags=json.dumps(["video", "self-supervised-learning", encoder.method, backbone]),
        datasets=json.dumps([data_name]),
        title=f"{encoder.method} {backbone} on {data_name}",
        backbone=backbone,
        parameters=num_parameters,
        method=encoder.method,
        data_name=data_name,
        weights=f"a moving average of the weights (decay {decay})" if decay else "the last weights",
        usage=_USAGE.format(shapes=shapes, **sizes) if standalone else _USAGE_OURS,
        context="; `context` reads the blocks in their order" if encoder.context else "",
        apart="one after the other" if clip.stride == 1 else f"each {clip.stride} after the last",
        facts=_table(_facts(training)),
        metrics=_table({name: f"{value:.6g}" for name, value in sorted(training.metrics.items())}),
        config=yaml.safe_dump(_without_data(training.config), sort_keys=False),
        provenance=_table(_provenance(training)),
        **sizes,
    )


def _facts(training: Training) -> dict[str, Any]:
    config = training.config
    shown = training.steps * config["batch_size"] / max(1, training.num_videos)
    return {
        "videos": f"{training.num_videos:,} ({training.coverage:.2%} of those listed)",
        "optimizer steps": f"{training.steps:,}",
        "times each video was shown": f"{shown:.3g}",
        "global batch": config["batch_size"],
        "clips in one forward pass": config["micro_batch"],
        "precision": config["precision"],
        "devices": f"{training.ranks} x {training.device}",
        "seed": config["seed"],
    }


def _provenance(training: Training) -> dict[str, Any]:
    origin, data = training.origin, training.data
    return {
        "recipe": origin.recipe,
        "run": origin.run,
        "stage": origin.stage,
        "stage key": origin.key,
        "code": f"{origin.version} {origin.code}".strip(),
        "index of the data": data.ref,
        "SHA-256 of the index": data.sha256,
        "PyTorch": torch.__version__,
    }


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _without_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where data lie is nobody's business but the site's; its digest says which they were."""
    return {name: value for name, value in config.items() if name != "data"}
