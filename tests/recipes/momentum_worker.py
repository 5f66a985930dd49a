"""One rank of small momentum-contrast trainings through the real loop; see `engine_worker.main`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.contract import Preempted
from recipes.data.augment import normalize
from recipes.data.loader import Batch
from recipes.engine.contract import LossOutput
from recipes.methods.dpc.config import DPCConfig
from recipes.methods.dpc.method import DPC
from recipes.models.config import R2D3DTinyConfig
from recipes.models.encoder import save_encoder
from recipes.models.momentum import FeatureQueue, MomentumEncoder, encode_shuffled, momentum_at
from tests.recipes.engine_worker import CLIP, TinyBatches, TrainConfig, main, make_context

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
        self.steps = 0
        self.poison_step: int | None = None
        self.held: list[list[Tensor]] = []  # the keys of every step since the start or a resume
        self.weights: list[Tensor] = []  # what every step left

    def set_length(self, steps: int) -> None:
        self.steps = steps

    def set_epoch(self, epoch: int) -> None:
        self.queue.begin_step()
        self.held.append([])

    def loss(self, batch: Batch) -> LossOutput:
        clips = normalize(batch.clips.float().div(255.0)).repeat_interleave(2, dim=3)[:, :, :, :3]
        queries = functional.normalize(self.encoder(clips[:, 0]), dim=1)
        keys = functional.normalize(encode_shuffled(self.momentum, clips[:, 1]), dim=1)
        positive = (queries * keys).sum(dim=1, keepdim=True)
        scores = torch.cat([positive, queries @ self.queue.features.t()], dim=1) / 0.2
        self.queue.hold(keys)
        self.held[-1].append(keys)
        loss = functional.cross_entropy(scores, torch.zeros(len(keys), dtype=torch.int64))
        if len(self.held) == self.poison_step:
            loss = loss * float("nan")
        return LossOutput(loss=loss)

    def after_step(self, step: int) -> None:
        self.momentum.update(momentum_at(step, self.steps, 0.9))
        self.queue.enqueue()
        self.weights.append(self.encoder[0].weight.detach().clone())


def run_job(job: Mapping[str, Any], rank: int) -> int:
    """Train, and write what this rank has at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    if job.get("shuffle"):
        return _run_shuffle(Path(job["folder"]), job, rank)
    if job.get("dpc"):
        return _run_dpc(job, rank)
    model = TinyMoco()
    model.poison_step = job.get("poison_step")
    first = model.encoder[0].weight.detach().clone()
    begun = []

    def stop() -> bool:
        return rank == 0 and begun[0] + len(model.held) == job.get("stop_at")

    try:
        _train(model, job, rank, begun, stop)
    except Preempted:
        return 75
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: value.detach().clone() for name, value in state.items()}
    end = {"state": kept, "keys": model.held, "weights": [first, *model.weights]}
    torch.save(end, Path(job["folder"]) / f"end-{rank}.pt")
    return 0


def _train(
    model: nn.Module,
    job: Mapping[str, Any],
    rank: int,
    begun: list[int],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    from recipes.engine.loop import train

    config = TrainConfig.model_validate(job["config"])

    def batches(start: int) -> TinyBatches:
        begun.append(start)
        return TinyBatches(config, rank, job["world_size"], start)

    folder, world = Path(job["folder"]), job["world_size"]
    ctx = make_context(folder, rank=rank, world_size=world, stop_requested=stop)
    train(ctx, model, batches, config)


def _run_dpc(job: Mapping[str, Any], rank: int) -> int:
    """Train the method and write its encoder, as the stage does; ranks but the first are silent."""
    model = DPC(DPCConfig(pred_steps=2), R2D3DTinyConfig(), CLIP)
    _train(model, job, rank, [])
    encoder, description = model.export_encoder()
    if rank == 0:
        save_encoder(encoder, description, Path(job["folder"]) / "encoder.safetensors")
    return 0


def _run_shuffle(folder: Path, job: Mapping[str, Any], rank: int) -> int:
    """Encode three rows a rank, numbered over the ranks, and write down which ones it was given."""
    from recipes.engine import distributed

    distributed.init(make_context(folder, rank=rank, world_size=job["world_size"]))
    torch.manual_seed(rank)  # only rank 0's order counts
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
