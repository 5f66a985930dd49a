"""Saving and restoring a training over all ranks, while it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recipes.contract import DivergedError, InputError, StageError
from recipes.engine import (
    batch_statistics,
    checkpoint,
    distributed,
    faults,
    fragments,
    interval,
    restore,
    shards,
    space,
    state,
)
from recipes.engine.config import TrainFields
from recipes.engine.deepspeed_engine import Engine
from recipes.engine.writer import Background, Snapshot

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # while a save is waited for
RETRY_SECONDS = 60.0  # after a save that failed; space may have come back


class SaveError(StageError):
    """A checkpoint that must be there could not be written."""


@dataclass(kw_only=True)
class _Flight:
    """A save under way: of which step, whether it must succeed, and how far it is."""

    step: int
    must: bool
    began: float
    committing: bool = False
    stall_seconds: float = 0.0


class Saver:
    """Saves and restores one training in `directory`.

    A save is a copy to host memory, which training waits for, and writing in the background. When
    no rank is `pending`, which the loop finds out together with other things, `settle` goes on to
    the commit. At most one save is under way.

    Attributes:
        committed: newest step that this training committed or went on from; 0 without one.
    """

    def __init__(
        self,
        directory: Path,
        engine: Engine,
        config: TrainFields,
        sign: Callable[[], object],
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        """`sign` tells the watchdog that this rank lives; called while a save is waited for.

        `fence` is called before each commit, and does not return where another attempt has begun.
        """
        self._directory, self._sign, self._fence = directory, sign, fence
        self._engine = engine
        self._config = config
        self._snapshot, self._background = Snapshot(engine.raw.device), Background()
        self._flight: _Flight | None = None
        self._costs: list[interval.Cost] = []
        self._saves = 0
        self.committed = 0
        self._last, self._failed = time.monotonic(), False

    @property
    def pending(self) -> bool:
        """Whether this rank is still writing."""
        return self._background.running

    @property
    def committing(self) -> bool:
        """Whether this rank is committing what all have written."""
        return self._flight is not None and self._flight.committing and self.pending

    def due(self) -> bool:
        """Whether it is time for a save, on rank 0; never on the others."""
        minutes = self._config.checkpoint.minutes
        if minutes is None or self._flight is not None or not distributed.is_main():
            return False
        seconds = interval.seconds_between(minutes, self._costs)
        passed = time.monotonic() - self._last
        return passed >= (min(seconds, RETRY_SECONDS) if self._failed else seconds)

    def restore(self) -> tuple[int, dict[str, Any] | None]:
        """Load the newest valid checkpoint; returns its step and the loop's data of this rank.

        A collective of all ranks, before the first step. Step 0 and None where nothing was ever
        committed.

        Raises:
            InputError: there are checkpoints and none may be used, or it does not fit the model.
            ConfigurationError: it was saved by another number of ranks, on which the loss depends.
            UnreachableError: the files cannot be read now.
        """
        step, loop = restore.newest(self._directory, self._engine, self._config)
        self.committed = step
        return step, loop

    def check_space(self) -> None:
        """See beforehand whether the checkpoints to come have room; all ranks, before training.

        Raises:
            InputError: not even one has; names folder, needed and free.
        """
        if distributed.agree(distributed.is_main() and self._has_no_room()):
            raise InputError(
                f"{self._directory}: no room for a checkpoint; the log of rank 0 has needed and "
                "free. Make room or move the store"
            )

    def _has_no_room(self) -> bool:
        """Whether not one more checkpoint has room; where nobody can look, that is not known."""
        size = space.estimated_bytes(
            self._engine.model, self._config.optimizer, distributed.world_size()
        )
        try:
            present = len(checkpoint.steps(self._directory))
            needed = size * max(1, self._config.checkpoint.keep + 1 - present)
            return space.is_too_little(self._directory, size, needed)
        except OSError as error:
            log.warning("room for checkpoints cannot be looked for: %s", error)
            return False

    def save(self, step: int, loop: Mapping[str, Any], *, wait: bool) -> None:
        """Begin to save `step`, unless it is committed; a collective of all ranks.

        Args:
            step: optimizer steps taken.
            loop: plain JSON of this rank's loop; its meter under `meter`.
            wait: until it is committed, and take a failure for an error: else it is a warning.

        Raises:
            DivergedError: weights or batch statistics are not finite; the checkpoints before stay.
            SaveError: it could not be written and `wait` was asked for; those before stay.
        """
        began = time.monotonic()
        self.finish()  # the one before
        if step != self.committed:
            self._begin(step, loop, must=wait)
        if self._flight is not None:
            self._flight.stall_seconds += time.monotonic() - began
        if wait or not self._config.checkpoint.asynchronous:
            self.finish()

    def settle(self) -> None:
        """Go on with the save under way; a collective of all ranks, when none is pending.

        Raises:
            SaveError: it failed and had to succeed.
        """
        if self._flight is None:
            return
        began = time.monotonic()
        error = self._background.wait()
        if distributed.agree(error is not None):
            self._fail(self._flight, error)
        elif self._flight.committing:
            self._settled(self._flight)
        else:
            self._flight.committing = True
            if distributed.is_main():
                self._background.start(partial(self._commit, self._flight.step))
            self._flight.stall_seconds += time.monotonic() - began

    def finish(self) -> None:
        """Wait until the save under way is committed, if there is one; all ranks.

        Raises:
            SaveError: it failed and had to succeed.
        """
        while self._flight is not None:
            self._rest()
            self.settle()

    def _rest(self) -> None:
        """Wait until no rank is writing.

        All give signs of life as long as any gets on: who waits for a slow peer hangs no more than
        that one does.
        """
        running = True
        while running:
            moved = self._background.rest(_LOOK_SECONDS)
            running, moved = distributed.any_of([self.pending, moved])
            if running and moved:
                self._sign()

    def close(self) -> None:
        """Let a commit that has begun end, when training is over for any reason; no collective.

        What this rank still writes beside that is worthless without the others, and left alone.
        """
        while self.committing:
            if self._background.rest(_LOOK_SECONDS):
                self._sign()

    def _begin(self, step: int, loop: Mapping[str, Any], *, must: bool) -> None:
        self._refuse_broken_weights(step)
        tensors, content = self._capture(step, loop)
        self._saves += 1
        self._last, self._failed = time.monotonic(), False
        self._flight = _Flight(step=step, must=must, began=self._last)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        (total,) = distributed.sum_ranks(
            torch.tensor([size], device=self._engine.raw.device)
        ).tolist()
        error: OSError | None = None
        folder = self._directory / checkpoint.temporary_name_of(step)
        if distributed.is_main():
            try:
                checkpoint.begin(self._directory, step)
                space.require(self._directory, total)
            except OSError as problem:
                error = problem
        (failed,) = distributed.from_main([int(error is not None)])
        if failed:
            self._fail(self._flight, error)
            return
        faults.hit("checkpoint.begun", self._saves)
        layout = self._snapshot.take(tensors)
        self._background.start(partial(self._write, folder, layout, content))

    def _refuse_broken_weights(self, step: int) -> None:
        weights = self._engine.weights_finite()
        statistics = batch_statistics.finite(self._engine.model)
        broken = distributed.any_of([not weights, not statistics])
        if any(broken):
            what = "weights" if broken[0] else "running statistics of batch norms"
            raise DivergedError(
                f"{what} are not finite after step {step}; the checkpoint before it is kept. "
                "Lower optimizer.lr, lengthen the warm-up or set clip_grad"
            )

    def _capture(
        self, step: int, loop: Mapping[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything this rank saves: tensors as they are, not copied, and plain JSON."""
        model, rank = self._engine.model, distributed.rank()
        optimizer = fragments.optimizer_of(self._engine.raw)
        held = fragments.slots(self._engine.raw, model)
        tensors, random = state.capture_random()
        tensors = {f"random/{name}": value for name, value in tensors.items()}
        tensors |= {f"buffer/{name}": value for name, value in state.own_buffers(model, rank)}
        scalars = {}
        for slot in fragments.share_out(held, rank, distributed.world_size()):
            for kind, values in fragments.tensors(slot, optimizer).items():
                tensors[shards.fragment_key(kind, slot.start, slot.name)] = values
            scalars[slot.name] = fragments.scalars(slot, optimizer)
        content = {
            "step": step,
            "parameters": fragments.shapes(model),
            "scalars": scalars,
            "scaler": self._engine.scaler_state(),
            "random": random,
            "loop": dict(loop),
        }
        return tensors, content

    def _write(
        self, folder: Path, layout: Mapping[str, shards.Stored], content: Mapping[str, Any]
    ) -> None:
        rank = distributed.rank()
        path = folder / shards.file_name(rank)
        written = shards.write(path, layout, self._snapshot.data(), content, self._background.moved)
        faults.hit("checkpoint.half_written", self._saves)
        checkpoint.note_written(folder, rank, written)

    def _commit(self, step: int) -> None:
        self._fence()
        checkpoint.commit(
            self._directory,
            step,
            self._description(),
            ranks=distributed.world_size(),
            keep=self._config.checkpoint.keep,
            keep_every=self._config.checkpoint.keep_every,
            save_number=self._saves,
            moved=self._background.moved,
        )

    def _settled(self, flight: _Flight) -> None:
        self._flight, self.committed = None, flight.step
        seconds = time.monotonic() - flight.began
        cost = interval.Cost(stall_seconds=flight.stall_seconds, write_seconds=seconds)
        self._costs.append(cost)
        log.info(
            "saved step %d in %.1f s; training waited %.2f s",
            flight.step,
            seconds,
            flight.stall_seconds,
        )

    def _fail(self, flight: _Flight, error: Exception | None) -> None:
        self._flight, self._failed = None, True
        if distributed.is_main():
            checkpoint.abandon(self._directory, flight.step)
        cause = error or "another rank could not write; its log says why"
        free = space.free(self._directory)
        message = (
            f"cannot save step {flight.step} in {self._directory} ({free}): {cause}. "
            "Earlier checkpoints are untouched"
        )
        if flight.must:
            raise SaveError(message) from error
        log.warning("%s; training goes on, and the next save is tried", message)

    def _description(self) -> dict[str, Any]:
        return {
            "world_size": distributed.world_size(),
            "zero_stage": self._config.zero_stage,
            "precision": self._config.precision,
            "batch_size": self._config.batch_size,
            "micro_batch": self._config.micro_batch,
        }
