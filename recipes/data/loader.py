"""Batches of decoded clips for training and evaluation, in an order that is pure arithmetic.

Which videos, frames, crop and colour a sample gets follows from (seed, epoch, its global number in
the epoch) alone. Ranks and workers share the work but never the randomness, so that a run can be
continued anywhere and on other machines.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.contract import ConfigurationError, InputError
from recipes.data.batch import Batch, pinned
from recipes.data.clip_config import AugmentConfig, ClipConfig
from recipes.data.clips import ClipReader, EvalClips, Facts, Sample, TrainClips, Window
from recipes.data.pool import Bytes, Usage, load_in_order
from recipes.data.table import VideoTable

__all__ = ["READ_SECONDS", "Batch", "TrainBatches", "epoch_order", "eval_batches"]

Item = TypeVar("Item")

log = logging.getLogger(__name__)

READ_SECONDS = 20.0
MAX_REPLACED_SHARE = 0.2

_ORDER = 1  # domain of the random stream
_FEW_REPLACED = 32  # too few to tell a share from


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Rows in the order epoch `epoch` (from 0) visits them: (count,) a permutation."""
    order: NDArray[np.int64] = np.random.default_rng([_ORDER, seed, epoch]).permutation(count)
    return order


class TrainBatches:
    """An iterable of this rank's micro-batches, from optimizer step `start_step` to the last.

    `accumulation` consecutive micro-batches form one optimizer step. Over all ranks a step takes
    the next `batch_size` samples of the epoch's order; the last incomplete batch of an epoch is
    dropped. Micro-batch m of a step goes to rank m % world_size, so its clips stay together (batch
    norm and in-batch negatives see the same company) whatever the number of ranks.

    Attributes:
        steps_per_epoch: optimizer steps of one epoch.
        total_steps: optimizer steps of the whole training, those before `start_step` included.
        accumulation: micro-batches a rank gets for each step.
        workers: processes that read.
        usage: what they have done so far.
        prepared_share: of the videos, how many were re-encoded to be read fast.
    """

    def __init__(
        self,
        table: VideoTable,
        clip: ClipConfig,
        augment: AugmentConfig,
        *,
        seed: int,
        batch_size: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        start_step: int = 0,
        epochs: int | None = None,
        max_steps: int | None = None,
        pin_memory: bool = False,
        read_seconds: float = READ_SECONDS,
        max_replaced_share: float = MAX_REPLACED_SHARE,
    ) -> None:
        """Check that the numbers fit together.

        Args:
            table: what is trained on.
            clip: what a sample is.
            augment: crop and flip; the rest of it happens on the device.
            seed: with epoch and number all that a sample depends on.
            batch_size: samples of an optimizer step, over all ranks.
            micro_batch: samples of one batch given.
            rank: this one.
            world_size: ranks.
            workers: processes that read; with 0 this one does.
            start_step: optimizer steps that are done.
            epochs: length of the training; the shorter one counts.
            max_steps: likewise.
            pin_memory: into page-locked memory.
            read_seconds: how long the reading of a short clip may take in a worker.
            max_replaced_share: of the samples, above which training ends.

        Raises:
            ConfigurationError: `batch_size` is no multiple of micro_batch x world_size, the table
                has fewer videos than `batch_size`, neither length is given, or the sampler needs
                several cameras.
        """
        if batch_size % (micro_batch * world_size):
            raise ConfigurationError(
                f"batch_size {batch_size} is not a multiple of micro_batch {micro_batch} x "
                f"{world_size} ranks; change one of them"
            )
        self._clips = TrainClips(table, clip, augment, seed)
        self.steps_per_epoch = self._clips.count // batch_size
        if self.steps_per_epoch == 0:
            what = "usable videos" if self._clips.count == len(table) else "filmed instances"
            raise ConfigurationError(
                f"{table.name}: {self._clips.count} {what} do not fill one batch of {batch_size}; "
                "lower batch_size"
            )
        if epochs is None and max_steps is None:
            raise ConfigurationError("give epochs or max_steps")
        lengths = [max_steps, None if epochs is None else epochs * self.steps_per_epoch]
        self.total_steps = min(length for length in lengths if length is not None)
        self.accumulation = batch_size // (micro_batch * world_size)
        self._table, self._seed = table, seed
        self._batch_size, self._micro_batch = batch_size, micro_batch
        self._rank, self._world_size = rank, world_size
        self.workers, self.usage = workers, Usage()
        self.prepared_share = float(table.prepared.mean())
        self._start_step, self._pin_memory = start_step, pin_memory
        self._read_seconds, self._max_replaced = read_seconds, max_replaced_share

    def __len__(self) -> int:
        """Micro-batches from `start_step` on."""
        return max(0, self.total_steps - self._start_step) * self.accumulation

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches.

        Raises:
            InputError: more than `max_replaced_share` of the samples could not be read.
        """
        seen = replaced = 0
        reader = ClipReader(self._clips, self._read_seconds)
        samples = self._samples()
        source = _read(self._table, reader, samples, self.workers, self._read_seconds, self.usage)
        with closing(pinned(source) if self._pin_memory else source) as batches:
            for batch in batches:
                for problem in batch.problems:
                    log.warning("%s", problem)
                seen, replaced = seen + len(batch), replaced + len(batch.problems)
                few = _FEW_REPLACED if self._max_replaced else 0
                if batch.problems and replaced > max(few, self._max_replaced * seen):
                    raise InputError(
                        f"{self._table.name}: {replaced} of {seen} samples could not be read, more "
                        f"than max_replaced_share {self._max_replaced:g} allows; the last one: "
                        f"{batch.problems[-1]}. The log names all; mend the files, or raise "
                        "data.version to index them anew, or max_replaced_share"
                    )
                yield batch

    def video(self, row: int) -> str:
        """The file of a row, for messages."""
        return str(self._table.file(row))

    def _samples(self) -> Iterator[list[Sample]]:
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self._start_step, self.total_steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order = epoch_order(self._seed, epoch, self._clips.count)
                order_epoch = epoch
            for part in range(self.accumulation):
                first = place * self._batch_size
                first += (part * self._world_size + self._rank) * self._micro_batch
                numbers = range(first, first + self._micro_batch)
                yield [Sample(int(order[i]), epoch, i) for i in numbers]


def eval_batches(
    table: VideoTable,
    clip: ClipConfig,
    *,
    windows: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    read_seconds: float = READ_SECONDS,
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Centre crops of equally spaced windows of every video of this rank's share.

    Rank r takes rows r, r + world_size, ...; windows of one video follow each other.

    Yields:
        The batch (B, N, C, T, H, W), the rows (B,) and the window numbers (B,).

    Raises:
        InputError: a video cannot be read. None is left out, or the result would not be that of
            the split.
    """
    count = len(range(rank, len(table), world_size)) * windows

    def window(number: int) -> Window:
        return Window(rank + number // windows * world_size, number % windows)

    def parts() -> Iterator[range]:
        return (range(i, min(i + batch_size, count)) for i in range(0, count, batch_size))

    reader = ClipReader(EvalClips(table, clip, windows), read_seconds)
    items = ([window(number) for number in part] for part in parts())
    source = _read(table, reader, items, workers, read_seconds)
    with closing(pinned(source) if pin_memory else source) as batches:
        for part, batch in zip(parts(), batches, strict=True):
            yield batch, batch.videos, torch.tensor([window(number).window for number in part])


def _read(
    table: VideoTable,
    reader: ClipReader[Item],
    items: Iterable[Sequence[Item]],
    workers: int,
    seconds: float,
    usage: Usage | None = None,
) -> Generator[Batch, None, None]:
    with closing(load_in_order(reader, items, workers, seconds, usage)) as batches:
        for clips, facts in batches:
            yield _join(table, clips, facts)


def _join(table: VideoTable, clips: Bytes, samples: Sequence[Facts]) -> Batch:
    rows = np.array([sample.row for sample in samples], dtype=np.int64)
    return Batch(
        clips=torch.from_numpy(clips),
        labels=torch.from_numpy(table.labels[rows]),
        seeds=torch.tensor([sample.seed for sample in samples], dtype=torch.int64),
        videos=torch.from_numpy(rows),
        extra={
            name: torch.from_numpy(np.stack([sample.extra[name] for sample in samples]))
            for name in samples[0].extra
        },
        problems=tuple(sample.problem for sample in samples if sample.problem),
    )
