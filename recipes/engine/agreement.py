"""What all ranks have to know of a step before they act together: one small collective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipes.engine import distributed


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What any rank said, the same on all; `rows` are this rank's if it is one with broken numbers.

    Attributes:
        step: what it is about, the first that was broken if there is one.
        stop: a stop was requested.
        due: it is time for a checkpoint.
        pending: a checkpoint is being written.
        broken: a loss or gradient is not finite.
        rows: of the table, one tensor a micro-batch.
    """

    step: int = 0
    stop: bool = False
    due: bool = False
    pending: bool = False
    broken: bool = False
    rows: Sequence[Tensor] = ()

    def or_else(self, other: Verdict) -> Verdict:
        """What either says; the rows are those of the first that has any."""
        return Verdict(
            step=self.step if self.broken else other.step,
            stop=self.stop or other.stop,
            due=self.due or other.due,
            pending=self.pending or other.pending,
            broken=self.broken or other.broken,
            rows=self.rows or other.rows,
        )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """An answer; on its way from the device where `arrived` is something to wait for."""

    step: int
    answer: Tensor
    rows: Sequence[Tensor]
    arrived: Any = None


class Agreement:
    """Lets ranks act together, once a step.

    On CUDA the answer of a step is read one step later: waiting for it would leave the device
    without work in every step. All ranks read the same answer in the same step either way.

    Attributes:
        lag: steps by which an answer is late.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.lag = 0 if device.type == "cpu" else 1
        self._late: _Asked | None = None

    def reach(
        self,
        step: int,
        *,
        stop: bool,
        due: bool,
        pending: bool,
        broken: Tensor,
        rows: Sequence[Tensor],
        now: bool,
    ) -> Verdict:
        """What all ranks say; a collective.

        Args:
            step: number of the step, from 1.
            stop: see `Verdict`, like the others, of this rank.
            due: likewise.
            pending: likewise.
            broken: () bool on the device.
            rows: table rows of the step.
            now: this step's answer is needed (with that of the step before, if nobody read it).
        """
        before = _read(self._late)
        asked = self._ask(step, [stop, due, pending], broken, rows)
        if self.lag and not now:
            self._late = asked
            return before
        self._late = None
        return before.or_else(_read(asked))

    def _ask(
        self, step: int, flags: Sequence[bool], broken: Tensor, rows: Sequence[Tensor]
    ) -> _Asked:
        """On CUDA all of it is queued on the device; the host goes on."""
        if self._device.type == "cpu":
            here = bool(broken)
            said = torch.tensor([*distributed.any_of([*flags, here]), here])
            return _Asked(step=step, answer=said, rows=rows)
        votes = torch.empty(len(flags) + 1, device=self._device)
        said = torch.tensor(flags, dtype=torch.float32).pin_memory()
        votes[:-1].copy_(said, non_blocking=True)
        votes[-1] = broken
        everybody = torch.cat([distributed.sum_ranks(votes), votes[-1:]])
        answer = torch.empty(len(everybody), pin_memory=True)
        answer.copy_(everybody, non_blocking=True)
        arrived: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return _Asked(step=step, answer=answer, rows=rows, arrived=arrived)


def _read(asked: _Asked | None) -> Verdict:
    if asked is None:
        return Verdict()
    if asked.arrived is not None:
        asked.arrived.synchronize()
    return _verdict(asked.step, [value > 0 for value in asked.answer.tolist()], asked.rows)


def _verdict(step: int, flags: Sequence[bool], rows: Sequence[Tensor]) -> Verdict:
    stop, due, pending, broken, here = flags
    return Verdict(
        step=step, stop=stop, due=due, pending=pending, broken=broken, rows=rows if here else ()
    )
