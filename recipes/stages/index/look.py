"""Looks at the videos of a listing, or of one job's share of it, in processes of their own."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.catalog import DATASETS, load
from recipes.contract import Preempted, Progress, StageContext
from recipes.data.confine import refusals
from recipes.data.listing import Listing, VideoRow
from recipes.data.probe import Probe, probe, reject
from recipes.data.workers import each_expendable
from recipes.stages.index.config import IndexConfig
from recipes.stages.index.known import Cache, Journal, signature, states

log = logging.getLogger(__name__)

SECONDS_A_VIDEO = 900
_PROGRESS_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One probe a row, and of how many files it was known from before or found now."""

    probes: tuple[Probe, ...]
    from_journal: int = 0
    from_cache: int = 0
    read: int = 0


def decoder_of(config: IndexConfig) -> str:
    """The decoder that training will read these videos with."""
    return str(getattr(config.data, "decoder", "decord"))


def mode_of(config: IndexConfig) -> str:
    """`full` or `demux`."""
    options = getattr(config.data, "index", None)
    return "full" if options is None else str(options.mode)


def workers_of(config: IndexConfig) -> int:
    """Processes: as asked for, else one for each core of the job."""
    return config.workers or len(os.sched_getaffinity(0))


def list_videos(ctx: StageContext, config: IndexConfig) -> Listing:
    """What the data set says it consists of, sorted by path."""
    scan = load(DATASETS[config.data.format].target)
    listing: Listing = scan(config.data, ctx.output_dir, workers_of(config))
    return listing


def look(
    ctx: StageContext,
    config: IndexConfig,
    root: Path,
    rows: Sequence[VideoRow],
    share: str = "all",
) -> Looked:
    """Look at each file of `rows` once, those known from before excepted.

    Paths that could lead a decoder outside of the root are refused without being opened.

    Raises:
        Preempted: stop was requested; the next attempt goes on from there.
    """
    follow_links = bool(getattr(config.data, "follow_links", False))
    refused = refusals(root, [row.path for row in rows], follow_links)
    paths = [path for path in dict.fromkeys(row.path for row in rows) if path not in refused]
    signed = signature(mode_of(config), decoder_of(config))
    journal = Journal(ctx.checkpoint_dir / "index.jsonl", signed)
    present = states(root, paths)
    found = journal.load(present)
    from_journal = len(found)
    # Videos that the stage draws itself are new every time.
    cache = None
    if hasattr(config.data, "index"):
        cache = Cache.of(ctx.cache_dir, root, signed, share)
        found = {**cache.load(present), **found}
    from_cache = len(found) - from_journal
    todo = [path for path in paths if path not in found]
    if found:
        log.info("%d files are known from before, %d are looked at", len(found), len(todo))
    _read(ctx, config, root, todo, found, journal)
    if cache is not None:
        cache.save(found)
    probes = [reject(refused[row.path]) if row.path in refused else found[row.path] for row in rows]
    return Looked(
        probes=tuple(probes), from_journal=from_journal, from_cache=from_cache, read=len(todo)
    )


def _read(
    ctx: StageContext,
    config: IndexConfig,
    root: Path,
    todo: Sequence[str],
    found: dict[str, Probe],
    journal: Journal,
) -> None:
    """Look at the files of `todo`, adding to `found` and to the journal."""
    known, started = len(found), time.monotonic()

    def stop_if_asked() -> None:
        if ctx.stop_requested():
            raise Preempted(len(found))

    results = each_expendable(
        functools.partial(probe, decoder=decoder_of(config), mode=mode_of(config)),
        [root / path for path in todo],
        workers=workers_of(config),
        seconds=SECONDS_A_VIDEO,
        crashed=_crashed,
        on_wait=stop_if_asked,
    )
    with contextlib.closing(results):
        for number, one in results:
            found[todo[number]] = one
            journal.append(todo[number], one)
            done = len(found) - known
            if done % _PROGRESS_EVERY == 0 or done == len(todo):
                left = (time.monotonic() - started) / done * (len(todo) - done)
                ctx.report_progress(
                    Progress(
                        phase="index", step=len(found), steps=known + len(todo), seconds_left=left
                    )
                )
            stop_if_asked()


def _crashed(path: Path) -> Probe:
    return reject(f"crashed the decoder or took more than {SECONDS_A_VIDEO} s")
