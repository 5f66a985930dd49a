"""Small real video files for tests, whose frames show their own number, and indexing them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cluster import fsio
from recipes.contract import Artifact, Progress, StageContext
from recipes.data.crew import start_server
from recipes.data.table import VideoTable, load_table
from recipes.stages.index.config import IndexConfig
from recipes.stages.index.run import run

TEST_DATA = Path(
    os.environ.get("ORCHESTRATE_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")
)

_BITS = 8


def real_data(name: str) -> Path:
    """A file or folder of the real clips, or skip."""
    path = TEST_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in {TEST_DATA}; ORCHESTRATE_TEST_DATA names the folder")
    return path.resolve()


def touch(root: Path, *names: str) -> Path:
    """Empty files below `root`, for what only looks at names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def numbered(count: int, height: int = 48, width: int = 64, shade: int = 0) -> NDArray[np.uint8]:
    """(T, H, W, 3) frames with their number as 8 black or white bars; the lower half is `shade`."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for number in range(count):
        bits = [255 * (number >> bit & 1) for bit in range(_BITS)]
        frames[number] = np.repeat(bits, width // _BITS)[None, :, None]
        frames[number, height // 2 :] = shade
    return frames


def numbers_of(frames: NDArray[np.uint8], bits: range = range(_BITS)) -> list[int]:
    """Read the numbers back from (F, H, W, 3) frames of any size that show the bars of `bits`."""
    upper = frames[:, : max(1, frames.shape[1] // 3)].mean(axis=(1, 3))
    middles = [int((place + 0.5) * frames.shape[2] / len(bits)) for place in range(len(bits))]
    values = zip(bits, middles, strict=True)
    weights = [(1 << bit, middle) for bit, middle in values]
    return [sum(w for w, middle in weights if row[middle] > 127) for row in upper]


def write_video(
    path: Path,
    frames: NDArray[np.uint8],
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 0,
    **options: str,
) -> Path:
    """Encode frames at 25 fps; the container follows from the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.bit_rate = 2_000_000
        stream.options = options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_set(root: Path, count: int = 12, frames: int = 40) -> Path:
    """A folder of two classes with `count` numbered videos in all, and a list `videos.csv`.

    Every fourth is for testing. Lengths differ by a few frames.
    """
    lines = ["path,label,split,group"]
    for number in range(count):
        label, split = ("odd", "even")[number % 2 == 0], ("train", "test")[number % 4 == 3]
        name = f"{label}/{number:03d}.mp4"
        write_video(root / name, numbered(frames + number % 3, shade=20 * number % 255))
        lines.append(f"{name},{label},{split},scene{number}")
    (root / "videos.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "videos.csv"


def context(output_dir: Path, **changes: Any) -> StageContext:
    """What a stage gets, for one process without inputs."""
    output_dir.mkdir(parents=True, exist_ok=True)
    reports: list[Progress] = []
    ctx = StageContext(
        inputs={},
        output_dir=output_dir,
        checkpoint_dir=output_dir / "checkpoints",
        scratch_dir=output_dir / "scratch",
        cache_dir=output_dir / "cache",
        rank=0,
        local_rank=0,
        world_size=1,
        device="cpu",
        attempt="s001r000",
        seed=0,
        stop_requested=_never,
        log_metrics=lambda step, values: None,
        report_progress=reports.append,
    )
    return replace(ctx, **changes)


@functools.cache
def warm_workers() -> None:
    """Start the fork server with torch imported, so that each later worker starts at once."""
    start_server("recipes.data.loader")


def index(output_dir: Path, **data: Any) -> Artifact:
    """Run the index stage over a data set; the artifact a consumer would get."""
    warm_workers()
    config = IndexConfig.model_validate({"data": data, "workers": 1})
    output = run(context(output_dir), config).outputs["dataset"]
    return Artifact(
        name="dataset",
        kind="dataset",
        path=output.path,
        sha256=fsio.sha256_file(output.path),
        bytes=output.path.stat().st_size,
        meta=output.meta,
        ref="index.dataset",
    )


def small_table(tmp_path: Path, split: str = "train", count: int = 12) -> VideoTable:
    """Index a fresh small set and load one split."""
    file = write_set(tmp_path / "set", count)
    artifact = index(tmp_path / "index", format="csv", name="small", file=str(file))
    return load_table(artifact, split)  # type: ignore[arg-type]


_never: Callable[[], bool] = lambda: False  # noqa: E731
