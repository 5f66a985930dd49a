"""Makes a data set a table: lists it, looks at every video, writes one row a video."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.contract import InputError, Output, StageContext, StageResult
from recipes.data.listing import Listing
from recipes.data.multicamera import aligned
from recipes.stages.index.config import IndexConfig
from recipes.stages.index.look import Looked, decoder_of, list_videos, look, mode_of
from recipes.stages.index.report import (
    kind_of,
    old_decoders,
    save_figure,
    write_excluded,
    write_report,
)
from recipes.stages.index.rows import from_parts, to_table

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def run(ctx: StageContext, config: IndexConfig) -> StageResult:
    """Index one data set, or merge what several jobs found; the first rank works.

    Leaves `index.parquet`, whose bytes depend on the files alone and not on how the work was
    divided or resumed, `excluded.csv`, `report.md` and a figure.

    Raises:
        InputError: lists are wrong, nothing is usable, or more than `max_bad_share` is not;
            `excluded.csv` and `report.md` then say which videos and why.
        Preempted: stop was requested; the next attempt goes on from there.
    """
    if ctx.rank != 0:
        return StageResult()
    listing = list_videos(ctx, config)
    if parts := ctx.inputs.get("parts"):
        looked = Looked(probes=tuple(from_parts(listing, parts)))
    else:
        for warning in old_decoders():
            log.warning("%s", warning)
        looked = look(ctx, config, listing.root, listing.rows)
    table = aligned(to_table(listing, looked.probes))
    excluded = table[table["verdict"] == "reject"]
    write_excluded(excluded, ctx.output_dir / "excluded.csv")
    write_report(ctx.output_dir / "report.md", config, table)
    _check(table, config, ctx.output_dir)
    path = ctx.output_dir / "index.parquet"
    table.to_parquet(path, index=False, engine="pyarrow", compression="zstd")
    save_figure(table, config.data.name, ctx.output_dir / "figures")
    return _result(config, listing, table, path, looked)


def _check(table: pd.DataFrame, config: IndexConfig, folder: Path) -> None:
    """Refuse a data set of which too much cannot be used, nor mended where that will be done."""
    bad = table["verdict"] == "reject"
    if config.mendable_ok:
        bad &= ~table["mendable"].astype(bool)
    excluded, total = table[bad], len(table)
    if excluded.empty:
        return
    reasons = Counter(map(kind_of, excluded["reason"]))
    shown = "; ".join(f"{count}x {reason}" for reason, count in reasons.most_common(3))
    message = (
        f"{config.data.name}: {len(excluded)} of {total} videos cannot be used ({shown}; first: "
        f"{excluded.iloc[0]['path']}); all are listed in {folder / 'excluded.csv'}"
    )
    limit = config.data.max_bad_share
    if len(excluded) == total or len(excluded) > limit * total:
        raise InputError(
            f"{message}. Allowed is a share of {limit:g}: mend the files, or raise max_bad_share "
            "of the data; files that did not change are not read again"
        )
    log.warning("%s", message)


def _result(
    config: IndexConfig, listing: Listing, table: pd.DataFrame, path: Path, looked: Looked
) -> StageResult:
    usable = table[table["verdict"] != "reject"]
    counts = {str(split): int(count) for split, count in usable["split"].value_counts().items()}
    meta: Mapping[str, Any] = {
        "name": config.data.name,
        "format": config.data.format,
        "version": config.data.version,
        "root": str(listing.root.resolve()),
        "prepared_root": None,
        "classes": list(listing.classes),
        "folds": [1, 2, 3] if "split_1" in table else [],
        "counts": dict(sorted(counts.items())),
        "videos": len(usable),
        "listed": len(table),
        "excluded": len(table) - len(usable),
        "decoder": decoder_of(config),
        "checked": mode_of(config),
    }
    metrics = {
        "videos": float(len(usable)),
        "listed": float(len(table)),
        "excluded": float(len(table) - len(usable)),
        "mendable": float(table["mendable"].sum()),
        "sequential": float((usable["verdict"] == "sequential").sum()),
        "hours": float(usable["duration"].sum() / 3600),
        "files_read": float(looked.read),
        "files_from_journal": float(looked.from_journal),
        "files_from_cache": float(looked.from_cache),
    }
    return StageResult(
        outputs={"dataset": Output(kind="dataset", path=path, meta=meta)},
        metrics=metrics,
        summary={"data": config.data.name, "coverage": len(usable) / len(table)},
    )
