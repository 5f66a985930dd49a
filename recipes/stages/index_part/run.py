"""Looks at one share of a data set and leaves the rows for the index to merge."""

from __future__ import annotations

from dataclasses import replace

from recipes.contract import Output, StageContext, StageResult
from recipes.stages.index.look import list_videos, look
from recipes.stages.index.rows import to_table
from recipes.stages.index_part.config import IndexPartConfig


def run(ctx: StageContext, config: IndexPartConfig) -> StageResult:
    """Look at rows part::parts of the listing; how many may be bad is for the merge to say.

    Raises:
        InputError: lists are wrong.
        Preempted: stop was requested; the next attempt goes on from there.
    """
    if ctx.rank != 0:
        return StageResult()
    listing = list_videos(ctx, config)
    share = replace(listing, rows=listing.rows[config.part :: config.parts])
    name = f"part-{config.part}-of-{config.parts}"
    looked = look(ctx, config, share.root, share.rows, name)
    path = ctx.output_dir / "part.parquet"
    to_table(share, looked.probes).to_parquet(path, index=False)
    meta = {"part": config.part, "parts": config.parts}
    metrics = {
        "files_read": float(looked.read),
        "files_from_journal": float(looked.from_journal),
        "files_from_cache": float(looked.from_cache),
    }
    return StageResult(outputs={"part": Output(kind="part", path=path, meta=meta)}, metrics=metrics)
