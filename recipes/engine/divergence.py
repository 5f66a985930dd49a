"""Losses and gradients that are not finite: how many are left out, and what is said of the last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recipes.contract import DivergedError
from recipes.engine import distributed
from recipes.engine.contract import Batches

_NAMED = 8  # videos by their name; of all, the row is given


class Tolerance:
    """Steps in a row that may be left out; the same count on every rank."""

    def __init__(self, most: int, source: Batches) -> None:
        """`most` such steps are borne, and the next one ends training."""
        self._most, self._source = most, source
        self.in_a_row = 0

    @property
    def exhausted(self) -> bool:
        """Whether the next one ends training."""
        return self.in_a_row >= self._most

    def stepped(self) -> None:
        """A step was taken."""
        self.in_a_row = 0

    def left_out(self, step: int, rows: Sequence[Tensor]) -> None:
        """A step was not, or should not have been; a collective if it was one too many.

        Args:
            step: its number, from 1.
            rows: of the table, this rank's of the step, if it is one that saw the fault.

        Raises:
            DivergedError: it was one too many; names the videos of all ranks.
        """
        self.in_a_row += 1
        if self.in_a_row <= self._most:
            return
        own = torch.cat([*rows]) if rows else torch.empty(0, dtype=torch.int64)
        everywhere = sorted(set(distributed.gather_rows(own).tolist()))
        before = f", nor was it in the {self._most} steps before" if self._most else ""
        raise DivergedError(
            f"loss or gradient is not finite at step {step} (epoch "
            f"{(step - 1) // self._source.steps_per_epoch}){before}. Videos of the batch, as rows "
            f"of the training table: {', '.join(map(str, everywhere))}{self._files(everywhere)}. "
            "The last checkpoint is kept; lower optimizer.lr, lengthen the warm-up or set "
            "clip_grad. skip_non_finite leaves a few such steps out"
        )

    def _files(self, rows: Sequence[int]) -> str:
        name = getattr(self._source, "video", None)
        if name is None or not rows:
            return ""
        shown = ", ".join(name(row) for row in rows[:_NAMED])
        return f"; the first {_NAMED}: {shown}" if len(rows) > _NAMED else f": {shown}"
