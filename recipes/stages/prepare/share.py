"""Prepares the videos of some rows of an index: all of them, or one job's share.

The results lie in the output folder of the stage, under the names of their sources: training
depends on them, so they live as long as the stage does. The cache holds only a second name (a hard
link) of each, found by the digest of the source: another stage that prepares the same files in the
same way links them and encodes nothing, and an emptied cache loses nothing. Where the file system
has no hard links between folders, nothing is cached.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import fsio
from recipes.contract import InputError, Preempted, Progress, StageContext
from recipes.data.workers import each_expendable
from recipes.stages.prepare.config import PrepareConfig
from recipes.stages.prepare.disk import DiskEstimate, full_disk_explained, num_trials, work_of
from recipes.stages.prepare.journal import Journal
from recipes.stages.prepare.one import Done, Task, crashed, prepare_one, settings_of
from recipes.stages.prepare.rows import target_names, updated, wanted

if TYPE_CHECKING:
    import pandas as pd

VIDEOS = "videos"  # folder of the results in the output folder

_PARTIAL = "partial"  # folder of files being written
_SECONDS_A_VIDEO = 900
_PIXELS_A_SECOND = 30e6  # of the source: a tenth of what one core decodes
_REPORT_EVERY = 20  # videos


def prepare_rows(
    ctx: StageContext, config: PrepareConfig, table: pd.DataFrame, share: slice
) -> tuple[pd.DataFrame, list[Done]]:
    """Prepare what the options ask for among the rows `share` of an index.

    Args:
        ctx: of the stage; its checkpoint folder keeps what was done when an attempt ends early.
        config: options, data set and number of processes.
        table: all rows of the index.
        share: those this job works on.

    Returns:
        The rows as they are afterwards, and what became of each file.

    Raises:
        InputError: there is not enough disk space.
        Preempted: stop was requested; the next attempt goes on from there.
    """
    rows = table.iloc[share]
    chosen = rows[wanted(rows, config.options.files)].drop_duplicates("path")
    tasks = _tasks(ctx, config, chosen, target_names(table["path"]))
    partial = ctx.output_dir / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
    fsio.make_dir(partial)
    try:
        finished = _work(ctx, config, tasks, _patience(chosen))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    names = {task.path: str(task.target.relative_to(ctx.output_dir / VIDEOS)) for task in tasks}
    return updated(rows, finished, names, config.options), list(finished.values())


def _tasks(
    ctx: StageContext, config: PrepareConfig, chosen: pd.DataFrame, names: Mapping[str, str]
) -> list[Task]:
    root = Path(ctx.one("dataset").meta["root"])
    cache = ctx.cache_dir / "prepared" / settings_of(config.options)
    return [
        Task(
            source=root / row["path"],
            path=row["path"],
            bytes=row["bytes"],
            mtime_ns=row["mtime_ns"],
            sha256=row["sha256"],
            frames=row["frames"] if row["checked"] == "full" else 0,
            fps=row["fps"],
            target=ctx.output_dir / VIDEOS / names[row["path"]],
            partial=ctx.output_dir / _PARTIAL,
            cache=cache,
            options=config.options,
            decoder=config.decoder,
            work=work_of(row["height"], row["width"], row["frames"], config.options.short_side),
        )
        for row in chosen.to_dict("records")
    ]


def _patience(chosen: pd.DataFrame) -> int:
    """Seconds after which a process is taken for hung: enough for the longest of the videos."""
    pixels = (chosen["height"] * chosen["width"] * chosen["frames"]).max() if len(chosen) else 0
    return _SECONDS_A_VIDEO + int(pixels / _PIXELS_A_SECOND)


def _work(
    ctx: StageContext, config: PrepareConfig, tasks: list[Task], seconds: int
) -> dict[str, Done]:
    """Do the tasks that are not done yet in other processes; all that is done, by path."""
    journal = Journal(ctx.checkpoint_dir / "prepared.jsonl", settings_of(config.options))
    finished = journal.load(tasks)
    todo = _in_order([task for task in tasks if task.path not in finished])
    estimate = DiskEstimate(
        folder=ctx.output_dir, videos_left=len(tasks), work_left=sum(task.work for task in tasks)
    )
    for task in tasks:
        if task.path in finished:
            estimate.add(finished[task.path], task.work)
    report = _reporter(ctx, estimate)

    def stop_if_asked() -> None:
        if ctx.stop_requested():
            raise Preempted(len(finished))

    results = each_expendable(
        prepare_one,
        todo,
        workers=config.workers or len(os.sched_getaffinity(0)),
        seconds=seconds,
        crashed=crashed,
        on_wait=stop_if_asked,
    )
    with full_disk_explained(estimate), contextlib.closing(results):
        report()
        for number, done in results:
            if done.full:
                raise InputError(estimate.message(done.problem))
            journal.append(done)
            finished[done.path] = done
            estimate.add(done, todo[number].work)
            report()
    return {task.path: finished[task.path] for task in tasks}


def _in_order(tasks: list[Task]) -> list[Task]:
    """First a few taken evenly from all, for the estimate; then the long ones first.

    A long video that comes last would keep one process busy and leave the others idle.
    """
    trials = tasks[:: max(1, len(tasks) // max(1, num_trials(len(tasks))))]
    trials = trials[: num_trials(len(tasks))]
    taken = {task.path for task in trials}
    rest = [task for task in tasks if task.path not in taken]
    return trials + sorted(rest, key=lambda task: -task.work)


def _reporter(ctx: StageContext, estimate: DiskEstimate) -> Callable[[], None]:
    """A function to be called after each video: tells the progress and looks at the disk."""
    started, work_before = time.monotonic(), estimate.work_left
    videos = estimate.videos_done + estimate.videos_left
    every = min(_REPORT_EVERY, max(1, num_trials(videos)))

    def report() -> None:
        if estimate.videos_done % every and estimate.videos_left:
            return
        estimate.check()
        worked = work_before - estimate.work_left
        left = (time.monotonic() - started) * estimate.work_left / worked if worked else None
        done = estimate.videos_done
        ctx.report_progress(Progress(phase="prepare", step=done, steps=videos, seconds_left=left))

    return report
