"""What a rank keeps across a restart besides weights and optimizer: random states, buffers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipes.engine import distributed


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Seed Python, NumPy and torch for micro-batch `number` (over all ranks) of an optimizer step.

    So dropout belongs to the clips, not to the rank: another rank count draws the same.
    """
    own = int(np.random.SeedSequence([seed, step, number]).generate_state(1)[0])
    random.seed(own)
    np.random.seed(own)  # methods may use the global state
    torch.manual_seed(own)


def capture_random() -> dict[str, Any]:
    """All random states, as numbers and tensors only, so that they load without unpickling."""
    numpy: Any = np.random.get_state(legacy=False)
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss_next],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random(state: Mapping[str, Any]) -> None:
    """Set all random states to what `capture_random` gave."""
    torch.set_rng_state(state["torch"])
    numpy = state["numpy"]
    keys = numpy["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["pos"], numpy["has_gauss"], numpy["gauss"]))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Meter:
    """Running means of what is logged, over the micro-batches since the last log."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of one micro-batch, without waiting for the device."""
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def take(self) -> dict[str, float]:
        """Means over all ranks, and start anew. A collective: every rank calls it."""
        if not self._count:
            return {}
        names = sorted(self._sums)
        stacked = torch.stack([self._sums[name] for name in names]) / self._count
        means = (distributed.sum_ranks(stacked) / distributed.world_size()).tolist()
        self._sums, self._count = {}, 0
        return dict(zip(names, means, strict=True))

    def state(self) -> dict[str, Any]:
        """For the checkpoint, so that the first log after a resume covers what it always does."""
        return {"sums": {k: v.cpu() for k, v in self._sums.items()}, "count": self._count}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from `state`."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._count = int(state["count"])


class History:
    """What was logged, thinned to every second entry whenever it has become long."""

    def __init__(self, longest: int = 4000) -> None:
        self._longest = longest
        self._every = 1
        self._seen = 0
        self.entries: list[tuple[int, dict[str, float]]] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append one entry, unless thinning leaves it out."""
        if self._seen % self._every == 0:
            self.entries.append((step, dict(values)))
        self._seen += 1
        if len(self.entries) >= self._longest:
            self.entries, self._every = self.entries[::2], 2 * self._every

    def state(self) -> list[Any]:
        """For the checkpoint."""
        return [self._every, self._seen, self.entries]

    def load(self, state: Sequence[Any]) -> None:
        """Continue from `state`."""
        self._every, self._seen = state[0], state[1]
        self.entries = [(step, dict(values)) for step, values in state[2]]


def rank_file(rank: int) -> str:
    """Name of a rank's own file in a checkpoint."""
    return f"rank_{rank:05d}.pt"


def write_rank_state(folder: Path, model: nn.Module, loop: Mapping[str, Any]) -> Path:
    """Write this rank's state into a checkpoint's folder; returns the file.

    Batch-norm statistics differ between ranks while the shared file has rank 0's, so every rank
    keeps its own buffers. `loop` is plain data of the loop.
    """
    buffers = {name: value.detach().cpu() for name, value in model.named_buffers()}
    path = folder / rank_file(distributed.rank())
    torch.save({"random": capture_random(), "buffers": buffers, "loop": dict(loop)}, path)
    return path


def read_rank_state(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Restore random states and buffers, and return the loop's data."""
    path = folder / rank_file(distributed.rank())
    state = torch.load(path, map_location="cpu", weights_only=True)
    restore_random(state["random"])
    own = dict(model.named_buffers())
    for name, value in state["buffers"].items():
        own[name].copy_(value)
    loop: dict[str, Any] = state["loop"]
    return loop
