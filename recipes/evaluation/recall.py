"""Exact nearest neighbours among feature vectors, and recall at k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from recipes.contract import InputError

Metric = Literal["cosine", "euclidean"]

# Rows of a block of similarities: 256 x 240,000 gallery videos are 0.25 GB in fp32.
QUERY_CHUNK = 256


def nearest(
    queries: Tensor, gallery: Tensor, k: int, metric: Metric = "cosine", chunk: int = QUERY_CHUNK
) -> Tensor:
    """The k nearest gallery rows of each query, nearest first; exact.

    Gallery rows at equal distance come in the order of the gallery, whatever `chunk` is.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        k: 1 <= k <= G.
        metric: `cosine` similarity or `euclidean` distance.
        chunk: queries compared at a time; bounds memory.

    Returns:
        (Q, k) int64 row numbers of the gallery.

    Raises:
        InputError: k exceeds the gallery, widths differ, a feature is NaN or infinite, or a
            feature is zero and has no direction (cosine).
    """
    _check(queries, gallery, k)
    if metric == "cosine":
        queries, gallery = _unit(queries, "query"), _unit(gallery, "gallery")
    rows = []
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        near = part @ gallery.T if metric == "cosine" else -torch.cdist(part, gallery)
        rows.append(_largest(near, k))
    return torch.cat(rows) if rows else torch.empty(0, k, dtype=torch.int64)


def recall_at(neighbours: Tensor, labels: Tensor, gallery_labels: Tensor, k: int) -> float:
    """Share of queries with one of their k nearest gallery rows in their class.

    Args:
        neighbours: (Q, n) row numbers of the gallery, nearest first, n >= k.
        labels: (Q,) classes of the queries.
        gallery_labels: (G,) classes of the gallery.
        k: cut-off.

    Raises:
        InputError: k exceeds the neighbours at hand.
        ValueError: shapes do not fit, or there is no query.
    """
    if not 1 <= k <= neighbours.shape[1]:
        raise InputError(f"R@{k} needs {k} neighbours; there are {neighbours.shape[1]}")
    if len(labels) != len(neighbours) or not len(labels):
        raise ValueError(f"{len(neighbours)} queries do not fit {len(labels)} labels")
    hits = gallery_labels[neighbours[:, :k]] == labels[:, None]
    return float(hits.any(1).double().mean())


def chance_recall(labels: Tensor, gallery_labels: Tensor, k: int) -> float:
    """R@k of k gallery videos drawn at random without replacement, the mean over the queries.

    For a query whose class has m of the G gallery videos it is 1 - C(G-m, k) / C(G, k).
    """
    total = len(gallery_labels)
    num_classes = int(max(labels.max(), gallery_labels.max())) + 1
    same = gallery_labels.bincount(minlength=num_classes)[labels].double()
    draws = torch.arange(k, dtype=torch.float64)
    misses = ((total - same[:, None] - draws).clamp(min=0) / (total - draws)).prod(1)
    return float((1 - misses).mean())


def cutoffs(wanted: Sequence[int], gallery_size: int, explicit: bool) -> tuple[int, ...]:
    """The cut-offs that a gallery of this size has.

    Raises:
        InputError: a cut-off the user named exceeds the gallery, or none is left.
    """
    fits = tuple(k for k in wanted if k <= gallery_size)
    if not fits or (explicit and len(fits) < len(wanted)):
        raise InputError(
            f"recall_at {list(wanted)} exceeds the gallery of {gallery_size} training videos; "
            f"use cut-offs up to {gallery_size}"
        )
    return fits


def _largest(near: Tensor, k: int) -> Tensor:
    # topk leaves the order of equal values open, and so which of them it takes; a stable sort of
    # those at or above the k-th value settles both, and only rows with a tie at the edge need it.
    values, rows = near.topk(k, dim=1)
    order = rows.sort(dim=1)[1]
    rows, values = rows.gather(1, order), values.gather(1, order)
    rows = rows.gather(1, values.sort(dim=1, descending=True, stable=True)[1])
    edge = values.min(1).values
    for row in ((near >= edge[:, None]).sum(1) > k).nonzero().flatten().tolist():
        rows[row] = near[row].sort(descending=True, stable=True)[1][:k]
    return rows


def _unit(features: Tensor, what: str) -> Tensor:
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    if not (lengths > 0).all():
        count = int((lengths <= 0).sum())
        raise InputError(f"{count} {what} features are zero and have no direction to compare")
    unit: Tensor = features / lengths
    return unit


def _check(queries: Tensor, gallery: Tensor, k: int) -> None:
    if not 1 <= k <= len(gallery):
        raise InputError(f"{k} nearest neighbours of a gallery of {len(gallery)} do not exist")
    if queries.shape[1:] != gallery.shape[1:]:
        raise InputError(
            f"queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)} differ in width"
        )
    for what, features in (("query", queries), ("gallery", gallery)):
        bad = int((~torch.isfinite(features).all(1)).sum())
        if bad:
            raise InputError(f"{bad} of {len(features)} {what} features hold NaN or infinity")
