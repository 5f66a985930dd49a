"""Saving and restoring a training over all ranks: DeepSpeed's files, ours, and the commit."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recipes.contract import ConfigurationError, DivergedError, InputError, StageError
from recipes.engine import checkpoint, distributed, faults, state
from recipes.engine.config import TrainFields
from recipes.engine.deepspeed_engine import Engine

log = logging.getLogger(__name__)

_NOTHING, _REFUSED = -1, -2


class Saver:
    """Saves and restores one training in `directory`; every method is a collective of all ranks."""

    def __init__(self, directory: Path, engine: Engine, config: TrainFields) -> None:
        self._directory = directory
        self._engine = engine
        self._config = config
        self._saves = 0
        self._committed: int | None = None

    def restore(self) -> tuple[int, dict[str, Any] | None]:
        """Load the newest valid checkpoint; returns its step and the loop's data of this rank.

        Step 0 and None where nothing was ever committed; None where ranks were added.

        Raises:
            InputError: there are checkpoints and none may be used.
            ConfigurationError: it was saved by another number of ranks and ZeRO split it.
        """
        step, ranks = self._choose()
        if step == _NOTHING:
            return 0, None
        self._check_ranks(step, ranks)
        folder = self._directory / checkpoint.name_of(step)
        self._engine.load(self._directory, folder.name)
        self._committed = step
        log.info("resumed from %s", folder)
        if distributed.rank() >= ranks:
            return step, None
        return step, state.read_rank_state(folder, self._engine.model)

    def save(self, step: int, loop: Mapping[str, Any]) -> None:
        """Commit a checkpoint of `step`, unless it is the one committed last.

        Raises:
            DivergedError: weights are not finite; the checkpoints before stay.
            StageError: it could not be written; those before stay.
        """
        if step == self._committed:
            return
        self._refuse_broken_weights(step)
        self._saves += 1
        began = time.monotonic()
        try:
            self._write(step, loop)
        except (OSError, RuntimeError) as error:
            free = shutil.disk_usage(self._directory).free / 1e9
            if distributed.is_main():
                partial = self._directory / checkpoint.temporary_name_of(step)
                shutil.rmtree(partial, ignore_errors=True)
            raise RuntimeError(
                f"cannot save step {step} in {self._directory} ({free:.1f} GB free): {error}. "
                "Earlier checkpoints are untouched"
            ) from error
        self._committed = step
        log.info("saved step %d in %.1f s", step, time.monotonic() - began)

    def _choose(self) -> tuple[int, int]:
        """Rank 0 looks and verifies, the others are told: (step, ranks that saved it)."""
        answer, refusal = [_NOTHING, 0], None
        if distributed.is_main():
            try:
                checkpoint.sweep(self._directory)
                found = checkpoint.newest(self._directory)
                if found is not None:
                    answer = [found.step, int(found.description["world_size"])]
            except StageError as error:
                answer, refusal = [_REFUSED, 0], error
        step, ranks = distributed.from_main(answer)
        if refusal is not None:
            raise refusal
        if step == _REFUSED:
            raise InputError("rank 0 refused the checkpoints; its log says why")
        return step, ranks

    def _check_ranks(self, step: int, ranks: int) -> None:
        now = distributed.world_size()
        if ranks != now and self._config.zero_stage:
            raise ConfigurationError(
                f"step {step} was saved by {ranks} ranks with ZeRO stage "
                f"{self._config.zero_stage}, which splits the optimizer's state over them; it "
                f"cannot be continued by {now}. Ask for {ranks} ranks again (zero_stage 0 "
                "continues on any number)"
            )
        if ranks != now:
            log.warning(
                "step %d was saved by %d ranks and is continued by %d: same weights, batches and "
                "dropout, sums in another order",
                step,
                ranks,
                now,
            )

    def _refuse_broken_weights(self, step: int) -> None:
        finite = all(bool(torch.isfinite(p).all()) for p in self._engine.model.parameters())
        if distributed.agree(not finite):
            raise DivergedError(
                f"weights are not finite after step {step}; the checkpoint before it is kept. "
                "Lower optimizer.lr, lengthen the warm-up or set clip_grad"
            )

    def _write(self, step: int, loop: Mapping[str, Any]) -> None:
        temporary = self._directory / checkpoint.temporary_name_of(step)
        if distributed.is_main():
            checkpoint.begin(self._directory, step)
        distributed.barrier()
        faults.hit("checkpoint.begun", self._saves)
        self._engine.save(self._directory, temporary.name)
        faults.hit("checkpoint.half_written", self._saves)
        checkpoint.sync_file(state.write_rank_state(temporary, self._engine.model, loop))
        distributed.barrier()
        if distributed.is_main():
            checkpoint.commit(
                self._directory,
                step,
                self._description(),
                keep=self._config.checkpoint.keep,
                save_number=self._saves,
            )
        distributed.barrier()

    def _description(self) -> dict[str, Any]:
        return {
            "world_size": distributed.world_size(),
            "zero_stage": self._config.zero_stage,
            "precision": self._config.precision,
            "batch_size": self._config.batch_size,
            "micro_batch": self._config.micro_batch,
        }
