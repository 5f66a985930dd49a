"""Makes a data set a table: lists it, looks at every video, writes one row a video."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.catalog import DATASETS, load
from recipes.contract import (
    InputError,
    Output,
    Preempted,
    Progress,
    StageContext,
    StageResult,
)
from recipes.data.confine import refusals
from recipes.data.listing import Listing
from recipes.data.multicamera import aligned, manifest_columns
from recipes.data.probe import Probe, probe, reject
from recipes.data.workers import map_expendable
from recipes.stages.index.config import IndexConfig

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_SECONDS_A_VIDEO = 900
_PROGRESS_EVERY = 20
_COLUMNS_FOUND = (
    "frames",
    "fps",
    "width",
    "height",
    "codec",
    "gop",
    "b_frames",
    "verdict",
    "reason",
)


def run(ctx: StageContext, config: IndexConfig) -> StageResult:
    """Index one data set; the first rank works, the others have nothing to do.

    Raises:
        InputError: lists are wrong, nothing is usable, or more than `max_bad_share` is not;
            `excluded.csv` then says which videos and why.
        Preempted: stop was requested; the next attempt starts over.
    """
    if ctx.rank != 0:
        return StageResult()
    workers = config.workers or len(os.sched_getaffinity(0))
    listing: Listing = load(DATASETS[config.data.format].target)(
        config.data, ctx.output_dir, workers
    )
    found = _look(ctx, listing, getattr(config.data, "follow_links", False), workers)
    table = aligned(to_table(listing, found))
    excluded = table[table["verdict"] == "reject"]
    excluded[["path", "label", "split", "reason"]].to_csv(
        ctx.output_dir / "excluded.csv", index=False
    )
    _check(excluded, len(table), config.data.name, config.data.max_bad_share, ctx.output_dir)
    path = ctx.output_dir / "index.parquet"
    table.to_parquet(path, index=False, engine="pyarrow", compression="zstd")
    _figure(table, config.data.name, ctx.output_dir / "figures")
    return _result(config, listing, table, path)


def to_table(listing: Listing, found: Sequence[Probe]) -> pd.DataFrame:
    """One row a listed video, sorted by path; the columns consumers rely on."""
    import pandas as pd

    ids = {label: number for number, label in enumerate(listing.classes)}
    columns: dict[str, list[Any]] = {
        "path": [row.path for row in listing.rows],
        "label": [row.label for row in listing.rows],
        "label_id": [ids.get(row.label, -1) for row in listing.rows],
        "split": [row.split for row in listing.rows],
        "group": [row.group for row in listing.rows],
    }
    if listing.rows[0].folds is not None:
        for fold in range(3):
            columns[f"split_{fold + 1}"] = [row.folds[fold] for row in listing.rows if row.folds]
    columns |= manifest_columns(listing.rows)
    probes = [asdict(one) for one in found]
    for name in (*_COLUMNS_FOUND, "bytes", "mtime_ns"):
        columns[name] = [one[name] for one in probes]
    return pd.DataFrame(columns)


def _look(ctx: StageContext, listing: Listing, follow_links: bool, workers: int) -> list[Probe]:
    paths = [row.path for row in listing.rows]
    refused = refusals(listing.root, paths, follow_links)
    allowed = [listing.root / path for path in paths if path not in refused]

    def on_result(done: int) -> None:
        if ctx.stop_requested():
            raise Preempted(0)
        if done % _PROGRESS_EVERY == 0 or done == len(allowed):
            ctx.report_progress(Progress(phase="index", step=done, steps=len(allowed)))

    looked = map_expendable(
        probe,
        allowed,
        workers=workers,
        seconds=_SECONDS_A_VIDEO,
        crashed=_crashed,
        on_result=on_result,
    )
    found = dict(zip(allowed, looked, strict=True))
    return [
        reject(refused[path]) if path in refused else found[listing.root / path] for path in paths
    ]


def _crashed(path: Path) -> Probe:
    return reject(f"crashed the decoder or took more than {_SECONDS_A_VIDEO} s")


def _check(
    excluded: pd.DataFrame, total: int, name: str, max_bad_share: float, folder: Path
) -> None:
    if len(excluded) == 0:
        return
    reasons = Counter(excluded["reason"])
    shown = "; ".join(f"{count}x {reason}" for reason, count in reasons.most_common(3))
    message = (
        f"{name}: {len(excluded)} of {total} videos cannot be used ({shown}; first: "
        f"{excluded.iloc[0]['path']}); all are listed in {folder / 'excluded.csv'}"
    )
    if len(excluded) == total or len(excluded) > max_bad_share * total:
        raise InputError(
            f"{message}. Allowed is a share of {max_bad_share:g}: mend the files, or raise "
            "max_bad_share of the data"
        )
    log.warning("%s", message)


def _result(config: IndexConfig, listing: Listing, table: pd.DataFrame, path: Path) -> StageResult:
    usable = table[table["verdict"] != "reject"]
    counts = {str(split): int(count) for split, count in usable["split"].value_counts().items()}
    meta: Mapping[str, Any] = {
        "name": config.data.name,
        "format": config.data.format,
        "version": config.data.version,
        "root": str(listing.root.resolve()),
        "classes": list(listing.classes),
        "folds": [1, 2, 3] if "split_1" in table else [],
        "counts": dict(sorted(counts.items())),
        "videos": len(usable),
        "listed": len(table),
    }
    metrics = {
        "videos": float(len(usable)),
        "listed": float(len(table)),
        "excluded": float(len(table) - len(usable)),
        "sequential": float((usable["verdict"] == "sequential").sum()),
        "hours": float((usable["frames"] / usable["fps"].where(usable["fps"] > 0)).sum() / 3600),
    }
    return StageResult(
        outputs={"dataset": Output(kind="dataset", path=path, meta=meta)},
        metrics=metrics,
        summary={"data": config.data.name, "coverage": len(usable) / len(table)},
    )


def _figure(table: pd.DataFrame, name: str, folder: Path) -> None:
    """Videos of each class by split, and how long they are."""
    from matplotlib.figure import Figure

    usable = table[table["verdict"] != "reject"]
    counts = usable.groupby(["label", "split"]).size().unstack(fill_value=0)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bottom = None
    for split in counts.columns:
        left.bar(range(len(counts)), counts[split], bottom=bottom, label=str(split))
        bottom = counts[split] if bottom is None else bottom + counts[split]
    left.set(title=f"{name}: {len(usable)} videos, {len(counts)} classes", ylabel="videos")
    if len(counts) <= 20:
        left.set_xticks(range(len(counts)), [str(label) for label in counts.index], rotation=60)
    else:
        left.set_xlabel("class, in alphabetical order")
    left.legend()
    right.hist(usable["frames"], bins=40)
    right.set(title="length", xlabel="frames", ylabel="videos")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "videos.png", dpi=120)
