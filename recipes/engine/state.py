"""What a rank keeps across a restart besides weights and optimizer: random states, what it logs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
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
    # What `torch.manual_seed` does; without a GPU that formats the stack three times as well.
    torch.default_generator.manual_seed(own)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(own)


def capture_random() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All random states: what is large as tensors, the rest as plain JSON."""
    numpy: Any = np.random.get_state(legacy=False)
    version, internal, gauss_next = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "python": torch.tensor(internal, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    numbers = {
        "numpy": [numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]],
        "python": [version, gauss_next],
    }
    return tensors, numbers


def restore_random(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Set all random states to what `capture_random` gave."""
    torch.set_rng_state(tensors["torch"])
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *numbers["numpy"]))
    version, gauss_next = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss_next))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


class Meter:
    """Running means of what is logged, over the micro-batches since the last log."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0.0  # micro-batches; a whole number unless ranks were added

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
        names = list(self._sums)
        sums = torch.stack([self._sums[name] for name in names]).tolist() if names else []
        return {"sums": dict(zip(names, sums, strict=True)), "count": self._count}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from `state`."""
        sums = state["sums"].items()
        self._sums = {n: torch.tensor(v, dtype=torch.float64, device=device) for n, v in sums}
        self._count = state["count"]


def equal_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers that are equal on all ranks, as modules say in `equal_on_ranks`."""
    return {
        f"{place}.{name}" if place else name
        for place, module in model.named_modules()
        for name in getattr(module, "equal_on_ranks", ())
    }


def own_buffers(model: nn.Module, rank: int) -> list[tuple[str, Tensor]]:
    """The buffers that a rank keeps in a checkpoint: what is equal on all ranks, rank 0 keeps."""
    equal = equal_buffers(model) if rank else set()
    return [(name, value) for name, value in model.named_buffers() if name not in equal]


def join_loops(loops: Sequence[Mapping[str, Any]], ranks: int) -> dict[str, Any]:
    """What each of `ranks` ranks continues from where another number of them saved `loops`.

    All but the meter is equal on all ranks; the meters, under `meter`, are shared out evenly.
    """
    meters = [loop["meter"] for loop in loops]
    names = sorted({name for meter in meters for name in meter["sums"]})
    sums = {name: sum(meter["sums"][name] for meter in meters) / ranks for name in names}
    count = sum(meter["count"] for meter in meters) / ranks
    return {**loops[0], "meter": {"sums": sums, "count": count}}


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
