"""Trains small models in processes of their own, for tests that stop, kill and resume them.

`python engine_worker.py RANK jobs.json` runs one rank of each job after the other. Every job gets a
fork of this process, which has paid for the imports: a job may die, and the next is a new process.
"""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.config import StageConfig
from recipes.contract import Preempted, Progress, StageContext, StageError
from recipes.data.clip_config import ClipConfig
from recipes.data.loader import Batch
from recipes.engine.config import TrainFields
from recipes.methods.dpc.config import DPCConfig
from recipes.methods.dpc.method import DPC
from recipes.models.config import R2D3DTinyConfig

CLIP = ClipConfig(blocks=4, frames=2, stride=1, size=16)
VIDEOS = 20


class TrainConfig(TrainFields, StageConfig):
    """The training fields alone, as a stage has them."""


class TinyBatches:
    """Clips that are a function of (epoch, sample), shared out as `TrainBatches` does."""

    def __init__(self, config: TrainFields, rank: int, world_size: int, start_step: int) -> None:
        self.steps_per_epoch = VIDEOS // config.batch_size
        self._config, self._rank, self._world_size = config, rank, world_size
        self._start_step = start_step

    def __iter__(self) -> Iterator[Batch]:
        step = self._start_step
        while True:
            for part in range(self._config.accumulation(self._world_size)):
                yield self._micro_batch(step, part)
            step += 1

    def _micro_batch(self, step: int, part: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(VIDEOS, generator=torch.Generator().manual_seed(epoch))
        size = self._config.micro_batch
        first = place * self._config.batch_size + (part * self._world_size + self._rank) * size
        rows = order[first : first + size]
        return make_batch(rows, rows + 1000 * epoch)


def make_batch(rows: torch.Tensor, seeds: torch.Tensor, clip: ClipConfig = CLIP) -> Batch:
    """Videos whose brightness wanders in a way of their own, so that they can be told apart."""
    clips = []
    for row in rows.tolist():
        generator = torch.Generator().manual_seed(row)
        shape = (clip.blocks, 3, clip.frames, clip.size, clip.size)
        clips.append(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
    return Batch(clips=torch.stack(clips), labels=rows % 4, seeds=seeds, videos=rows)


def make_context(folder: Path, **changes: Any) -> StageContext:
    """A context of one rank whose records go to `folder`."""
    for name in ("checkpoints", "outputs", "scratch"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    rank = int(changes.get("rank", 0))

    def log_metrics(step: int, values: Mapping[str, float]) -> None:
        if rank == 0:
            with (folder / "metrics.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": step, "metrics": dict(values)}) + "\n")

    def report_progress(progress: Progress) -> None:
        if rank == 0:
            with (folder / "progress.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": progress.step, "loss": progress.loss}) + "\n")

    given: dict[str, Any] = {
        "inputs": {},
        "output_dir": folder / "outputs",
        "checkpoint_dir": folder / "checkpoints",
        "scratch_dir": folder / "scratch",
        "cache_dir": folder / "cache",
        "rank": 0,
        "local_rank": rank,
        "world_size": 1,
        "device": "cpu",
        "attempt": "s001r000",
        "seed": 3,
        "stop_requested": lambda: False,
        "log_metrics": log_metrics,
        "report_progress": report_progress,
    }
    return StageContext(**{**given, **changes})


def run_collectives(job: Mapping[str, Any], rank: int) -> int:
    """Call every collective once and write down what this rank got."""
    from recipes.engine import distributed

    folder = Path(job["folder"])
    distributed.init(make_context(folder, rank=rank, world_size=job["world_size"]))
    rows = torch.arange(3 * rank).view(-1, 1).repeat(1, 2) + 10 * rank
    seen = {
        "rank": [distributed.rank(), distributed.world_size(), distributed.is_main()],
        "agree": [distributed.agree(False), distributed.agree(rank == 1)],
        "any_of": distributed.any_of([rank == 0, False, rank == 1]),
        "from_main": distributed.from_main([5 + rank, -1]),
        "sum_ranks": distributed.sum_ranks(torch.tensor([1.0, rank])).tolist(),
        "gather_rows": distributed.gather_rows(rows).tolist(),
    }
    distributed.barrier()
    (folder / f"collectives-{rank}.json").write_text(json.dumps(seen))
    return 0


def run_job(job: Mapping[str, Any], rank: int) -> int:
    """Train as a job says; returns the exit code a stage would have."""
    from recipes.engine.loop import train

    if job.get("collectives"):
        return run_collectives(job, rank)
    folder, config = Path(job["folder"]), TrainConfig.model_validate(job["config"])
    torch.set_num_threads(1)
    seen = {"step": 0}
    used: list[list[int]] = []

    class Watched(DPC):
        def after_step(self, step: int) -> None:
            seen["step"] = step
            if step == job.get("full_after"):
                # Files of more than 4 kB cannot be written any more, as on a full disk.
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            if step == job.get("room_after"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

        def loss(self, batch: Batch) -> Any:
            used.append(batch.videos.tolist())
            output = super().loss(batch)
            if seen["step"] + 1 == job.get("poison_step") and rank == job.get("poison_rank", 0):
                if job["poison"] == "loss":
                    output.loss.data.fill_(float("nan"))
                else:
                    weight = self.predictor.get_parameter("0.weight")
                    weight.register_hook(  # type: ignore[no-untyped-call]
                        lambda gradient: gradient * math.inf
                    )
            return output

    torch.manual_seed(7)
    horizon = [{"epoch": 0, "steps": 1}, {"epoch": 1, "steps": 2}]
    method = DPCConfig.model_validate({"pred_steps": 2, "horizon": horizon})
    model = Watched(method, R2D3DTinyConfig(), CLIP)
    stop_at = job.get("stop_at")
    ctx = make_context(
        folder,
        rank=rank,
        world_size=job["world_size"],
        # Only the last rank hears of the stop: the others have to be told.
        stop_requested=lambda: rank == job["world_size"] - 1 and seen["step"] + 1 == stop_at,
    )
    try:
        outcome = train(
            ctx, model, lambda start: TinyBatches(config, rank, ctx.world_size, start), config
        )
    except Preempted as stop:
        (folder / f"preempted-{rank}").write_text(str(stop.step))
        return 75
    except StageError as error:
        (folder / f"error-{rank}").write_text(str(error))
        return error.exit_code
    (folder / f"outcome-{rank}.json").write_text(
        json.dumps(
            {
                "steps": outcome.steps,
                "metrics": outcome.metrics,
                "used": used,
                "history": outcome.history,
            }
        )
    )
    return 0


def main(run: Callable[[Mapping[str, Any], int], int] = run_job) -> None:
    """Run one rank of every job in a fork and print the exit codes as JSON."""
    rank, jobs = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    import torch._dynamo  # what DeepSpeed's start takes longest to import

    import recipes.engine.deepspeed_engine as engine

    engine.import_deepspeed(torch.device("cpu"))
    codes: list[int | None] = []
    for job in jobs:
        if rank >= job["world_size"]:
            codes.append(None)
            continue
        child = os.fork()
        if child == 0:
            be_rank(run, job, rank)
        _, status = os.waitpid(child, 0)
        codes.append(os.waitstatus_to_exitcode(status))
    print(json.dumps(codes), flush=True)


def be_rank(
    run: Callable[[Mapping[str, Any], int], int], job: Mapping[str, Any], rank: int
) -> None:
    """What a forked process does as a rank of a job; it never comes back."""
    code = 70
    try:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(job["world_size"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(job["port"]),
            ORCHESTRATE_FAULT=job.get("fault") or "",
            ORCHESTRATE_FAULT_RANK=str(job.get("fault_rank", 0)),
            ORCHESTRATE_RESTART_COUNT=str(job.get("restart", 0)),
        )
        code = run(job, rank)
    except BaseException as error:
        print(f"rank {rank}, {job['folder']}: {error!r}", file=sys.stderr, flush=True)
    finally:
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_jobs(
    folder: Path, jobs: Sequence[Mapping[str, Any]], worker: str = __file__
) -> list[list[int | None]]:
    """Run jobs one after the other; returns for each the exit codes of its ranks.

    A negative code is the signal that killed the rank. `worker` is a script that calls `main` with
    what a rank does for a job.
    """
    path = folder / f"jobs-{time.monotonic_ns()}.json"
    path.write_text(json.dumps([{**job, "port": free_port()} for job in jobs]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    ranks = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for rank in range(max(job["world_size"] for job in jobs))
    ]
    codes = []
    for process in ranks:
        output, errors = process.communicate(timeout=1200)
        assert process.returncode == 0, errors[-4000:]
        codes.append(json.loads(output.strip().splitlines()[-1]))
        sys.stderr.write(errors[-4000:])
    return [[code for code in job_codes if code is not None] for job_codes in zip(*codes)]  # noqa: B905


if __name__ == "__main__":
    main()
