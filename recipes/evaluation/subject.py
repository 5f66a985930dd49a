"""What a stage evaluates: the encoder with its description, and the labelled videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from torch import Tensor

from recipes.contract import ConfigurationError, InputError, StageContext
from recipes.data.clip_config import ClipConfig
from recipes.data.loader import READ_SECONDS, eval_batches
from recipes.data.table import VideoTable, load_table
from recipes.evaluation.config import EvaluationConfig, FrozenConfig
from recipes.models.calibrate import calibrate_batchnorm
from recipes.models.config import EncoderConfig
from recipes.models.encoder import VideoEncoder, load_encoder, random_encoder

# Enough clips for means and variances of every channel; more only takes longer.
CALIBRATION_VIDEOS = 512
CALIBRATION_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder on the CPU, what it says of itself, and the clip it is fed with."""

    encoder: VideoEncoder
    description: EncoderConfig
    clip: ClipConfig


def check_inputs(ctx: StageContext, config: EvaluationConfig) -> None:
    """Refuse inputs that do not fit the choice of encoder.

    Raises:
        ConfigurationError: the encoder is missing, or given and not used.
    """
    problems = config.missing_inputs([slot for slot, given in ctx.inputs.items() if given])
    if problems:
        raise ConfigurationError("; ".join(problems))


def open_subject(ctx: StageContext, config: EvaluationConfig) -> Subject:
    """Load the encoder of the stage's input, or build one with random weights from the seed.

    Raises:
        ConfigurationError: the input does not fit the choice of encoder, or the recipe asks for a
            context feature that the encoder does not have.
        InputError: the file is not an encoder.
    """
    check_inputs(ctx, config)
    if config.encoder == "input":
        encoder, description = load_encoder(ctx.one("encoder").path)
    else:
        if config.backbone is None or config.clip is None:
            raise ConfigurationError(f"encoder: {config.encoder} needs backbone and clip")
        description = EncoderConfig(
            backbone=config.backbone, context=config.context, clip=config.clip
        )
        encoder = random_encoder(description, config.seed).eval()
    if isinstance(config, FrozenConfig) and config.feature not in encoder.feature_dims:
        raise ConfigurationError(
            f"feature: {config.feature} is not what the encoder gives; it has "
            f"{', '.join(encoder.feature_dims)}"
        )
    return Subject(
        encoder=encoder, description=description, clip=config.clip or description.clip.evaluated
    )


def labelled_videos(
    ctx: StageContext, config: EvaluationConfig, split: Literal["train", "test"], clip: ClipConfig
) -> VideoTable:
    """The videos of one split that have a label.

    Raises:
        InputError: there is none.
    """
    table = load_table(ctx.one("data"), split, config.fold, clip.min_frames)
    known = np.flatnonzero(table.labels >= 0)
    if not len(known):
        raise InputError(
            f"{table.name}: none of the {len(table)} {split} videos has a label; this stage needs "
            "labelled training and test videos"
        )
    return table if len(known) == len(table) else table.select(known)


def calibrate(
    ctx: StageContext,
    subject: Subject,
    table: VideoTable,
    workers: int,
    read_seconds: float = READ_SECONDS,
) -> None:
    """Give a random encoder the batch-norm statistics of training clips, in place.

    One centre clip of each of up to 512 videos, equally spaced in the table. Each batch is decoded
    on one rank, so that the statistics do not depend on the number of ranks.
    """
    count = min(len(table), CALIBRATION_VIDEOS)
    rows = np.unique(np.linspace(0, len(table) - 1, count).round().astype(np.int64))
    # Neighbours in a table are often of one class; a batch should be a mixture.
    rows = np.random.default_rng(0).permutation(rows)
    edges = [*range(0, len(rows), CALIBRATION_BATCH), len(rows)]
    mine = list(pairwise(edges))[ctx.rank :: ctx.world_size]

    def batches() -> Iterator[Tensor]:
        chosen = np.concatenate([rows[a:b] for a, b in mine]) if mine else rows[:0]
        loaded = eval_batches(
            table.select(chosen),
            subject.clip,
            windows=1,
            batch_size=CALIBRATION_BATCH,
            workers=workers,
            read_seconds=read_seconds,
        )
        yield from (batch.clips for batch, _, _ in loaded)

    calibrate_batchnorm(subject.encoder, batches(), ctx)


def summary(
    config: EvaluationConfig, clip: ClipConfig, test: VideoTable, **facts: Any
) -> dict[str, Any]:
    """What a table needs to name a result; `facts` are the stage's own entries."""
    return {
        "data": test.name,
        "split": config.fold,
        "clip": f"{clip.blocks} x {clip.frames} frames, stride {clip.stride}",
        "size": clip.size,
        "coverage": test.coverage,
        "short": clip.short,
        "windows": config.windows,
        "seed": config.seed,
        **facts,
    }
