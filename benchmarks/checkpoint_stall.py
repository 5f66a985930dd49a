"""How long training stands still for a checkpoint: DPC with R2D3D-18 at a tiny clip, one process.

    python benchmarks/checkpoint_stall.py --out benchmarks/results

Steps alternate between plain ones and a save that is written while steps go on, as in the loop. A
save costs the copy to host memory and what its writing slows the steps down, both in steps.
"""

from __future__ import annotations

import logging
import statistics
import time
from pathlib import Path

import torch
from data_videos import Line, at_most, benchmark, context

from recipes.data.clip_config import ClipConfig
from recipes.data.loader import Batch
from recipes.engine import checkpoint, deepspeed_engine, distributed, optim
from recipes.engine.config import TrainFields
from recipes.engine.resume import Saver
from recipes.engine.state import Meter
from recipes.methods.dpc.config import DPCConfig
from recipes.methods.dpc.method import DPC
from recipes.models.config import R2D3D18Config, R2D3DTinyConfig

CLIP = ClipConfig(blocks=4, frames=2, stride=1, size=64)
CLIPS = 4


class Bench:
    """An engine that steps on one batch, and its saver."""

    def __init__(self, folder: Path, small: bool) -> None:
        logging.getLogger("recipes").setLevel(logging.WARNING)
        ctx = context(folder)
        device = distributed.init(ctx)
        checkpoints = {"minutes": None, "steps": 1, "keep": 2}
        config = TrainFields.model_validate(
            {
                "max_steps": 10**6,
                "batch_size": CLIPS,
                "micro_batch": CLIPS,
                "checkpoint": checkpoints,
            }
        )
        backbone = R2D3DTinyConfig() if small else R2D3D18Config()
        torch.manual_seed(0)
        model = DPC(DPCConfig.model_validate({"pred_steps": 2}), backbone, CLIP)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        groups = optim.param_groups(model, config.optimizer)
        self.engine = deepspeed_engine.start(model, groups, config, device)
        self.saver = Saver(ctx.checkpoint_dir, self.engine, config, ctx.stop_requested)
        self.folder, self.steps, self.saved = ctx.checkpoint_dir, 0, 0
        shape = (CLIPS, CLIP.blocks, 3, CLIP.frames, CLIP.size, CLIP.size)
        number = torch.arange(CLIPS)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.batch = Batch(clips=clips, labels=number, seeds=number, videos=number)

    def step(self) -> float:
        """Seconds of one step, with what the loop does for a save under way."""
        began = time.perf_counter()
        self.engine.train_mode()
        self.engine.backward(self.batch)
        if not self.saver.pending:
            self.saver.settle()
        self.engine.step(1e-4)
        self.steps += 1
        return time.perf_counter() - began

    def save(self) -> float:
        """Seconds until training may go on."""
        began = time.perf_counter()
        self.saver.save(self.steps, {"meter": Meter().state()}, wait=False)
        self.saved = self.steps
        return time.perf_counter() - began

    def committed(self) -> bool:
        """Whether the last save is, after which nothing of it is left to do."""
        if self.saver.pending or checkpoint.steps(self.folder)[-1:] != [self.saved]:
            return False
        self.saver.finish()
        return True


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """Rounds of plain steps and of a save with the steps until it is committed."""
    bench, rounds = Bench(folder, small), 2 if small else 3
    for _ in range(3):
        bench.step()
    bench.save()
    bench.saver.finish()
    plain: list[float] = []
    stalls: list[float] = []
    slowed: list[float] = []
    costs: list[float] = []
    for _ in range(rounds):
        near = [bench.step() for _ in range(4)]
        stalls.append(bench.save())
        during = []
        while not bench.committed():
            during.append(bench.step())
        usual = statistics.median(near)
        costs.append((stalls[-1] + sum(seconds - usual for seconds in during)) / usual)
        plain += near
        slowed += during
    step, stall = statistics.median(plain), statistics.median(stalls)
    name = checkpoint.name_of(checkpoint.steps(bench.folder)[-1])
    size = sum(path.stat().st_size for path in (bench.folder / name).iterdir())
    title = f"{bench.parameters / 1e6:.1f} M parameters, Adam, {size / 1e6:.0f} MB a checkpoint"
    lines = [
        Line(what="a step", figure=1000 * step, unit="ms", detail=f"{len(plain)} steps"),
        at_most("stall of a save", stall / step, 1.0, "steps", f"{1000 * stall:.0f} ms"),
        Line(
            what="a step while a save is written",
            figure=statistics.median(slowed) / step,
            detail=f"{len(slowed) / rounds:.1f} steps a save",
        ),
        at_most(
            "all that a save costs",
            statistics.median(costs),
            1.0,
            "steps",
            "the stall and what the writing slows down",
        ),
    ]
    return [(title, lines)]


if __name__ == "__main__":
    benchmark(__doc__ or "", measure, "checkpoint_stall")
