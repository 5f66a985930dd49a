"""The retrieval stage: are a test video's nearest training videos of its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.contract import ConfigurationError, Output, StageContext, StageResult
from recipes.data.clip_config import ClipConfig
from recipes.data.crop import centre_box, read_box
from recipes.data.table import VideoTable
from recipes.engine import distributed
from recipes.evaluation.features import Extraction, extract_features, mean_colors, save_features
from recipes.evaluation.figures import Tile, save_neighbours
from recipes.evaluation.frozen import check_frozen, digest
from recipes.evaluation.intervals import wilson_interval
from recipes.evaluation.recall import Metric, chance_recall, cutoffs, nearest, recall_at
from recipes.evaluation.subject import (
    Subject,
    calibrate,
    check_inputs,
    labelled_videos,
    open_subject,
    summary,
)
from recipes.evaluation.tables import write_csv
from recipes.stages.retrieval.config import RECALL_AT, RetrievalConfig

# Side in pixels of a frame in the picture of neighbours.
TILE_SIZE = 96


def run(ctx: StageContext, config: RetrievalConfig) -> StageResult:
    """Take features of gallery and queries, find neighbours, count hits.

    Raises:
        InputError: `recall_at` names a cut-off above the number of training videos.
        Preempted: a stop was requested; nothing is kept, the stage starts again.
    """
    distributed.init(ctx)
    subject = None if config.encoder == "mean_color" else open_subject(ctx, config)
    clip = _clip(ctx, config, subject)
    gallery = labelled_videos(ctx, config, "train", clip)
    queries = labelled_videos(ctx, config, "test", clip)
    ks = cutoffs(config.recall_at, len(gallery), explicit=config.recall_at != RECALL_AT)
    if subject is not None and config.calibrates:
        calibrate(ctx, subject, gallery, config.workers, config.read_seconds)
    before = None if subject is None else digest(subject.encoder)
    features = {
        name: _features(ctx, config, subject, table, clip, f"{name} features")
        for name, table in (("gallery", gallery), ("query", queries))
    }
    if subject is not None and before is not None:
        check_frozen(subject.encoder, before)
    if not distributed.is_main():
        return StageResult()
    return _result(ctx, config, subject, clip, (gallery, queries), features, ks)


def _clip(ctx: StageContext, config: RetrievalConfig, subject: Subject | None) -> ClipConfig:
    if subject is not None:
        return subject.clip
    check_inputs(ctx, config)
    if config.clip is None:
        raise ConfigurationError(f"encoder: {config.encoder} needs clip")
    return config.clip


def _features(
    ctx: StageContext,
    config: RetrievalConfig,
    subject: Subject | None,
    table: VideoTable,
    clip: ClipConfig,
    phase: str,
) -> Tensor:
    extraction = Extraction(
        windows=config.windows,
        batch_size=config.batch_size,
        workers=config.workers,
        read_seconds=config.read_seconds,
        phase=phase,
    )
    if subject is None:
        return mean_colors(ctx, table, clip, extraction)
    return extract_features(ctx, subject.encoder, config.feature, table, clip, extraction)


def _result(
    ctx: StageContext,
    config: RetrievalConfig,
    subject: Subject | None,
    clip: ClipConfig,
    tables: tuple[VideoTable, VideoTable],
    features: dict[str, Tensor],
    ks: Sequence[int],
) -> StageResult:
    gallery, queries = tables
    depth = min(len(gallery), max(*ks, config.num_neighbours))
    metric: Metric = "cosine" if subject is not None else "euclidean"
    neighbours = nearest(features["query"], features["gallery"], depth, metric)
    metrics = _metrics(neighbours, queries, gallery, ks)
    if subject is not None:
        metrics["frozen"] = 1.0
    ctx.log_metrics(0, metrics)
    facts = _facts(config, subject, clip, queries, metric)
    _write_neighbours(ctx, config, neighbours, gallery, queries)
    tensors = {
        "gallery.features": features["gallery"],
        "gallery.labels": torch.tensor(gallery.labels),
        "query.features": features["query"],
        "query.labels": torch.tensor(queries.labels),
    }
    path = save_features(ctx.output_dir / "features.safetensors", tensors, facts)
    output = Output(kind="features", path=path, meta=facts)
    return StageResult(outputs={"features": output}, metrics=metrics, summary=facts)


def _metrics(
    neighbours: Tensor, queries: VideoTable, gallery: VideoTable, ks: Sequence[int]
) -> dict[str, float]:
    labels, gallery_labels = torch.tensor(queries.labels), torch.tensor(gallery.labels)
    metrics: dict[str, float] = {}
    for k in ks:
        metrics[f"R@{k}"] = recall_at(neighbours, labels, gallery_labels, k)
    for k in ks:
        metrics[f"chance_R@{k}"] = chance_recall(labels, gallery_labels, k)
    first = f"R@{ks[0]}"
    low, high = wilson_interval(metrics[first], len(queries))
    metrics |= {f"{first}_low": low, f"{first}_high": high}
    return metrics | {
        "chance": metrics[f"chance_{first}"],
        "num_test": float(len(queries)),
        "num_gallery": float(len(gallery)),
        "num_classes": float(len(gallery.classes)),
        "coverage": queries.coverage,
    }


def _facts(
    config: RetrievalConfig,
    subject: Subject | None,
    clip: ClipConfig,
    queries: VideoTable,
    metric: str,
) -> dict[str, Any]:
    notes = [f"training videos as gallery, {metric}", f"mean of {config.windows} windows"]
    if config.calibrates:
        notes.append("batch-norm statistics calibrated")
    if subject is not None and config.feature == "context":
        notes.append("context feature")
    return summary(
        config,
        clip,
        queries,
        protocol="retrieval",
        method="mean_color" if subject is None else subject.description.method,
        backbone=None if subject is None else subject.description.backbone.name,
        pretrain_data=None if subject is None else subject.description.pretrain_data,
        feature="color" if subject is None else config.feature,
        note="; ".join(notes),
    )


def _write_neighbours(
    ctx: StageContext,
    config: RetrievalConfig,
    neighbours: Tensor,
    gallery: VideoTable,
    queries: VideoTable,
) -> None:
    """`neighbours.csv` with the nearest ones of every query, and a picture of some."""
    depth = min(config.num_neighbours, neighbours.shape[1])
    shown = neighbours[:, :depth].tolist()
    rows = (
        (*_named(queries, query), rank, *_named(gallery, row))
        for query, found in enumerate(shown)
        for rank, row in enumerate(found, start=1)
    )
    header = ("query", "class", "rank", "neighbour", "neighbour_class")
    write_csv(ctx.output_dir / "neighbours.csv", header, rows)
    count = min(config.num_queries, len(queries))
    if not count:
        return
    chosen = np.linspace(0, len(queries) - 1, count).round().astype(int).tolist()
    grid = [_tiles(query, shown[query], gallery, queries) for query in dict.fromkeys(chosen)]
    title = f"{queries.name}: test videos and their nearest training videos"
    save_neighbours(ctx.output_dir / "figures" / "neighbours.png", grid, title)


def _named(table: VideoTable, row: int) -> tuple[str, str]:
    return table.paths[row], table.classes[table.labels[row]]


def _tiles(
    query: int, found: Sequence[int], gallery: VideoTable, queries: VideoTable
) -> list[Tile]:
    label = int(queries.labels[query])
    tiles = [Tile(frame=_middle_frame(queries, query), caption=queries.classes[label])]
    for row in found:
        other = int(gallery.labels[row])
        frame = _middle_frame(gallery, row)
        tiles.append(Tile(frame=frame, caption=gallery.classes[other], right=other == label))
    return tiles


def _middle_frame(table: VideoTable, row: int) -> NDArray[np.uint8]:
    middle = np.array([int(table.frames[row]) // 2], dtype=np.int64)
    box = centre_box(int(table.heights[row]), int(table.widths[row]))
    frame: NDArray[np.uint8] = read_box(table, row, middle, box, TILE_SIZE)[0]
    return frame
