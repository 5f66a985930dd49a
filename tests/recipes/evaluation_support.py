"""Small indexed data sets, encoders and contexts for the tests of the evaluating stages."""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster import fsio
from recipes.contract import Artifact, Output, Progress, StageContext
from recipes.data.clip_config import ClipConfig
from recipes.data.config import CsvData, DataConfig, SyntheticData
from recipes.models.config import ContextConfig, EncoderConfig, R2D3DTinyConfig
from recipes.models.encoder import random_encoder, save_encoder
from recipes.stages.index.config import IndexConfig
from recipes.stages.index.run import run as run_index

CLIP = ClipConfig(blocks=2, frames=4, stride=1, size=32)
BUILT: dict[str, Any] = {
    "encoder": "random",
    "backbone": {"name": "r2d3d_tiny"},
    "clip": CLIP.model_dump(),
}


class Recorder:
    """What a stage logged and told, and how often it asked whether to stop."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.progress: list[Progress] = []
        self.asked = 0
        self._stop_after = stop_after

    def stop_requested(self) -> bool:
        """True from the question after `stop_after` on."""
        self.asked += 1
        return self._stop_after is not None and self.asked > self._stop_after

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Keep metrics."""
        self.metrics.append((step, dict(values)))


def context(
    folder: Path,
    inputs: Mapping[str, Artifact],
    recorder: Recorder | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> StageContext:
    """A context on the CPU whose files go below `folder`."""
    told = recorder or Recorder()
    for name in ("outputs", "checkpoints", "scratch"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    return StageContext(
        inputs={slot: (artifact,) for slot, artifact in inputs.items()},
        output_dir=folder / "outputs",
        checkpoint_dir=folder / "checkpoints",
        scratch_dir=folder / "scratch",
        cache_dir=folder / "cache",
        rank=rank,
        local_rank=rank,
        world_size=world_size,
        device="cpu",
        attempt="s000r000",
        seed=0,
        stop_requested=told.stop_requested,
        log_metrics=told.log_metrics,
        report_progress=told.progress.append,
    )


def artifact(name: str, output: Output) -> Artifact:
    """An output as the next stage gets it."""
    return Artifact(
        name=name,
        kind=output.kind,
        path=output.path,
        sha256=fsio.sha256_file(output.path),
        bytes=output.path.stat().st_size,
        meta=output.meta,
        ref=f"before.{name}",
    )


def index(folder: Path, data: DataConfig) -> Artifact:
    """Run the index stage."""
    result = run_index(context(folder, {}), IndexConfig(data=data, workers=1))
    return artifact("dataset", result.outputs["dataset"])


def synthetic(folder: Path, **changes: Any) -> Artifact:
    """16 + 10 drawn videos of 20 frames at 32 px in four classes."""
    sizes: dict[str, Any] = {"train": 16, "test": 10, **changes}
    return index(folder, SyntheticData(**sizes))


def copies(folder: Path, drawn: Artifact, count: int, label: str | None = "class") -> Artifact:
    """A set whose test videos are copies of its first `count` training videos; one group each."""
    videos = sorted((Path(drawn.meta["root"]) / "train").rglob("*.mp4"), key=lambda p: p.name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "list.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "split", "group"))
        for split in ("train", "test"):
            for video in videos[:count]:
                name = f"{split}-{video.name}"
                shutil.copyfile(video, folder / name)
                cell = video.parent.name if label == "class" else label or ""
                writer.writerow((name, cell, split, video.name))
    return index(folder / "index", CsvData(name="copies", file=str(folder / "list.csv")))


def encoder_file(folder: Path, seed: int = 0, context_network: bool = True) -> Artifact:
    """An encoder as a pretraining leaves it, with batch-norm statistics of its own."""
    config = EncoderConfig(
        backbone=R2D3DTinyConfig(),
        context=ContextConfig() if context_network else None,
        clip=CLIP,
        method="dpc",
        pretrain_data="elsewhere",
    )
    encoder = random_encoder(config, seed).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(3):
            encoder(torch.randn(4, 2, 3, 4, 32, 32, generator=generator))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "encoder.safetensors"
    save_encoder(encoder, config, path)
    return artifact("encoder", Output(kind="encoder", path=path))


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(rank, world_size, *arguments)` in processes of their own; their answers.

    Answers and arguments are pickled. An answer is an exception where the function raised one.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    processes = [
        spawn.Process(
            target=_one_rank,
            args=(rank, world_size, port, answers, function, arguments),
            daemon=True,
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = _collect(answers, processes)
    for process in processes:
        process.join(20)
    return [found[rank] for rank in range(world_size)]


def _collect(answers: Any, processes: Sequence[Any]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    deadline = time.monotonic() + 120
    while len(found) < len(processes):
        rank, value = answers.get(timeout=max(1.0, deadline - time.monotonic()))
        found[rank] = value
    return found


def _one_rank(
    rank: int,
    world_size: int,
    port: int,
    answers: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
    )
    torch.set_num_threads(1)
    try:
        value = function(rank, world_size, *arguments)
    except Exception as error:
        traceback.print_exc()
        value = error
    answers.put((rank, value))
