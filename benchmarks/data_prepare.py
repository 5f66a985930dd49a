"""What preparing videos gains and costs, and the two decoders beside each other (P2, P3, P14).

    python benchmarks/data_prepare.py --out benchmarks/results

Milliseconds are processor time of all threads. P2 and P3 read clips of 16 and of 32 frames, stride
2, 128 px through the loader without workers: the same samples of the same videos as they are
(340 x 256, key frames 250 apart) and prepared (short side 128, key frames 12 apart). What is read
of a prepared file grows with the clip, of the others hardly. P14 compares
the whole preparation of a file, with the proof that it is right, with `ffmpeg -preset veryfast` on
one core.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import av  # noqa: F401 - before decord, which would lend it another x264
import numpy as np
import torch
from data_videos import (
    Line,
    at_least,
    benchmark,
    in_turns,
    indexed,
    milliseconds,
    pinned,
    ratio,
    source_videos,
    tennis_clips,
)

from recipes.data.clip_config import NO_AUGMENT, ClipConfig
from recipes.data.config import PrepareOptions
from recipes.data.encode import encode
from recipes.data.loader import TrainBatches
from recipes.data.table import VideoTable, load_table

CLIPS = {n: ClipConfig(blocks=1, frames=n, stride=2, size=128) for n in (16, 32)}
SHORT_CLIP = ClipConfig(blocks=1, frames=16, stride=2, size=112)  # for the real clips of 60 frames
OPTIONS = PrepareOptions(short_side=128)
FINER = PrepareOptions(short_side=128, crf=18)
DECODERS = ("decord", "pyav")
BATCH = 8


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """Drawn videos, real clips where they are, and the cost of preparing."""
    torch.set_num_threads(1)
    raw = source_videos(folder / "raw", 2 if small else 6, 4 if small else 10)
    rounds = 1 if small else 5
    tables = [
        (
            f"340 x 256, key frames 250 apart, clips of {frames} frames",
            _reading(folder / str(frames), raw, clip, rounds),
        )
        for frames, clip in CLIPS.items()
    ]
    if real := tennis_clips(4 if small else 24):
        title = "real clips, 306 x 172, 60 frames"
        tables.append((title, _reading(folder / "real", real, SHORT_CLIP, rounds, targets=False)))
    tables.append(("preparing", _preparing(folder, raw, 1 if small else 3)))
    return tables


def _reading(
    folder: Path, raw: list[Path], clip: ClipConfig, rounds: int, targets: bool = True
) -> list[Line]:
    target = folder / "prepared"
    target.mkdir(parents=True)
    files = {"raw": raw}
    for name, options in (("prepared", OPTIONS), ("finer", FINER)):
        files[name] = [target / f"{name}-{number}.mp4" for number in range(len(raw))]
        for source, path in zip(raw, files[name], strict=True):
            encode(source, path, options, "decord")
    steps = 4
    calls: dict[str, Callable[[], object]] = {}
    for name, paths in files.items():
        for decoder in DECODERS:
            artifact = indexed(folder / f"{name}-{decoder}", paths, decoder=decoder, prepare=None)
            calls[f"{name}, {decoder}"] = _loading(load_table(artifact, "train"), clip, steps)
    with pinned(1):
        seconds = in_turns(calls, rounds, time.process_time)
    cost = {name: milliseconds(seconds, name, steps * BATCH) for name in calls}

    def line(what: str, slow: str, fast: str, target: float | None) -> Line:
        detail = f"{cost[slow]:.1f} / {cost[fast]:.1f} ms a clip"
        figure = ratio(seconds, slow, fast)
        if not targets or target is None:
            return Line(what=what, figure=figure, detail=detail)
        return at_least(what, figure, target, detail)

    return [
        line("P3: prepared against raw, decord", "raw, decord", "prepared, decord", 4.0),
        line("P3: prepared with crf 18, decord", "raw, decord", "finer, decord", None),
        line("P3: prepared against raw, PyAV", "raw, pyav", "prepared, pyav", 6.0),
        line("P3: prepared with crf 18, PyAV", "raw, pyav", "finer, pyav", None),
        line("P2: decord against PyAV, raw", "raw, pyav", "raw, decord", 0.85),
        line("P2: decord against PyAV, prepared", "prepared, pyav", "prepared, decord", 0.65),
    ]


def _loading(table: VideoTable, clip: ClipConfig, steps: int) -> Callable[[], object]:
    """A call that reads the same samples each time."""
    long = table.select(np.arange(steps * BATCH) % len(table))
    loader = TrainBatches(
        long, clip, NO_AUGMENT, seed=0, batch_size=BATCH, micro_batch=BATCH, max_steps=steps
    )
    return lambda: [None for _ in loader]


def _preparing(folder: Path, raw: list[Path], rounds: int) -> list[Line]:
    """Processor seconds a file; ffmpeg is a process of its own, so its own are counted."""
    target = folder / "again"
    target.mkdir()
    numbers = count()
    size = sum(path.stat().st_size for path in raw)
    ours, written = [], 0
    with pinned(1):
        for path in raw * rounds:
            result, began = target / f"{next(numbers)}.mp4", time.process_time()
            encode(path, result, OPTIONS, "decord")
            ours.append(time.process_time() - began)
            written += result.stat().st_size
        if not (program := shutil.which("ffmpeg")):
            absent = "the ffmpeg program is not here"
            return [Line(what="P14", figure=float("nan"), detail=absent)]
        same = ["-tune", "fastdecode", "-g", "12", "-bf", "0"]
        theirs = [_ffmpeg(program, path, target / "f.mp4", same) for path in raw * rounds]
        plain = [_ffmpeg(program, path, target / "f.mp4", []) for path in raw * rounds]
    cost = {name: 1000 * statistics.median(times) for name, times in
            (("ours", ours), ("same", theirs), ("plain", plain))}  # fmt: skip
    growth = written / rounds / size
    return [
        at_least(
            "P14: against ffmpeg -preset veryfast",
            cost["plain"] / cost["ours"],
            0.9,
            f"{cost['plain']:.0f} / {cost['ours']:.0f} ms a video",
        ),
        Line(
            what="against ffmpeg with our tune, key frames and no B-frames",
            figure=cost["same"] / cost["ours"],
            detail=f"{cost['same']:.0f} ms; it proves nothing of what it wrote",
        ),
        Line(what="bytes of the prepared files", figure=growth, unit="x the raw ones"),
    ]


def _ffmpeg(program: str, source: Path, target: Path, options: list[str]) -> float:
    words = ["-v", "error", "-y", "-threads", "1", "-i", str(source), "-vf", "scale=170:128"]
    coder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", str(OPTIONS.crf), "-threads", "1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([program, *words, *coder, *options, str(target)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    benchmark(__doc__, measure, "data_prepare")
