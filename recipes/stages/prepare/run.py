"""Makes the table of an index one of videos that decode fast and allow exact random access."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.contract import InputError, Output, StageContext, StageResult
from recipes.data.multicamera import aligned
from recipes.stages.prepare.config import PrepareConfig
from recipes.stages.prepare.merge import merge_parts
from recipes.stages.prepare.report import write_excluded, write_manifest, write_report
from recipes.stages.prepare.rows import read_table
from recipes.stages.prepare.share import VIDEOS, prepare_rows
from recipes.stages.prepare.tally import Tally

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def run(ctx: StageContext, config: PrepareConfig) -> StageResult:
    """Prepare one data set, or merge what several jobs prepared; the first rank works.

    Leaves `prepared.parquet` (the table), `videos/`, `prepared.jsonl` (each new file with its
    source and the digests of both), `excluded.csv` and `report.md`.

    Raises:
        InputError: there is not enough disk space, parts are missing, or more than `max_bad_share`
            of the videos is unusable afterwards.
        Preempted: stop was requested; the next attempt goes on from there.
    """
    if ctx.rank != 0:
        return StageResult()
    before = read_table(ctx.one("dataset").path)
    if parts := ctx.inputs.get("parts"):
        rows, tally = merge_parts(ctx, parts, len(before), ctx.output_dir / VIDEOS)
    else:
        rows, done = prepare_rows(ctx, config, before, slice(None))
        tally = Tally.of(done)
    rows = _with_partners(rows)
    excluded = rows[rows["verdict"] == "reject"]
    metrics = _metrics(rows, tally)
    write_excluded(excluded, ctx.output_dir / "excluded.csv")
    write_report(ctx.output_dir / "report.md", config, before, rows, metrics)
    _check(excluded, len(rows), config, ctx.output_dir)
    write_manifest(rows, config, ctx.output_dir / "prepared.jsonl")
    path = ctx.output_dir / "prepared.parquet"
    rows.to_parquet(path, index=False, engine="pyarrow", compression="zstd")
    return StageResult(
        outputs={"dataset": Output(kind="dataset", path=path, meta=_meta(ctx, config, rows))},
        metrics=metrics,
        summary={"data": config.data.name, "coverage": metrics["videos"] / metrics["listed"]},
        listed_apart=frozenset({VIDEOS}),
    )


def _with_partners(rows: pd.DataFrame) -> pd.DataFrame:
    """Without videos whose other cameras were lost: the index counted on re-encoding to mend them.

    Offsets are in frames by now, and frames keep their numbers when they are re-encoded.
    """
    return aligned(rows.assign(offset_seconds=math.nan)) if "instance" in rows else rows


def _metrics(rows: pd.DataFrame, tally: Tally) -> dict[str, float]:
    """Counts of rows; bytes, hours of video and processor time count each file once."""
    usable = rows["verdict"] != "reject"
    files = rows[rows["prepared"]].drop_duplicates("path")
    return {
        "listed": float(len(rows)),
        "videos": float(usable.sum()),
        "excluded": float((~usable).sum()),
        "prepared": float(rows["prepared"].sum()),
        "encoded": float(tally.encoded),
        "reused": float(tally.reused),
        "failed": float(tally.failed),
        "hours": float((files["frames"] / files["fps"]).sum() / 3600),
        "cpu_hours": tally.cpu_seconds / 3600,
        "bytes_before": float(files["source_bytes"].sum()),
        "bytes_after": float(files["bytes"].sum()),
    }


def _check(excluded: pd.DataFrame, total: int, config: PrepareConfig, folder: Path) -> None:
    if excluded.empty:
        return
    counts = Counter(excluded["reason"]).most_common(3)
    shown = "; ".join(f"{count}x {reason}" for reason, count in counts)
    message = (
        f"{config.data.name}: {len(excluded)} of {total} videos cannot be used even after "
        f"preparing ({shown}; first: {excluded.iloc[0]['path']}); all are listed in "
        f"{folder / 'excluded.csv'}"
    )
    if len(excluded) == total or len(excluded) > config.data.max_bad_share * total:
        raise InputError(
            f"{message}. Allowed is a share of {config.data.max_bad_share:g}: mend the files, or "
            "raise max_bad_share of the data; what is prepared is not encoded again"
        )
    log.warning("%s", message)


def _meta(ctx: StageContext, config: PrepareConfig, rows: pd.DataFrame) -> dict[str, Any]:
    """The description of the index, with what has changed."""
    usable = rows[rows["verdict"] != "reject"]
    counts = {str(split): int(count) for split, count in usable["split"].value_counts().items()}
    return {
        **ctx.one("dataset").meta,
        "counts": dict(sorted(counts.items())),
        "videos": len(usable),
        "listed": len(rows),
        "excluded": len(rows) - len(usable),
        "decoder": config.decoder,
        "prepared_root": str((ctx.output_dir / VIDEOS).resolve()),
        "prepare": config.options.model_dump(exclude={"shards"}),
    }
