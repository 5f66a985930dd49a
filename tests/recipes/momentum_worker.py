"""One rank of small momentum-contrast trainings through the real loop; see `engine_worker.main`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.contract import Preempted
from recipes.data.augment import normalize
from recipes.data.loader import Batch
from recipes.engine.contract import LossOutput
from recipes.models.momentum import FeatureQueue, MomentumEncoder, encode_shuffled, momentum_at
from tests.recipes.engine_worker import TinyBatches, TrainConfig, main, make_context

STEPS, LENGTH, DIM = 6, 16, 4


class TinyMoco(nn.Module):
    """Block 0 of a video is the query, block 1 its key; negatives come from the queue."""

    spans_ranks = True

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv3d(3, 8, 3, stride=2, bias=False),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(DIM),
        )
        self.encoder(torch.zeros(1, 3, 3, 16, 16))
        self.momentum = MomentumEncoder(self.encoder)
        self.queue = FeatureQueue(LENGTH, DIM)
        self.enqueued: list[Tensor] = []

    def loss(self, batch: Batch) -> LossOutput:
        clips = normalize(batch.clips.float().div(255.0)).repeat_interleave(2, dim=3)[:, :, :, :3]
        queries = functional.normalize(self.encoder(clips[:, 0]), dim=1)
        keys = functional.normalize(encode_shuffled(self.momentum, clips[:, 1]), dim=1)
        positive = (queries * keys).sum(dim=1, keepdim=True)
        scores = torch.cat([positive, queries @ self.queue.features.t()], dim=1) / 0.2
        self.queue.hold(keys)
        self.enqueued.append(keys)
        return LossOutput(
            loss=functional.cross_entropy(scores, torch.zeros(len(keys), dtype=torch.int64))
        )

    def after_step(self, step: int) -> None:
        self.momentum.update(momentum_at(step, STEPS, 0.9))
        self.queue.enqueue()


def run_job(job: Mapping[str, Any], rank: int) -> int:
    """Train, and write what this rank has at the end."""
    from recipes.engine.loop import train

    torch.set_num_threads(1)
    folder, config = Path(job["folder"]), TrainConfig.model_validate(job["config"])
    if job.get("shuffle"):
        return _run_shuffle(folder, job, rank)
    torch.manual_seed(7)
    model = TinyMoco()
    seen = {"steps": 0}

    def batches(start: int) -> TinyBatches:
        seen["steps"] = start
        return TinyBatches(config, rank, job["world_size"], start)

    def stop() -> bool:
        done = seen["steps"] + len(model.enqueued) // config.accumulation(job["world_size"])
        return rank == 0 and done == job.get("stop_at")

    ctx = make_context(folder, rank=rank, world_size=job["world_size"], stop_requested=stop)
    try:
        train(ctx, model, batches, config)
    except Preempted:
        return 75
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: value.detach().clone() for name, value in state.items()}
    torch.save({"state": kept, "keys": model.enqueued}, folder / f"end-{rank}.pt")
    return 0


def _run_shuffle(folder: Path, job: Mapping[str, Any], rank: int) -> int:
    """Encode three rows a rank, numbered over the ranks, and write down which ones it was given."""
    from recipes.engine import distributed

    distributed.init(make_context(folder, rank=rank, world_size=job["world_size"]))
    torch.manual_seed(rank)
    given: list[Tensor] = []

    def encode(rows: Tensor) -> Tensor:
        given.append(rows)
        return 10 * rows

    rows = torch.arange(3.0).view(3, 1) + 3 * rank
    torch.save({"encoded": encode_shuffled(encode, rows), "given": given[0]}, folder / f"{rank}.pt")
    distributed.barrier()
    return 0


if __name__ == "__main__":
    main(run_job)
