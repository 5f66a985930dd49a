"""Ranks that train a small model many times in one process group, for the tests of resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipes.contract import Preempted, StageError
from recipes.data.loader import Batch
from recipes.engine.contract import LossOutput
from tests.recipes.engine_worker import TinyBatches, TrainConfig, main, make_context


class Small(nn.Module):
    """Has all that a checkpoint must hold: odd sizes, a frozen weight, statistics, a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 5, 2, stride=2)
        self.norm = nn.BatchNorm3d(5)
        self.frozen = nn.Linear(7, 5).requires_grad_(False)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(5, 11)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.register_buffer("queue", torch.randn(13, 11), persistent=False)
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.steps_taken = 0
        self.spans_ranks = False
        self.used: list[list[int]] = []

    def after_step(self, step: int) -> None:
        """Remember the step, for the stop."""
        self.steps_taken = step

    def loss(self, batch: Batch) -> LossOutput:
        """A loss of the micro-batch alone, which then enters the queue."""
        self.used.append(batch.videos.tolist())
        features = self.norm(self.stem(batch.clips[:, 0].float() / 255)).mean((2, 3, 4))
        keys = self.head(self.drop(torch.tanh(features + self.frozen.weight.sum(1)))) * self.scale
        loss = keys.logsumexp(1).mean() + (keys - keys.mean(0)).square().mean()
        place = self.get_buffer("place")
        self.get_buffer("queue")[int(place) % 13] = keys[0].detach()
        place.add_(1)
        return LossOutput(loss=loss, metrics={"size": keys.abs().mean()})


def train_once(leg: Mapping[str, Any], job: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """One training, to its end or to `stop_at`; says how it ended and what it used."""
    from recipes.engine.loop import train

    config = TrainConfig.model_validate(leg["config"])
    torch.manual_seed(7)
    model = Small()
    model.spans_ranks = bool(leg.get("spans_ranks"))
    ctx = make_context(
        Path(leg["folder"]),
        rank=rank,
        world_size=job["world_size"],
        stop_requested=lambda: rank == 0 and model.steps_taken + 1 == leg["stop_at"],
    )

    def batches(start: int) -> TinyBatches:
        model.steps_taken = start
        return TinyBatches(config, rank, ctx.world_size, start)

    ended = "done"
    try:
        train(ctx, model, batches, config)
    except Preempted:
        ended = "stopped"
    except StageError as error:
        ended = f"{type(error).__name__}: {error}"
    return {"ended": ended, "used": model.used}


def run(job: Mapping[str, Any], rank: int) -> int:
    """All legs of a job, one after the other."""
    torch.set_num_threads(1)
    ends = [train_once(leg, job, rank) for leg in job["legs"]]
    (Path(job["folder"]) / f"{job['name']}-{rank}.json").write_text(json.dumps(ends))
    return 0


if __name__ == "__main__":
    main(run)
