"""One vector a video: what a function gives for its clips, averaged over equally spaced windows."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from cluster import fsio
from recipes.contract import InputError, Preempted, Progress, StageContext
from recipes.data.augment import normalize
from recipes.data.clip_config import ClipConfig
from recipes.data.loader import READ_SECONDS, Batch, eval_batches
from recipes.data.table import VideoTable
from recipes.engine import distributed
from recipes.evaluation.config import Feature
from recipes.models.encoder import VideoEncoder

# Clips (B, N, C, T, H, W) uint8 on the stage's device to one row each, (B, D).
PerClip = Callable[[Tensor], Tensor]

PROGRESS_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How clips are read and how the work is called in `status`.

    `batch_size` counts clips. `committed_step` is what a stop reports as saved: extraction itself
    keeps nothing and starts again.
    """

    windows: int
    batch_size: int
    workers: int = 0
    read_seconds: float = READ_SECONDS
    phase: str = "features"
    committed_step: int = 0


def extract_features(
    ctx: StageContext,
    encoder: VideoEncoder,
    feature: Feature,
    table: VideoTable,
    clip: ClipConfig,
    extraction: Extraction,
) -> Tensor:
    """Features of a frozen encoder, the mean over the windows of each video.

    The encoder is put in evaluation mode and left there.

    Returns:
        (V, D) float32 on the CPU of every rank, in the order of the table.

    Raises:
        Preempted: a rank was asked to stop.
        InputError: a video cannot be read, or a feature is not a finite number.
    """
    device = distributed.device(ctx)
    encoder.to(device).eval()

    def compute(clips: Tensor) -> Tensor:
        return encoder(normalize(clips.float().div_(255.0)))[feature]  # type: ignore[no-any-return]

    features = average_over_windows(ctx, compute, table, clip, extraction).float()
    bad = int((~torch.isfinite(features).all(1)).sum())
    if bad:
        raise InputError(f"{bad} of {len(features)} videos have features that are NaN or infinite")
    return features


def mean_colors(
    ctx: StageContext, table: VideoTable, clip: ClipConfig, extraction: Extraction
) -> Tensor:
    """Mean red, green and blue of each video's clips in [0, 1]: (V, 3) float32, as above."""

    def compute(clips: Tensor) -> Tensor:
        # (B, N, C, T, H, W): all but batch and colour.
        return clips.float().mean(dim=(1, 3, 4, 5)).div_(255.0)

    return average_over_windows(ctx, compute, table, clip, extraction).float()


@torch.no_grad()
def average_over_windows(
    ctx: StageContext,
    compute: PerClip,
    table: VideoTable,
    clip: ClipConfig,
    extraction: Extraction,
) -> Tensor:
    """Mean over each video's windows of what `compute` gives; videos are shared out over ranks.

    Ranks ask each other before every batch whether to stop, also after their own share is done, so
    that they leave together.

    Returns:
        (V, D) float64 on the CPU of every rank, in the order of the table.

    Raises:
        Preempted: a rank was asked to stop; all ranks raise it together.
    """
    device = distributed.device(ctx)
    mine = list(range(ctx.rank, len(table), ctx.world_size))
    place = {row: number for number, row in enumerate(mine)}
    sums = torch.empty(0)
    batches = _batches(ctx, table, clip, extraction)
    clock = _Clock(ctx, extraction, len(table))
    for _ in range(_rounds(len(table), ctx.world_size, extraction)):
        if distributed.agree(ctx.stop_requested()):
            raise Preempted(extraction.committed_step)
        batch = next(batches, None)
        if batch is None:
            continue
        values = compute(batch.clips.to(device, non_blocking=True)).double().cpu()
        if not sums.numel():
            sums = torch.zeros(len(mine), values.shape[1], dtype=torch.float64)
        targets = torch.tensor([place[int(row)] for row in batch.videos])
        sums.index_add_(0, targets, values)
        clock.advance(len(batch))
    return _in_table_order(sums / extraction.windows, mine)


def save_features(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> Path:
    """Write features and labels as one safetensors file with a JSON description in its metadata."""
    whole = {name: value.contiguous() for name, value in tensors.items()}
    metadata = {"features": json.dumps({"schema_version": 1, **description}, sort_keys=True)}
    fsio.write_bytes(path, save(whole, metadata=metadata))
    return path


@dataclass(kw_only=False)
class _Clock:
    """Tells how far extraction is, at most every other second."""

    ctx: StageContext
    extraction: Extraction
    videos: int
    started: float = field(default_factory=time.monotonic)
    told: float = 0.0
    clips: int = 0

    def advance(self, clips: int) -> None:
        """Count clips of this rank; the others are taken to be as fast."""
        self.clips += clips
        total = self.videos * self.extraction.windows
        done = min(total, self.clips * self.ctx.world_size)
        now = time.monotonic()
        if now - self.told < PROGRESS_SECONDS and done < total:
            return
        self.told = now
        rate = done / max(now - self.started, 1e-9)
        self.ctx.report_progress(
            Progress(
                phase=self.extraction.phase,
                step=done,
                steps=total,
                clips_per_second=rate,
                seconds_left=(total - done) / rate,
            )
        )


def _batches(
    ctx: StageContext, table: VideoTable, clip: ClipConfig, extraction: Extraction
) -> Iterator[Batch]:
    loaded = eval_batches(
        table,
        clip,
        windows=extraction.windows,
        batch_size=extraction.batch_size,
        rank=ctx.rank,
        world_size=ctx.world_size,
        workers=extraction.workers,
        read_seconds=extraction.read_seconds,
        pin_memory=ctx.device == "cuda",
    )
    return (batch for batch, _, _ in loaded)


def _rounds(videos: int, world_size: int, extraction: Extraction) -> int:
    """Batches of the rank with the largest share; the others take part with empty hands."""
    share = math.ceil(videos / world_size)
    return math.ceil(share * extraction.windows / extraction.batch_size)


def _in_table_order(values: Tensor, rows: list[int]) -> Tensor:
    if not rows:
        # A rank without a video cannot know the width of a row, so it asks the others.
        values = torch.zeros(0, _widest(0), dtype=torch.float64)
    else:
        _widest(values.shape[1])
    gathered = distributed.gather_rows(values)
    order = distributed.gather_rows(torch.tensor(rows, dtype=torch.int64))
    ordered = torch.empty_like(gathered)
    ordered[order] = gathered
    return ordered


def _widest(width: int) -> int:
    widths = distributed.gather_rows(torch.tensor([width], dtype=torch.int64))
    return int(widths.max())
