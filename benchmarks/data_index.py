"""Cost of looking at files and of opening an index of many (P11, P13).

    python benchmarks/data_index.py --out benchmarks/results

Milliseconds of P13 are processor time of one core: the look at a file against a plain full decode
with PyAV, and the look at its packets alone. P11 times, by the clock and in a fresh process, the
reading of an index of 240,000 rows and the first batch of an epoch of a million videos, at its
start and far into it.

A look in mode `full` opens the file with the decoder of training and reads a frame of its last
group of pictures; a look in mode `demux` opens it with PyAV. What these alone take is shown as a
floor: it is the same for short and for long videos.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av  # before decord, which would lend it another x264
import decord
import pandas as pd
from data_videos import (
    Line,
    at_least,
    at_most,
    benchmark,
    in_turns,
    indexed,
    milliseconds,
    natural_video,
    pinned,
    ratio,
    source_videos,
    tennis_clips,
)

from recipes.contract import Artifact
from recipes.data.demux import open_for_packets
from recipes.data.probe import probe

ROWS, EPOCH = 240_000, 1_000_000

# Runs in a process of its own: imports are not counted, caches are those of a first use.
READ = """
import json, sys, time
from pathlib import Path
import pandas, pyarrow.parquet, torch
from recipes.contract import Artifact
from recipes.data.clip_config import NO_AUGMENT, ClipConfig
from recipes.data.loader import TrainBatches
from recipes.data.table import load_table
given = json.loads(sys.argv[1])
artifact = Artifact(**{**given, "path": Path(given["path"])})
began = time.perf_counter()
table = load_table(artifact, "train")
read = time.perf_counter() - began
seconds = []
for step in json.loads(sys.argv[2]):
    began = time.perf_counter()
    loader = TrainBatches(table, ClipConfig(frames=8, size=64), NO_AUGMENT, seed=0, batch_size=8,
                          micro_batch=8, start_step=step, epochs=3)
    next(iter(loader))
    seconds.append(time.perf_counter() - began)
print(json.dumps([read, *seconds, len(table)]))
"""


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """P13, then P11."""
    raw = source_videos(folder / "raw", 2 if small else 4, 3 if small else 10)
    rounds = 1 if small else 5
    tables = [("P13: looking at a file of 10 s, 340 x 256", _looking(raw, rounds))]
    if real := tennis_clips(2 if small else 12):
        tables.append(("P13: real clips of 2 s, 306 x 172", _looking(real, rounds)))
    old = [_avi(folder / f"{number}.avi", number, 60 if small else 180) for number in range(2)]
    tables.append(("P13: AVI as UCF101 has it, MPEG-4, 7 s, 340 x 256", _looking(old, rounds)))
    artifact = indexed(folder / "all", raw, prepare=None)
    many = _repeated(artifact, folder / "many.parquet", 2000 if small else ROWS)
    epoch = 5000 if small else EPOCH
    million = _repeated(artifact, folder / "million.parquet", epoch)
    runs = 1 if small else 3
    tables.append(("P11: an index that is there", _opening(many, million, epoch // 8, runs)))
    return tables


def _avi(path: Path, seed: int, count: int) -> Path:
    """MPEG-4 decodes four times as fast as H.264, so that everything else weighs more."""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 256, 340, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.bit_rate = 100, 400_000
        for picture in natural_video(seed, count):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return path


def _looking(paths: list[Path], rounds: int) -> list[Line]:
    def over(look: Callable[[Path], object]) -> Callable[[], object]:
        return lambda: [look(path) for path in paths] and None

    calls = {
        "decode": over(_decode),
        "full": over(probe),
        "full, PyAV": over(lambda path: probe(path, "pyav")),
        "demux": over(lambda path: probe(path, "decord", "demux")),
        "decord": over(_one_frame),
        "open": over(_open),
    }
    with pinned(1):
        seconds = in_turns(calls, rounds, time.process_time)
    cost = {name: milliseconds(seconds, name, len(paths)) for name in calls}
    lines = []
    for name in ("full", "full, PyAV"):
        detail = f"{cost[name]:.1f} / {cost['decode']:.1f} ms"
        slower = ratio(seconds, name, "decode")
        lines.append(at_most(f"{name} against a plain decode", slower, 1.1, "x", detail))
    floor = 1 + ratio(seconds, "decord", "decode")
    detail = f"decord takes {cost['decord']:.1f} ms to open a file and give one frame"
    lines.append(
        Line(what="floor: a plain decode, one frame by decord", figure=floor, detail=detail)
    )
    faster = ratio(seconds, "full", "demux")
    lines.append(at_least("demux against full", faster, 30.0, f"{cost['demux']:.2f} ms"))
    most = ratio(seconds, "full", "open")
    detail = f"PyAV takes {cost['open']:.2f} ms to open a file"
    return [*lines, Line(what="ceiling: opening against full", figure=most, detail=detail)]


def _one_frame(path: Path) -> None:
    reader = decord.VideoReader(str(path), num_threads=1)
    reader.get_batch([reader.get_key_indices()[-1]]).asnumpy()


def _open(path: Path) -> None:
    with open_for_packets(path, parse=False):
        pass


def _decode(path: Path) -> int:
    """All frames in order, damage as an error, nothing done with them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        stream.codec_context.options = {"err_detect": "explode"}
        return sum(1 for _ in container.decode(stream))


def _repeated(artifact: Artifact, path: Path, count: int) -> Artifact:
    """A table of so many rows, each with a path of its own; links stand for the files."""
    frame = pd.read_parquet(artifact.path)
    rows = frame.iloc[[number % len(frame) for number in range(count)]].reset_index(drop=True)
    # "./" as often as it takes: other texts, the same file.
    rows["path"] = ["./" * (n // len(frame) % 8) + one for n, one in enumerate(rows["path"])]
    rows["group"] = [f"group{number:07d}" for number in range(count)]
    rows["sha256"] = [f"{number:064x}" for number in range(count)]
    rows.to_parquet(path, index=False, engine="pyarrow", compression="zstd")
    return replace(artifact, path=path)


def _opening(many: Artifact, million: Artifact, epoch: int, runs: int) -> list[Line]:
    """`epoch` is its number of steps."""
    read = [_in_process(many, [])[0] for _ in range(runs)]
    steps = {"the start": 0, "step 62,500": epoch // 2, "the end of the third": 3 * epoch - 10}
    first = [_in_process(million, list(steps.values())) for _ in range(runs)]
    lines = [at_most(f"read {ROWS:,} rows", min(read), 2.0, "s", f"largest {max(read):.2f} s")]
    for number, place in enumerate(steps):
        seconds = [run[number + 1] for run in first]
        what = f"first batch at {place} of epochs of {EPOCH:,} videos"
        lines.append(at_most(what, min(seconds), 5.0, "s", f"largest {max(seconds):.2f} s"))
    return lines


def _in_process(artifact: Artifact, steps: list[int]) -> list[float]:
    given: dict[str, Any] = {
        "name": "dataset",
        "kind": "dataset",
        "path": str(artifact.path),
        "sha256": "",
        "bytes": 0,
        "meta": dict(artifact.meta),
    }
    command = [sys.executable, "-c", READ, json.dumps(given), json.dumps(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


if __name__ == "__main__":
    benchmark(__doc__, measure, "data_index")
