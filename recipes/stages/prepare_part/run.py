"""Prepares one share of a data set and leaves its rows and files for `prepare` to merge."""

from __future__ import annotations

from recipes.contract import Output, StageContext, StageResult
from recipes.stages.prepare.rows import read_table
from recipes.stages.prepare.share import VIDEOS, prepare_rows
from recipes.stages.prepare.tally import Tally
from recipes.stages.prepare_part.config import PreparePartConfig


def run(ctx: StageContext, config: PreparePartConfig) -> StageResult:
    """Prepare rows part::parts of the index; how many may be bad is for the merge to say.

    Raises:
        InputError: there is not enough disk space.
        Preempted: stop was requested; the next attempt goes on from there.
    """
    if ctx.rank != 0:
        return StageResult()
    table = read_table(ctx.one("dataset").path)
    share = slice(config.part, None, config.parts)
    rows, done = prepare_rows(ctx, config, table, share)
    tally = Tally.of(done)
    path = ctx.output_dir / "part.parquet"
    rows.to_parquet(path, index=False, engine="pyarrow", compression="zstd")
    meta = {
        "part": config.part,
        "parts": config.parts,
        "prepared_root": str((ctx.output_dir / VIDEOS).resolve()),
        "tally": tally.to_json(),
    }
    output = Output(kind="part", path=path, meta=meta)
    return StageResult(outputs={"part": output}, listed_apart=frozenset({VIDEOS}))
