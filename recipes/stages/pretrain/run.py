"""The pretraining stage: table, method, training, export of the encoder."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import nn

from cluster import fsio
from recipes.catalog import METHODS, load
from recipes.contract import ConfigurationError, Output, StageContext, StageResult
from recipes.data.loader import TrainBatches
from recipes.data.table import VideoTable, load_table
from recipes.engine import distributed
from recipes.engine.batches import training_batches
from recipes.engine.contract import Method, TrainOutcome
from recipes.engine.curves import save_curves
from recipes.engine.loop import train
from recipes.models.card import Training, model_card
from recipes.models.config import EncoderConfig
from recipes.models.encoder import VideoEncoder, load_encoder, save_encoder
from recipes.models.standalone import NotStandaloneError, standalone_code
from recipes.stages.pretrain.config import PretrainConfig

log = logging.getLogger(__name__)


def run(ctx: StageContext, config: PretrainConfig) -> StageResult:
    """Train to the end of the schedule, from the newest checkpoint if there is one, and export.

    Raises:
        Preempted: a stop was requested; training goes on from its checkpoint.
        DivergedError: loss, gradient or weights are not finite.
        InputError: no usable video, or checkpoints of which none may be used.
        ConfigurationError: batch and ranks do not fit, or `init` is of another architecture.
    """
    distributed.init(ctx)
    table = load_table(ctx.one("data"), "train", config.fold, config.clip.min_frames)
    method = build_method(ctx, config)
    outcome = train(ctx, method, lambda start: _batches(ctx, config, table, start), config)
    if not distributed.is_main():
        return StageResult(steps=outcome.steps)
    return _export(ctx, config, table, cast(Method, method), outcome)


def build_method(ctx: StageContext, config: PretrainConfig) -> nn.Module:
    """The network to train: a pure function of the seed, or started from the input `init`.

    Raises:
        ConfigurationError: `init` is an encoder of another architecture.
        InputError: `init` cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        target = load(METHODS[config.method.name].target)
        method: nn.Module = target(config.method, config.backbone, config.clip)
    if ctx.inputs.get("init"):
        _start_from(ctx, method)
    return method


def _start_from(ctx: StageContext, method: nn.Module) -> None:
    path = ctx.one("init").path
    given, theirs = load_encoder(path)
    own, ours = cast(Method, method).export_encoder()
    if given.feature_dims != own.feature_dims or theirs.backbone != ours.backbone:
        raise ConfigurationError(
            f"init: {path} is a {theirs.backbone.name} with features {given.feature_dims}; this "
            f"stage trains a {ours.backbone.name} with {own.feature_dims}. Give both the same "
            "backbone and method"
        )
    own.load_state_dict(given.state_dict())  # shares its weights with the method


def _batches(
    ctx: StageContext, config: PretrainConfig, table: VideoTable, start_step: int
) -> TrainBatches:
    return training_batches(
        ctx,
        config,
        table,
        config.clip,
        config.method.augmentation,
        seed=config.seed,
        start_step=start_step,
    )


def _export(
    ctx: StageContext,
    config: PretrainConfig,
    table: VideoTable,
    method: Method,
    outcome: TrainOutcome,
) -> StageResult:
    encoder, description = method.export_encoder()
    description = description.model_copy(
        update={"pretrain_data": table.name, "pretrain_steps": outcome.steps}
    )
    path = ctx.output_dir / "encoder.safetensors"
    save_encoder(encoder, description, path)
    _describe(ctx, config, table, encoder, description, outcome)
    if outcome.history:
        save_curves(ctx.output_dir / "figures" / "training.png", outcome.history)
    meta: dict[str, Any] = description.model_dump(mode="json")
    return StageResult(
        outputs={"encoder": Output(kind="encoder", path=path, meta=meta)},
        metrics={**outcome.metrics, "num_train": float(len(table)), "coverage": table.coverage},
        summary={**_summary(config, table, outcome.steps), **outcome.remarks},
        steps=outcome.steps,
    )


def _describe(
    ctx: StageContext,
    config: PretrainConfig,
    table: VideoTable,
    encoder: VideoEncoder,
    description: EncoderConfig,
    outcome: TrainOutcome,
) -> None:
    """Write the encoder's code and its model card beside its file."""
    try:
        fsio.write_text(ctx.output_dir / "encoder.py", standalone_code(description))
        standalone = True
    except NotStandaloneError as error:
        log.warning("no encoder.py, the encoder can be loaded by orchestrate only: %s", error)
        standalone = False
    training = Training(
        origin=ctx.origin,
        config=config.model_dump(mode="json"),
        data=ctx.one("data"),
        num_videos=len(table),
        coverage=table.coverage,
        steps=outcome.steps,
        metrics=outcome.metrics,
        ranks=ctx.world_size,
        device=ctx.device,
    )
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    card = model_card(
        description, encoder.feature_dims, parameters, training, standalone=standalone
    )
    fsio.write_text(ctx.output_dir / "README.md", card)


def _summary(config: PretrainConfig, table: VideoTable, steps: int) -> dict[str, Any]:
    """What a table needs to name it; no protocol, since a pretraining has no test result."""
    clip = config.clip
    length = f"{config.epochs} epochs" if config.epochs else f"{steps} steps"
    return {
        "method": config.method.name,
        "backbone": config.backbone.name,
        "pretrain_data": table.name,
        "data": table.name,
        "split": config.fold,
        "clip": f"{clip.blocks} x {clip.frames} frames, stride {clip.stride}",
        "size": clip.size,
        "coverage": table.coverage,
        "short": clip.short,
        "seed": config.seed,
        "note": f"{length}, batch {config.batch_size} of micro-batches of {config.micro_batch}",
    }
