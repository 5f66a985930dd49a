"""Joins what several jobs prepared into one table and one folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import fsio
from recipes.contract import Artifact, InputError, Preempted, Progress, StageContext
from recipes.stages.prepare.one import FULL, link_or_copy
from recipes.stages.prepare.rows import read_table
from recipes.stages.prepare.tally import Tally

if TYPE_CHECKING:
    import pandas as pd

_THREADS = 8  # a link on a network file system is mostly waiting
_REPORT_EVERY = 500  # files


def merge_parts(
    ctx: StageContext, parts: Sequence[Artifact], num_rows: int, videos: Path
) -> tuple[pd.DataFrame, Tally]:
    """Rows of all parts in the order of the index; their files get a name in `videos`.

    The files are linked, not moved: the parts stay what their records say. Where links are not
    possible they are copied.

    Raises:
        InputError: the parts are not those of this index, or a copy does not fit on the disk.
        Preempted: stop was requested; the next attempt goes on from there.
    """
    ordered = sorted(parts, key=lambda part: int(part.meta["part"]))
    numbers = [int(part.meta["part"]) for part in ordered]
    counts = {int(part.meta["parts"]) for part in ordered}
    if counts != {len(parts)} or numbers != list(range(len(parts))):
        raise InputError(f"parts {numbers} of {sorted(counts)} were given: all parts are needed")
    tables = [read_table(part.path) for part in ordered]
    rows = _interleaved(tables, num_rows)
    roots = [Path(part.meta["prepared_root"]) for part in ordered]
    sources = {
        path: root / path
        for table, root in reversed(list(zip(tables, roots, strict=True)))
        for path in table.loc[table["prepared"], "path"]
    }
    _place(ctx, sources, videos)
    return _as_placed(rows, videos), sum((Tally.of_part(part) for part in ordered), Tally())


def _interleaved(tables: Sequence[pd.DataFrame], num_rows: int) -> pd.DataFrame:
    """Part k of n has rows k, k + n, k + 2n, ... of the index."""
    import pandas as pd

    expected = [len(range(part, num_rows, len(tables))) for part in range(len(tables))]
    found = [len(table) for table in tables]
    if found != expected:
        raise InputError(f"the parts have {found} rows, {expected} were expected of this index")
    placed = [
        table.set_axis(range(part, num_rows, len(tables))) for part, table in enumerate(tables)
    ]
    return pd.concat(placed).sort_index()


def _place(ctx: StageContext, sources: dict[str, Path], videos: Path) -> None:
    def place(path: str) -> None:
        _place_one(sources[path], videos / path)

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for number, _ in enumerate(pool.map(place, sources), start=1):
                if ctx.stop_requested():
                    raise Preempted(0)
                if number % _REPORT_EVERY == 0 or number == len(sources):
                    progress = Progress(phase="merge", step=number, steps=len(sources))
                    ctx.report_progress(progress)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise InputError(
                f"not enough disk space in {videos}: {os.strerror(error.errno)}. The parts cannot "
                "be linked there, so they are copied; free space, then submit again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _place_one(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    fsio.make_dir(target.parent)
    partial = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        link_or_copy(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _as_placed(rows: pd.DataFrame, videos: Path) -> pd.DataFrame:
    """Rows that share a file say the same of it: two parts may have encoded it separately."""
    files = rows[rows["prepared"]].drop_duplicates("path")
    found = {str(path): (videos / path).stat() for path in files["path"]}
    sizes = {path: stat.st_size for path, stat in found.items()}
    times = {path: stat.st_mtime_ns for path, stat in found.items()}
    digests = dict(zip(files["path"], files["sha256"], strict=True))
    columns: dict[str, dict[str, Any]] = {"bytes": sizes, "mtime_ns": times, "sha256": digests}
    for column, values in columns.items():
        rows.loc[rows["prepared"], column] = rows.loc[rows["prepared"], "path"].map(values)
    return rows
