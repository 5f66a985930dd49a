"""Looks at one share of a data set and leaves the rows for the index to merge."""

from __future__ import annotations

import os
from dataclasses import replace

from recipes.catalog import DATASETS, load
from recipes.contract import Output, StageContext, StageResult
from recipes.data.listing import Listing
from recipes.stages.index.run import _look, to_table
from recipes.stages.index_part.config import IndexPartConfig


def run(ctx: StageContext, config: IndexPartConfig) -> StageResult:
    """Look at rows part::parts of the listing, which is sorted by path."""
    if ctx.rank != 0:
        return StageResult()
    workers = config.workers or len(os.sched_getaffinity(0))
    listing: Listing = load(DATASETS[config.data.format].target)(
        config.data, ctx.output_dir, workers
    )
    share = replace(listing, rows=listing.rows[config.part :: config.parts])
    found = _look(ctx, share, getattr(config.data, "follow_links", False), workers)
    path = ctx.output_dir / "part.parquet"
    to_table(share, found).to_parquet(path, index=False)
    meta = {"part": config.part, "parts": config.parts}
    return StageResult(outputs={"part": Output(kind="part", path=path, meta=meta)})
