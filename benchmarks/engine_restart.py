"""From the start of a process to the first step after a checkpoint, against its imports alone.

    python benchmarks/engine_restart.py --out benchmarks/results

DPC with R2D3D-18 trains two steps and stops; then processes go on from that checkpoint and are
timed to the end of their first step, in turns with processes that import the same and end. Index
and videos are not part of it: batches are random; `data_index.py` times the table.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data_videos import Line, at_most, benchmark, in_turns

TARGET_SECONDS = 5.0


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """The one table."""
    _run("train", folder)  # makes the checkpoint
    seconds = in_turns(
        {"imports": _process("imports", folder), "restart": _process("train", folder)},
        1 if small else 5,
    )
    pairs = zip(seconds["restart"], seconds["imports"], strict=True)
    beyond = statistics.median(restart - imports for restart, imports in pairs)
    imports, whole = statistics.median(seconds["imports"]), statistics.median(seconds["restart"])
    detail = f"imports {imports:.1f} s, to the end of the first step {whole:.1f} s"
    line = at_most("restart to first step, beyond imports", beyond, TARGET_SECONDS, "s", detail)
    return [("Restart", [line])]


def _process(what: str, folder: Path) -> Callable[[], None]:
    return lambda: _run(what, folder)


def _run(what: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, __file__, "--part", what, str(folder)]
    subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=True)


def run_part(what: str, folder: Path) -> None:
    """Import, and train on where a checkpoint is, until the first step is done."""
    began = time.monotonic()
    import torch
    from engine_step import TrainConfig, random_batch, stage_context

    from recipes.contract import Preempted
    from recipes.data.clip_config import ClipConfig
    from recipes.data.loader import Batch
    from recipes.engine.deepspeed_engine import import_deepspeed
    from recipes.engine.loop import train
    from recipes.methods.dpc.config import DPCConfig
    from recipes.methods.dpc.method import DPC
    from recipes.models.config import R2D3D18Config

    import_deepspeed(torch.device("cpu"))
    if what == "imports":
        return
    clip = ClipConfig(blocks=4, frames=2, stride=1, size=32)
    first = not any((folder / "checkpoints").glob("step_*"))
    done: list[int] = []

    class Watched(DPC):
        def after_step(self, step: int) -> None:
            if not first:
                os._exit(0 if step > 1 else 1)  # the parent's clock stops; 1: nothing was resumed
            done.append(step)

    class Batches:
        steps_per_epoch = 1_000_000

        def __iter__(self) -> Iterator[Batch]:
            while True:
                yield random_batch(clip, 2, 0)

    torch.manual_seed(0)
    config = TrainConfig.model_validate({"max_steps": 100, "batch_size": 2, "micro_batch": 2})
    ctx = stage_context(folder, 0, 1, stop_requested=lambda: bool(done))
    try:
        train(
            ctx,
            Watched(DPCConfig(pred_steps=2), R2D3D18Config(), clip),
            lambda _: Batches(),
            config,
        )
    except Preempted:
        print(f"checkpoint after {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        run_part(sys.argv[2], Path(sys.argv[3]))
        sys.stdout.flush()
        os._exit(0)
    benchmark(str(__doc__), measure, "engine_restart")
