"""A step of the training loop against hand-written loops around DeepSpeed and around DDP.

    python benchmarks/engine_step.py --out benchmarks/results

P8: the same DPC, batches and optimizer, in one process a rank, on one and on two ranks. The three
take turns of a few steps, so that what disturbs the machine disturbs all. The loop does all it does
in a stage: it agrees with the other ranks, looks for what is not finite, logs and reports to files,
tells the watchdog's memory of every phase, saves at the default interval. The hand-written loops
do nothing but train. The figure is the median over the turns, so it has no save in it, which
`checkpoint_stall.py` times. The tiny network shows what the loop costs a step whatever is trained.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from data_videos import Line, at_most, benchmark, context
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster import fsio
from cluster.heartbeat import Heart
from recipes.config import StageConfig
from recipes.contract import Progress, StageContext
from recipes.data.clip_config import ClipConfig
from recipes.data.loader import Batch
from recipes.engine import deepspeed_engine, distributed
from recipes.engine.config import TrainFields
from recipes.engine.loop import train
from recipes.methods.dpc.config import DPCConfig
from recipes.methods.dpc.method import DPC
from recipes.models.config import R2D3D18Config, R2D3DTinyConfig

OURS, DEEPSPEED, DDP = "loop", "DeepSpeed by hand", "DDP by hand"
TARGET = 1.02
# Of each network: backbone, side of a picture, clips in a batch, steps in a turn.
NETWORKS: dict[str, tuple[Any, int, int, int]] = {
    "r2d3d18": (R2D3D18Config(), 64, 2, 2),
    "r2d3d_tiny": (R2D3DTinyConfig(), 16, 2, 10),
}


class TrainConfig(TrainFields, StageConfig):
    """The training fields alone, as a stage has them."""


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """All tables: each network on one and on two ranks."""
    turns = 3 if small else 25
    tables = []
    for network in NETWORKS:
        lines: list[Line] = []
        for ranks in (1, 2):
            found = _launch(folder / f"{network}-{ranks}", network, ranks, turns)
            lines += _lines(found, ranks, absolute=network == "r2d3d_tiny")
        tables.append((f"P8: {network}", lines))
    return tables


def _lines(found: Mapping[str, Any], ranks: int, *, absolute: bool) -> list[Line]:
    seconds: dict[str, list[float]] = found["seconds"]
    on = "1 rank" if ranks == 1 else f"{ranks} ranks"
    ours = statistics.median(seconds[OURS])
    lines = []
    for name in (DEEPSPEED, DDP):
        pairs = zip(seconds[OURS], seconds[name], strict=True)
        detail = f"{1000 * ours:.1f} against {1000 * statistics.median(seconds[name]):.1f} ms"
        if absolute:
            cost = 1000 * statistics.median(a - b for a, b in pairs)
            lines.append(
                Line(what=f"{on}: more than {name}", figure=cost, unit="ms a step", detail=detail)
            )
            continue
        figure = statistics.median(a / b for a, b in pairs)
        lines.append(at_most(f"{on}: step over {name}", figure, TARGET, "x", detail))
    return lines


def _launch(folder: Path, network: str, ranks: int, turns: int) -> dict[str, Any]:
    folder.mkdir(parents=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    processes = []
    for rank in range(ranks):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        words = [sys.executable, __file__, "--rank", str(folder), network, str(turns)]
        processes.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"{network} on {ranks} ranks: a rank failed")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


class Loss(nn.Module):
    """What hand-written loops wrap: a batch in, a loss out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a micro-batch."""
        loss: Tensor = self.model.loss(batch).loss  # type: ignore[operator]
        return loss


class _Turns:
    """The loop's batches: between its turns the other loops have theirs."""

    steps_per_epoch = 1_000_000

    def __init__(
        self, batches: list[Batch], others: Mapping[str, Callable[[], None]], turns: int, steps: int
    ) -> None:
        self._batches, self._others, self._turns, self._steps = batches, others, turns, steps
        self.seconds: dict[str, list[float]] = {name: [] for name in (OURS, *others)}

    def __iter__(self) -> Iterator[Batch]:
        for turn in range(self._turns + 1):
            names = list(self._others)
            for name in names if turn % 2 else reversed(names):
                self._time(name, turn, self._others[name])
            distributed.barrier()
            began = time.perf_counter()
            for step in range(self._steps):
                yield self._batches[step % len(self._batches)]
            self._note(OURS, turn, time.perf_counter() - began)

    def _time(self, name: str, turn: int, run: Callable[[], None]) -> None:
        distributed.barrier()
        began = time.perf_counter()
        for _ in range(self._steps):
            run()
        self._note(name, turn, time.perf_counter() - began)

    def _note(self, name: str, turn: int, seconds: float) -> None:
        if turn:  # the first warms up
            self.seconds[name].append(seconds / self._steps)


def run_rank(folder: Path, network: str, turns: int) -> None:
    """One rank of a measurement; rank 0 writes what it found."""
    backbone, size, clips, steps = NETWORKS[network]
    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    clip = ClipConfig(blocks=4, frames=2, stride=1, size=size)
    ctx = stage_context(folder, rank, ranks)
    device = distributed.init(ctx)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    batches = [random_batch(clip, clips, seed) for seed in range(rank, 8 * ranks, ranks)]

    def model() -> DPC:
        torch.manual_seed(0)
        return DPC(DPCConfig(pred_steps=2), backbone, clip)

    config = TrainConfig.model_validate(
        {
            # The steps of the last turn are not timed: nobody asks for a batch behind them.
            "max_steps": (turns + 2) * steps,
            "batch_size": clips * ranks,
            "micro_batch": clips,
        }
    )
    others = {
        DEEPSPEED: _deepspeed_by_hand(model(), config, device, batches),
        DDP: _ddp_by_hand(model(), ranks, batches),
    }
    source = _Turns(batches, others, turns + 1, steps)
    train(ctx, model(), lambda start: source, config)
    if rank == 0:
        kept = {name: values[:turns] for name, values in source.seconds.items()}
        fsio.write_json(folder / "found.json", {"seconds": kept})


def stage_context(folder: Path, rank: int, ranks: int, **changes: Any) -> StageContext:
    """What `orchestrator.entry` gives a stage: metrics and progress go to files."""
    heart = Heart()

    def log_metrics(step: int, values: Mapping[str, float]) -> None:
        if rank == 0:
            line = {"step": step, "time": time.time(), "attempt": "s001r000"}
            fsio.append_json_line(folder / "metrics.jsonl", {**line, "metrics": dict(values)})

    def report_progress(progress: Progress) -> None:
        if rank == 0:
            value = {**asdict(progress), "attempt": "s001r000", "updated_at": time.time()}
            fsio.write_json(folder / "progress.json", {"schema_version": 1, **value})

    for name in ("checkpoints", "scratch"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    return replace(
        context(folder),
        rank=rank,
        local_rank=rank,
        world_size=ranks,
        log_metrics=log_metrics,
        report_progress=report_progress,
        beat=heart.beat,
        **changes,
    )


def random_batch(clip: ClipConfig, count: int, seed: int) -> Batch:
    """`count` clips of noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, clip.blocks, 3, clip.frames, clip.size, clip.size)
    rows = torch.arange(count)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Batch(clips=clips, labels=rows, seeds=rows, videos=rows)


def _deepspeed_by_hand(
    model: nn.Module, config: TrainFields, device: torch.device, batches: list[Batch]
) -> Callable[[], None]:
    deepspeed = deepspeed_engine.import_deepspeed(device)
    loss = Loss(model)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3, weight_decay=1e-5, fused=True)
    settings = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "steps_per_print": None,
    }
    engine, _, _, _ = deepspeed.initialize(model=loss, optimizer=optimizer, config=settings)
    source = _endless(batches)

    def step() -> None:
        found = engine(next(source))
        engine.backward(found)
        engine.step()

    return step


def _ddp_by_hand(model: nn.Module, ranks: int, batches: list[Batch]) -> Callable[[], None]:
    loss: nn.Module = Loss(model)
    loss = DistributedDataParallel(loss) if ranks > 1 else loss
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3, weight_decay=1e-5, fused=True)
    source = _endless(batches)

    def step() -> None:
        optimizer.zero_grad()
        loss(next(source)).backward()
        optimizer.step()

    return step


def _endless(batches: list[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        run_rank(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        sys.stdout.flush()
        os._exit(0)
    benchmark(str(__doc__), measure, "engine_step")
