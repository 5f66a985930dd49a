"""The loader against a bare decoder loop, its scaling and memory, and other ways to read clips.

    python benchmarks/data_loader.py --out benchmarks/results

Milliseconds are processor time, of all threads and workers, on one core; P4 alone is by the clock.

P1: loader and augmentation against decord called for the same frames in one loop.
P4: batches from one worker on one core, and from as many as there are cores on all of them.
P5: strided clips of all-intra files against reading the whole range and dropping the rest.
P12: memory of the workers over 10,000 clips.
Then clips of 32 frames, stride 2, 128 px, as torchvision's read_video gives them (PyAV, all frames
at full size: of the video, or under VideoClips of the clip's range) and as DPC reads them (JPEG
files of all frames).
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av  # before decord, which would lend it another x264
import decord
import numpy as np
import torch
from data_videos import (
    FRAMES,
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
    write_video,
)
from PIL import Image
from torch.nn import functional

from recipes.contract import Artifact
from recipes.data.augment import augment
from recipes.data.augment_presets import AUGMENT_PRESETS
from recipes.data.clip_config import ClipConfig
from recipes.data.config import PrepareOptions
from recipes.data.decode import read_frames
from recipes.data.encode import encode
from recipes.data.loader import TrainBatches
from recipes.data.table import VideoTable, load_table

CLIP = ClipConfig(blocks=1, frames=32, stride=2, size=128)
AUGMENT = AUGMENT_PRESETS["video_simclr"].model_copy(
    update={"crop_scope": "per_clip", "flip_scope": "per_clip"}
)
BATCH, WARM = 4, 3  # samples a batch; batches before the clock starts
CONSECUTIVE, STRIDE = 64, 2

Request = tuple[str, dict[str, Any], list[int]]


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """All tables."""
    raw = source_videos(folder / "raw", 2 if small else 6, 3 if small else 10)
    table = _table(folder, indexed(folder / "all", raw, prepare=None))
    batches, rounds = (2, 1) if small else (10, 5)
    prepared = [_prepared(path, folder / "prepared" / path.name) for path in raw]
    return [
        ("P1: one core, decode and augment", _bare_against_loader(table, batches, rounds)),
        ("P4: workers", _scaling(table, batches, 1 if small else 3)),
        ("P5: all-intra files", _all_intra(folder, raw[0], small)),
        ("P12: memory of a worker", _memory(folder, prepared, 200 if small else 10_000)),
        ("Other ways to read a clip", _other_ways(folder, raw, prepared, 1 if small else 5)),
    ]


def _table(folder: Path, artifact: Artifact) -> VideoTable:
    """Of few files a table long enough for whole epochs."""
    table = load_table(artifact, "train")
    return table.select(np.arange(240) % len(table))


def _prepared(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    encode(source, target, PrepareOptions(short_side=128), "decord")
    return target


def _loader(table: VideoTable, steps: int, workers: int, start: int = 0) -> TrainBatches:
    return TrainBatches(
        table,
        CLIP,
        AUGMENT,
        seed=0,
        batch_size=BATCH,
        micro_batch=BATCH,
        workers=workers,
        start_step=start,
        max_steps=WARM + steps,
    )


def _bare_against_loader(table: VideoTable, steps: int, rounds: int) -> list[Line]:
    """The bare loop gets the very requests that the loader makes of decord."""
    torch.set_num_threads(1)
    with pinned(1):
        with _recorded() as requests:
            list(_loader(table, steps, workers=0, start=WARM))
        calls = {
            "bare": lambda: _bare(requests),
            "no worker": lambda: _consume(_loader(table, steps, workers=0, start=WARM)),
        }
        seconds = in_turns(calls, rounds, time.process_time)
        loader = _loader(table, steps, workers=1)
        seconds["one worker"] = [_steady(loader, _cpu_seconds, work=True) for _ in range(rounds)]
    count = steps * BATCH
    detail = ", ".join(f"{name} {milliseconds(seconds, name, count):.1f} ms" for name in seconds)
    return [
        at_least("loader with one worker, same core", ratio(seconds, "bare", "one worker"), 0.95,
                 f"a clip: {detail}"),
        at_least("loader without worker", ratio(seconds, "bare", "no worker"), 0.95),
    ]  # fmt: skip


@contextmanager
def _recorded() -> Iterator[list[Request]]:
    """Note what is asked of decord."""
    requests: list[Request] = []
    original = decord.VideoReader

    class Recorder(original):  # type: ignore[misc, valid-type]
        def __init__(self, path: str, **options: Any) -> None:
            super().__init__(path, **options)
            self.asked = (path, options)

        def get_batch(self, indices: list[int]) -> Any:
            requests.append((*self.asked, list(indices)))
            return super().get_batch(indices)

    decord.VideoReader = Recorder
    try:
        yield requests
    finally:
        decord.VideoReader = original


def _bare(requests: list[Request]) -> None:
    """Decode, cut, stack, augment: what somebody writes who needs nothing else."""
    side = CLIP.size
    for first in range(0, len(requests), BATCH):
        clips = []
        for path, options, indices in requests[first : first + BATCH]:
            frames = decord.VideoReader(path, **options).get_batch(indices).asnumpy()
            clips.append(frames[:, :side, :side].transpose(3, 0, 1, 2))
        batch = torch.from_numpy(np.stack(clips))[:, None]
        augment(batch, torch.arange(first, first + len(batch)), AUGMENT)


def _consume(loader: TrainBatches) -> None:
    for batch in loader:
        augment(batch.clips, batch.seeds, AUGMENT)


def _steady(loader: TrainBatches, clock: Callable[[], float], work: bool) -> float:
    """Seconds for the batches of workers that run already, on the cores of this process."""
    began = 0.0
    for number, batch in enumerate(loader):
        for process in multiprocessing.active_children() if number == 0 else ():
            os.sched_setaffinity(process.pid, os.sched_getaffinity(0))
        if work:
            augment(batch.clips, batch.seeds, AUGMENT)
        if number == WARM - 1:
            began = clock()
        if number == len(loader) - 1:
            return clock() - began  # the workers are still there
    raise ValueError("no batches")


def _cpu_seconds() -> float:
    """Processor time of this process and its workers."""
    workers = [Path(f"/proc/{one.pid}/stat") for one in multiprocessing.active_children()]
    ticks = 0
    for path in workers:
        fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _scaling(table: VideoTable, steps: int, rounds: int) -> list[Line]:
    """A worker is meant to have a core. Where it has more, decord's own threads use them."""
    cores = multiprocessing.cpu_count()
    seconds: dict[str, list[float]] = {"one": [], "free": [], "all": []}
    for _ in range(rounds):
        for name, workers, given in (("one", 1, 1), ("free", 1, cores), ("all", cores, cores)):
            with pinned(given):
                loader = _loader(table, 2 * steps, workers)
                seconds[name].append(_steady(loader, time.perf_counter, work=False))
    rate = {name: 2 * steps * BATCH / statistics.median(seconds[name]) for name in seconds}
    detail = f"{rate['one']:.1f} and {rate['all']:.1f} clips/s"
    free = f"{rate['free']:.1f} clips/s with one worker"
    return [
        at_least(f"{cores} workers on {cores} cores against 1 on one",
                 ratio(seconds, "one", "all"), 0.85 * cores, detail),
        Line(what=f"{cores} workers against 1 that has all cores",
             figure=ratio(seconds, "free", "all"), detail=free),
    ]  # fmt: skip


def _all_intra(folder: Path, source: Path, small: bool) -> list[Line]:
    """Files of which every frame is a key frame: H.264 as it is, MJPEG."""
    frames = 80 if small else FRAMES
    files = {
        "H.264": write_video(folder / "intra.mp4", natural_video(0, frames), gop=1, b_frames=0),
        "MJPEG": _mjpeg(folder / "intra.avi", frames),
    }
    lines = []
    for name, path in files.items():
        starts = range(0, frames - CONSECUTIVE, 16)
        calls = {
            "ours": _each(starts, lambda start, path=path: _clip(path, start, gop=1)),
            "naive": _each(starts, lambda start, path=path: _consecutive(path, start)),
        }
        with pinned(1):
            seconds = in_turns(calls, 1 if small else 9, time.process_time)
        detail = f"{milliseconds(seconds, 'naive', len(starts)):.1f} / "
        detail += f"{milliseconds(seconds, 'ours', len(starts)):.1f} ms a clip"
        what = f"{name}: ours against the whole range by decord"
        lines.append(at_least(what, ratio(seconds, "naive", "ours"), 0.9, detail))
    return lines


def _each(starts: range, read: Callable[[int], object]) -> Callable[[], None]:
    def call() -> None:
        for start in starts:
            read(start)

    return call


def _clip(path: Path, start: int, gop: int, decoder: str = "decord") -> Any:
    numbers = range(start, start + CONSECUTIVE, STRIDE)
    return read_frames(path, list(numbers), height=128, width=170, gop=gop, decoder=decoder)


def _consecutive(path: Path, start: int) -> Any:
    reader = decord.VideoReader(str(path), num_threads=1, width=170, height=128)
    return reader.get_batch(range(start, start + CONSECUTIVE)).asnumpy()[::STRIDE]


def _mjpeg(path: Path, count: int) -> Path:
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 256, 340, "yuvj420p"
        stream.codec_context.bit_rate = 4_000_000
        for picture in natural_video(1, count):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            output.mux(stream.encode(frame.reformat(format="yuvj420p")))
        output.mux(stream.encode())
    return path


def _memory(folder: Path, prepared: list[Path], clips: int) -> list[Line]:
    """Resident memory of the workers while they read; the baseline has the same imports."""
    imports = "import av, decord, torch, recipes.data.loader"
    rss = "print(int(open('/proc/self/statm').read().split()[1]) * 4096)"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\n{rss}"], capture_output=True, text=True, check=True
    )
    baseline = int(done.stdout)
    table = _table(folder, indexed(folder / "small", prepared, prepare=None))
    loader = TrainBatches(
        table,
        ClipConfig(frames=16, size=112),
        AUGMENT,
        seed=0,
        batch_size=8,
        micro_batch=8,
        workers=2,
        max_steps=clips // 8,
    )
    taken: list[int] = []
    for number, _ in enumerate(loader):
        if number % 25 == 24:
            taken.append(max(map(_resident, multiprocessing.active_children())))
    settled = taken[len(taken) // 10 :]
    growth = max(settled) / settled[0] - 1
    above = (max(taken) - baseline) / 1e6
    detail = f"baseline {baseline / 1e6:.0f} MB; batches in shared memory included"
    return [
        at_most(f"largest over {clips} clips, above the imports", above, 600, "MB", detail),
        at_most("growth behind the first tenth", 100 * growth, 5, "%"),
    ]


def _resident(process: Any) -> int:
    try:
        statm = Path(f"/proc/{process.pid}/statm").read_text(encoding="utf-8")
    except OSError:
        return 0
    return int(statm.split()[1]) * 4096


def _other_ways(folder: Path, raw: list[Path], prepared: list[Path], rounds: int) -> list[Line]:
    frames = _length(raw[0])
    starts = range(0, frames - CONSECUTIVE, max(1, (frames - CONSECUTIVE) // 5))
    jpegs = [_jpegs(path, folder / "jpeg" / path.stem) for path in raw]

    def over(files: list[Path], read: Callable[[Path, int], object]) -> Callable[[], None]:
        return lambda: [read(path, start) for path in files for start in starts] and None

    calls = {
        "ours": over(raw, lambda path, start: _clip(path, start, 250)),
        "ours, PyAV": over(raw, lambda path, start: _clip(path, start, 250, "pyav")),
        "ours, prepared": over(prepared, lambda path, start: _clip(path, start, 12)),
        "ours, prepared, PyAV": over(prepared, lambda path, start: _clip(path, start, 12, "pyav")),
        "torchvision": over(raw, _torchvision),
        "torchvision, whole video": over(raw, _torchvision_whole),
        "DPC": over(jpegs, _dpc),
    }
    torch.set_num_threads(1)
    with pinned(1):
        seconds = in_turns(calls, rounds, time.process_time)
    count = len(raw) * len(starts)
    sizes = {
        "ours": _bytes(raw),
        "ours, prepared": _bytes(prepared),
        "DPC": _bytes([path for folder in jpegs for path in folder.iterdir()]),
    }
    lines = []
    for name in calls:
        detail = f"{milliseconds(seconds, name, count):.1f} ms a clip"
        detail += f", {sizes[name] / len(raw) / 1e3:.0f} kB a video" if name in sizes else ""
        lines.append(Line(what=name, figure=ratio(seconds, "torchvision", name), detail=detail,
                          unit="x torchvision's speed"))  # fmt: skip
    return lines


def _length(path: Path) -> int:
    with av.open(str(path)) as container:
        return container.streams.video[0].frames


def _bytes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _torchvision(path: Path, start: int) -> Any:
    """As torchvision.io.read_video (PyAV) under VideoClips, then Resize(128)."""
    frames = []
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        tick = int(1 / 25 / stream.time_base)
        first, last = start * tick, (start + CONSECUTIVE - 1) * tick
        container.seek(max(first - 1, 0), any_frame=False, backward=True, stream=stream)
        for frame in container.decode(stream):
            if first <= frame.pts <= last:
                frames.append(frame.to_rgb().to_ndarray())
            if frame.pts >= last:
                break
    return _resized(np.stack(frames)[::STRIDE])


def _torchvision_whole(path: Path, start: int) -> Any:
    """As torchvision.io.read_video(path), of which a data set then takes the frames it wants."""
    with av.open(str(path), metadata_errors="ignore") as container:
        frames = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
    return _resized(np.stack(frames)[start : start + CONSECUTIVE : STRIDE])


def _resized(frames: Any) -> Any:
    clip = torch.as_tensor(frames).permute(0, 3, 1, 2)
    return functional.interpolate(clip, (128, 170), mode="bilinear", antialias=True)


def _jpegs(path: Path, folder: Path) -> Path:
    """All frames as DPC's process_data/extract_frame.py writes them."""
    folder.mkdir(parents=True)
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            frame.to_image().save(folder / f"image_{number + 1:05d}.jpg", quality=95)
    return folder


def _dpc(folder: Path, start: int) -> Any:
    """As DPC's dataset_3d.py: PIL images, cut and resized one by one."""
    images = []
    for number in range(start, start + CONSECUTIVE, STRIDE):
        with Image.open(folder / f"image_{number + 1:05d}.jpg") as image:
            images.append(image.convert("RGB").resize((170, 128), Image.Resampling.BILINEAR))
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


if __name__ == "__main__":
    benchmark(__doc__, measure, "data_loader")
