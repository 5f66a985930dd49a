"""The training batches of a stage: its configuration and its place among the ranks, joined once."""

from __future__ import annotations

from recipes.contract import StageContext
from recipes.data.clip_config import AugmentConfig, ClipConfig
from recipes.data.loader import TrainBatches
from recipes.data.table import VideoTable
from recipes.engine.config import TrainFields


def training_batches(
    ctx: StageContext,
    config: TrainFields,
    table: VideoTable,
    clip: ClipConfig,
    augment: AugmentConfig,
    *,
    seed: int,
    start_step: int,
) -> TrainBatches:
    """This rank's micro-batches from optimizer step `start_step` on, in an order the seed fixes.

    Raises:
        ConfigurationError: the batch does not fit the rank count or the table.
    """
    return TrainBatches(
        table,
        clip,
        augment,
        seed=seed,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        rank=ctx.rank,
        world_size=ctx.world_size,
        workers=config.workers,
        start_step=start_step,
        epochs=config.epochs,
        max_steps=config.max_steps,
        pin_memory=ctx.device == "cuda",
        read_seconds=config.read_seconds,
        max_replaced_share=config.max_replaced_share,
    )
