"""Continuing from the newest checkpoint, by as many ranks as there are now."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.contract import ConfigurationError, InputError, StageError
from recipes.engine import checkpoint, distributed, fragments, state
from recipes.engine.config import TrainFields
from recipes.engine.deepspeed_engine import Engine
from recipes.engine.reader import Reader

log = logging.getLogger(__name__)

_NOTHING, _REFUSED = -1, -2


class UnreachableError(StageError):
    """Checkpoints cannot be read now; the attempt is repeated, as after a lost peer."""

    exit_code = 74


def newest(
    directory: Path, engine: Engine, config: TrainFields
) -> tuple[int, dict[str, Any] | None]:
    """Load the newest valid checkpoint; returns its step and the loop's data of this rank.

    A collective of all ranks. Step 0 and None where nothing was ever committed.

    Raises:
        InputError: there are checkpoints and none may be used, or it does not fit the model.
        ConfigurationError: it was saved by another number of ranks, on which the loss depends.
        UnreachableError: the files cannot be read now.
    """
    step, ranks = _choose(directory)
    if step == _NOTHING:
        return 0, None
    _check_ranks(engine, step, ranks)
    folder = directory / checkpoint.name_of(step)
    with _reached(folder):
        reader = Reader(folder, ranks)
        reader.refuse_misfit(fragments.shapes(engine.model))
        loop = _load(engine, config, reader, step)
    log.info("resumed from %s", folder)
    return step, loop


def _choose(directory: Path) -> tuple[int, int]:
    """Rank 0 looks and verifies, the others are told: (step, ranks that saved it)."""
    answer, refusal = [_NOTHING, 0], None
    if distributed.is_main():
        try:
            with _reached(directory):
                checkpoint.sweep(directory)
                found = checkpoint.newest(directory)
            if found is not None:
                answer = [found.step, int(found.description["world_size"])]
        except StageError as error:
            answer, refusal = [_REFUSED, error.exit_code], error
    step, ranks = distributed.from_main(answer)
    if refusal is not None:
        raise refusal
    if step == _REFUSED:
        # As rank 0's: whether the job is tried again is decided on the first error of any rank.
        kind = UnreachableError if ranks == UnreachableError.exit_code else InputError
        raise kind("rank 0 refused the checkpoints; its log says why")
    return step, ranks


@contextmanager
def _reached(folder: Path) -> Iterator[None]:
    """What the system says of files inside says nothing of what they hold.

    Raises:
        UnreachableError: instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise UnreachableError(
            f"{folder} cannot be read now ({error}); the next attempt tries again. If "
            "it stays so, see to the file server or to the rights of the folder"
        ) from error


def _check_ranks(engine: Engine, step: int, ranks: int) -> None:
    now = distributed.world_size()
    if ranks == now:
        return
    if engine.spans_ranks:
        raise ConfigurationError(
            f"step {step} was saved by {ranks} ranks and the loss depends on their number: "
            f"it cannot be continued by {now}. Ask for {ranks} ranks again"
        )
    log.warning(
        "step %d was saved by %d ranks and is continued by %d: same weights, batches and "
        "dropout, sums in another order",
        step,
        ranks,
        now,
    )


def _load(engine: Engine, config: TrainFields, reader: Reader, step: int) -> dict[str, Any]:
    raw, ranks = engine.raw, len(reader.states)
    rank, now = distributed.rank(), distributed.world_size()
    held = fragments.slots(raw, engine.model)
    fragments.load(held, raw, reader.kinds, reader.fetch, reader.numbers())
    reader.fill_buffers(engine.model, rank)
    engine.load_scaler_state(reader.states[0]["scaler"])
    raw.global_steps = step
    raw.global_samples = step * config.batch_size
    raw.micro_steps = step * config.accumulation(now)
    if rank < ranks:
        state.restore_random(reader.own("random", rank), reader.states[rank]["random"])
    loops = [one["loop"] for one in reader.states]
    return state.join_loops(loops, now) if now != ranks else loops[rank]
