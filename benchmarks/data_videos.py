"""What the benchmarks of the data path share: source videos, timing in turns, tables."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from cluster import fsio
from recipes.contract import Artifact, StageContext

HEIGHT, WIDTH, RATE, SECONDS = 256, 340, 25, 10
FRAMES = RATE * SECONDS
TENNIS = Path(
    os.environ.get("ORCHESTRATE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measured figure beside what it should be; `figure` is a ratio unless `unit` says else."""

    what: str
    figure: float
    target: str = ""
    good: bool | None = None
    detail: str = ""
    unit: str = "x"


def at_least(what: str, figure: float, target: float, detail: str = "") -> Line:
    """A line whose figure should not be smaller."""
    return Line(
        what=what, figure=figure, target=f">= {target:g}", good=figure >= target, detail=detail
    )


def at_most(what: str, figure: float, target: float, unit: str, detail: str = "") -> Line:
    """A line whose figure should not be larger."""
    return Line(
        what=what, figure=figure, target=f"<= {target:g}", good=figure <= target, detail=detail,
        unit=unit,
    )  # fmt: skip


def natural_video(seed: int, count: int = FRAMES) -> Iterator[NDArray[np.uint8]]:
    """(H, W, 3) frames of textures with a natural spectrum: a panning scene, moving things, grain.

    The power of natural pictures falls about with the square of the frequency; coded at x264's
    defaults ten seconds take about 300 kB, as clips of Kinetics do at this size.
    """
    rng = np.random.default_rng(seed)
    scene = _texture(rng, HEIGHT + 160, WIDTH + 160)
    things = [
        (_texture(rng, 72, 72), rng.uniform(0, 180, 2), rng.uniform(-2.5, 2.5, 2)) for _ in range(4)
    ]
    drift, sway = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.5, 3.0, 2)
    for number in range(count):
        path = 80 + drift * number + 8 * np.sin(sway * number / 25)
        top, left = np.clip(path, 0, 159).astype(int)
        frame = scene[top : top + HEIGHT, left : left + WIDTH].astype(np.int16)
        for picture, start, speed in things:
            y, x = (start + speed * number).astype(int) % (HEIGHT - 72, WIDTH - 72)
            frame[y : y + 72, x : x + 72] = picture
        grain = rng.integers(-1, 2, (HEIGHT, WIDTH, 1), np.int8)
        yield np.clip(frame + grain, 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    planes = []
    for _ in range(3):
        noise = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**1.2
        plane = np.fft.irfft2(noise, s=(height, width))
        planes.append(plane / plane.std())
    mixed = np.stack(planes, -1) * 0.3 + planes[0][..., None]
    texture: NDArray[np.uint8] = np.clip(128 + 36 * mixed, 0, 255).astype(np.uint8)
    return texture


def write_video(
    path: Path,
    frames: Iterator[NDArray[np.uint8]],
    *,
    gop: int = 250,
    b_frames: int = 3,
    options: Mapping[str, str] | None = None,
) -> Path:
    """H.264 at x264's default quality and preset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=RATE, options=dict(options or {}))
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(frames):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return path


def source_videos(folder: Path, count: int, seconds: int = SECONDS) -> list[Path]:
    """`count` videos of 340 x 256 pixels with key frames 250 apart."""
    return [
        write_video(folder / f"{number:03d}.mp4", natural_video(number, seconds * RATE))
        for number in range(count)
    ]


def tennis_clips(count: int) -> list[Path]:
    """The first real clips, if they are there."""
    return sorted(TENNIS.glob("tennis7/*/*.mp4"))[:count]


def in_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; all run once before, and the order alternates.

    What disturbs the machine for a while disturbs all of them.
    """
    names = list(contestants)
    for name in names:
        contestants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            began = clock()
            contestants[name]()
            seconds[name].append(clock() - began)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> float:
    """How many times faster `fast` is than `slow`: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def milliseconds(seconds: Mapping[str, Sequence[float]], name: str, per: int) -> float:
    """Median milliseconds for one of `per` things."""
    return 1000 * statistics.median(seconds[name]) / per


@contextmanager
def pinned(cores: int) -> Iterator[None]:
    """Keep this process, and those it starts, on so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def indexed(folder: Path, paths: Sequence[Path], **data: Any) -> Artifact:
    """The table an index stage makes of these files, all for training."""
    from recipes.stages.index.config import IndexConfig
    from recipes.stages.index.run import run

    root = Path(os.path.commonpath([path.parent for path in paths]))
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "videos.csv"
    names = [str(path.relative_to(root)) for path in paths]
    listing.write_text("\n".join(["path", *names]) + "\n", encoding="utf-8")
    given = {"format": "csv", "name": "videos", "file": str(listing), "root": str(root), **data}
    config = IndexConfig.model_validate({"data": given})
    output = run(context(folder / "index"), config).outputs["dataset"]
    return Artifact(
        name="dataset",
        kind="dataset",
        path=output.path,
        sha256=fsio.sha256_file(output.path),
        bytes=output.path.stat().st_size,
        meta=output.meta,
        ref="index.dataset",
    )


def context(folder: Path, **inputs: Artifact) -> StageContext:
    """What a stage gets, for one process."""
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        inputs={name: (artifact,) for name, artifact in inputs.items()},
        output_dir=folder,
        checkpoint_dir=folder / "checkpoints",
        scratch_dir=folder / "scratch",
        cache_dir=folder / "cache",
        rank=0,
        local_rank=0,
        world_size=1,
        device="cpu",
        attempt="s001r000",
        seed=0,
        stop_requested=lambda: False,
        log_metrics=lambda step, values: None,
        report_progress=lambda progress: None,
    )


def importable(name: str) -> bool:
    """Whether an optional library is there."""
    return importlib.util.find_spec(name) is not None


def machine() -> str:
    """Processor, cores and load, so that figures can be judged."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{model}, {cores} cores, load {load:.1f} before"


def benchmark(
    description: str, measure: Callable[[Path, bool], list[tuple[str, list[Line]]]], name: str
) -> None:
    """Parse the arguments, measure in a fresh folder, print and write `<out>/<name>.md`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="folder for the table")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it run at all")
    options = parser.parse_args()
    began, where = time.perf_counter(), machine()
    with tempfile.TemporaryDirectory() as folder:
        tables = measure(Path(folder), options.small)
    text = _page(description, where, tables, time.perf_counter() - began, options.small)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{name}.md").write_text(text, encoding="utf-8")


def _page(
    description: str,
    where: str,
    tables: list[tuple[str, list[Line]]],
    seconds: float,
    small: bool,
) -> str:
    head = description.strip().splitlines()[0]
    lines = [f"# {head}", "", f"Machine: {where}. {time.strftime('%Y-%m-%d')}, {seconds:.0f} s."]
    lines += ["Tiny sizes: only shows that it runs."] if small else []
    for title, rows in tables:
        lines += ["", f"## {title}", "", "| what | figure | target | met | detail |"]
        lines += ["|---|---|---|---|---|"]
        for row in rows:
            met = {True: "yes", False: "NO", None: ""}[row.good]
            figure = f"{row.figure:.3g} {row.unit}"
            lines.append(f"| {row.what} | {figure} | {row.target} | {met} | {row.detail} |")
    return "\n".join(lines) + "\n"
