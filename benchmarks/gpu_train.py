"""Training on one GPU in bf16: clips a second and model FLOPs utilisation, synthetic and real data.

    python benchmarks/gpu_train.py --out benchmarks/results

P9: R3D-18 (Tran et al. 2018: 33 M parameters) on 16 x 112 px reaches 25 % of the GPU's peak, and
with prepared videos 95 % of what it does with clips of noise. P19: DPC with R2D3D-18 on 8 x 5
frames of 128 px makes ten times the 27 clips a second and GPU of its authors. It needs a CUDA
device and ends with one line where there is none. The whole loop runs, as in a stage; its own
figures are read from what it logs.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_videos import Line, at_least, benchmark, context, indexed, source_videos
from engine_step import TrainConfig, random_batch
from torch import Tensor, nn
from torch.nn import functional

from recipes.contract import StageContext
from recipes.data.augment import augment, normalize
from recipes.data.augment_presets import AUGMENT_PRESETS
from recipes.data.clip_config import ClipConfig
from recipes.data.config import PrepareOptions
from recipes.data.encode import encode
from recipes.data.loader import Batch, TrainBatches
from recipes.data.table import VideoTable, load_table
from recipes.engine.contract import Batches, LossOutput
from recipes.engine.loop import train
from recipes.methods.dpc.config import DPCConfig
from recipes.methods.dpc.method import DPC
from recipes.models.config import R2D3D18Config

MFU, REAL, TIMES_AUTHORS, AUTHORS = 0.25, 0.95, 10.0, 27.0
WINDOWS, LOG_EVERY = 6, 10  # windows of so many steps; the first half of the windows warms up


class R3D18(nn.Module):
    """Residual network of 3x3x3 convolutions with a classifier (torchvision's `r3d_18`)."""

    def __init__(self, classes: int = 400) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 64, (3, 7, 7), (1, 2, 2)), nn.ReLU(inplace=True)]
        width = 64
        for channels, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
            layers.append(_Block(width, channels, stride))
            width = channels
        layers += [_Block(256, 512, 2), _Block(512, 512, 1)]
        self.trunk = nn.Sequential(*layers)
        self.feature_dim = 512
        self.head = nn.Linear(512, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) to scores (B, classes)."""
        scores: Tensor = self.head(self.trunk(clips).mean(dim=(2, 3, 4)))
        return scores

    def loss(self, batch: Batch) -> LossOutput:
        """Cross-entropy of the labels."""
        with torch.autocast(batch.clips.device.type, enabled=False):
            clips = normalize(augment(batch.clips, batch.seeds, AUGMENT_PRESETS["dpc"]))
        scores = self(clips.flatten(0, 1))
        return LossOutput(loss=functional.cross_entropy(scores.float(), batch.labels.clamp(min=0)))


class _Block(nn.Module):
    def __init__(self, width: int, channels: int, stride: int) -> None:
        super().__init__()
        cube = (3, 3, 3)
        self.first = _conv(width, channels, cube, (stride,) * 3)
        self.second = _conv(channels, channels, cube, (1, 1, 1))
        self.shortcut: nn.Module = nn.Identity()
        if width != channels or stride != 1:
            self.shortcut = _conv(width, channels, (1, 1, 1), (stride,) * 3)

    def forward(self, clips: Tensor) -> Tensor:
        """Two convolutions beside the shortcut."""
        inner = self.second(torch.relu(self.first(clips)))
        return torch.relu(inner + self.shortcut(clips))


def _conv(
    width: int, channels: int, kernel: Sequence[int], stride: tuple[int, int, int]
) -> nn.Sequential:
    padding = tuple(side // 2 for side in kernel)
    conv = nn.Conv3d(width, channels, tuple(kernel), stride, padding, bias=False)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm3d(channels))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network, its clip, and how many of them a micro-batch has."""

    name: str
    build: Callable[[], nn.Module]
    clip: ClipConfig
    micro_batch: int


def tasks() -> list[Task]:
    """Both networks."""
    dpc_clip = ClipConfig(blocks=8, frames=5, stride=3, size=128)
    return [
        Task(
            name="R3D-18, 16 x 112",
            build=R3D18,
            clip=ClipConfig(blocks=1, frames=16, stride=2, size=112),
            micro_batch=64,
        ),
        Task(
            name="DPC R2D3D-18, 8 x 5 x 128",
            build=lambda: DPC(DPCConfig(), R2D3D18Config(), dpc_clip),
            clip=dpc_clip,
            micro_batch=64,
        ),
    ]


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """A table for each network."""
    sources = source_videos(folder / "raw", 2 if small else 24)
    prepared = []
    for source in sources:
        target = folder / "prepared" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        encode(source, target, PrepareOptions(short_side=128), "decord")
        prepared.append(target)
    table = load_table(indexed(folder / "table", prepared, prepare=None), "train")
    table = table.select(np.arange(100_000) % len(table))
    return [(task.name, _lines(folder, task, table)) for task in tasks()]


def _lines(folder: Path, task: Task, table: VideoTable) -> list[Line]:
    noise = _train(folder / f"{task.name}-noise", task, lambda config, step: _Noise(task))
    real = _train(
        folder / f"{task.name}-real", task, lambda config, step: _videos(task, table, config, step)
    )
    name = torch.cuda.get_device_name()
    rate, share = noise["speed/clips_per_second"], noise.get("speed/mfu")
    lines = []
    if task.name.startswith("DPC"):
        target, detail = TIMES_AUTHORS, f"{rate:.0f} clips/s against {AUTHORS:g} on {name}"
        lines.append(at_least("rate over its authors' for a GPU", rate / AUTHORS, target, detail))
    elif share is not None:
        lines.append(at_least("share of the peak (MFU)", share, MFU, f"{rate:.0f} clips/s, {name}"))
    if share is not None and task.name.startswith("DPC"):
        lines.append(Line(what="share of the peak (MFU)", figure=share, detail=name))
    kept = real["speed/clips_per_second"] / rate
    detail = f"waiting for data {real['speed/data_wait_share']:.1%}, {_workers()} workers"
    lines.append(at_least("prepared videos over noise", kept, REAL, detail))
    memory = noise["speed/memory_device_gb"]
    lines.append(Line(what="peak memory of the device", figure=memory, unit="GB"))
    for phase in ("transfer", "forward", "backward", "communication", "optimizer", "logging"):
        seconds = noise[f"speed/{phase}_seconds"]
        lines.append(Line(what=f"step, {phase}", figure=1000 * seconds, unit="ms"))
    return lines


def _train(
    folder: Path, task: Task, batches: Callable[[TrainConfig, int], Batches]
) -> dict[str, float]:
    """Medians of what the loop logged when it was warm."""
    logged: list[Mapping[str, float]] = []
    config = TrainConfig.model_validate(
        {
            "max_steps": WINDOWS * LOG_EVERY,
            "log_every": LOG_EVERY,
            "batch_size": task.micro_batch,
            "micro_batch": task.micro_batch,
            "precision": "bf16",
            "channels_last": True,
            "workers": _workers(),
            "checkpoint": {"minutes": None},
        }
    )
    torch.manual_seed(0)
    train(_context(folder, logged), task.build(), lambda step: batches(config, step), config)
    warm = logged[WINDOWS // 2 :]
    names = [name for name in warm[0] if name.startswith("speed/")]
    return {name: statistics.median(values[name] for values in warm) for name in names}


def _context(folder: Path, logged: list[Mapping[str, float]]) -> StageContext:
    ctx = replace(
        context(folder), device="cuda", log_metrics=lambda step, values: logged.append(dict(values))
    )
    for needed in (ctx.checkpoint_dir, ctx.scratch_dir):
        needed.mkdir(mode=0o700, exist_ok=True)
    return ctx


class _Noise:
    """The same few page-locked batches over and over: nothing is read, all is transferred."""

    steps_per_epoch = 1_000_000

    def __init__(self, task: Task) -> None:
        clips = [random_batch(task.clip, task.micro_batch, seed) for seed in range(4)]
        self._batches = [batch.pin_memory() for batch in clips]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self._batches


def _videos(task: Task, table: VideoTable, config: TrainConfig, start: int) -> TrainBatches:
    return TrainBatches(
        table,
        task.clip,
        AUGMENT_PRESETS["dpc"],
        seed=0,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        workers=config.workers,
        start_step=start,
        max_steps=config.max_steps,
        pin_memory=True,
    )


def _workers() -> int:
    return max(1, len(os.sched_getaffinity(0)) - 1)


def main() -> Any:
    """Measure where there is a GPU."""
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here: nothing was measured; run this on a GPU node")
    benchmark(str(__doc__), measure, "gpu_train")


if __name__ == "__main__":
    main()
