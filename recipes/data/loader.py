"""Batches of decoded clips for training and evaluation, in an order that is pure arithmetic.

Which videos, frames, crop and colour a sample gets follows from (seed, epoch, its global number in
the epoch) alone. Ranks and workers share the work but never the randomness, so that a run can be
continued anywhere and on other machines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from recipes.contract import ConfigurationError, InputError
from recipes.data.clip_config import AugmentConfig, ClipConfig
from recipes.data.crop import centre_box, random_box, read_box
from recipes.data.samplers import blocks, uniform_windows
from recipes.data.table import VideoTable
from recipes.data.workers import load_in_order

log = logging.getLogger(__name__)

_ORDER, _SAMPLE = 1, 2  # domains of the random streams
_SUBSTITUTES = 8
_MAX_REPLACED_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips of B samples, cropped, scaled and flipped, but not yet coloured.

    Attributes:
        clips: (B, N, C=3, T, H, W) uint8.
        labels: (B,) int64, -1 where unlabeled.
        seeds: (B,) int64, what `augment` draws a sample's colours from.
        videos: (B,) int64, rows of the table.
        problems: one line for each video that could not be read and was replaced.
    """

    clips: Tensor
    labels: Tensor
    seeds: Tensor
    videos: Tensor
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            clips=self.clips.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            seeds=self.seeds.to(device, non_blocking=non_blocking),
            videos=self.videos.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the data loader calls it."""
        return replace(self, clips=self.clips.pin_memory(), labels=self.labels.pin_memory())


class _Sample(NamedTuple):
    """A training sample: table row, epoch, number in the epoch's global order."""

    row: int
    epoch: int
    number: int


class _Window(NamedTuple):
    """An evaluation sample: table row and window number."""

    row: int
    window: int


class _Read(NamedTuple):
    """A decoded sample: (N, C, T, H, W) clip, table row, colour seed, what went wrong before."""

    clip: NDArray[np.uint8]
    row: int
    seed: int
    problem: str


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
    ) -> None:
        """Check that the numbers fit together.

        Raises:
            ConfigurationError: `batch_size` is no multiple of micro_batch x world_size, the table
                has fewer videos than `batch_size`, or neither length is given.
        """
        if batch_size % (micro_batch * world_size):
            raise ConfigurationError(
                f"batch_size {batch_size} is not a multiple of micro_batch {micro_batch} x "
                f"{world_size} ranks; change one of them"
            )
        self.steps_per_epoch = len(table) // batch_size
        if self.steps_per_epoch == 0:
            raise ConfigurationError(
                f"{table.name}: {len(table)} usable videos do not fill one batch of {batch_size}; "
                "lower batch_size"
            )
        if epochs is None and max_steps is None:
            raise ConfigurationError("give epochs or max_steps")
        lengths = [max_steps, None if epochs is None else epochs * self.steps_per_epoch]
        self.total_steps = min(length for length in lengths if length is not None)
        self.accumulation = batch_size // (micro_batch * world_size)
        self._clips = _TrainClips(table, clip, augment, seed)
        self._seed, self._batch_size, self._micro_batch = seed, batch_size, micro_batch
        self._rank, self._world_size = rank, world_size
        self._start_step, self._workers, self._pin_memory = start_step, workers, pin_memory

    def __len__(self) -> int:
        """Micro-batches from `start_step` on."""
        return max(0, self.total_steps - self._start_step) * self.accumulation

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches.

        Raises:
            InputError: more than 5 % of the samples (and at least ten) could not be read.
        """
        seen = replaced = 0
        for batch in load_in_order(self._clips, self._samples(), self._workers, self._pin_memory):
            for problem in batch.problems:
                log.warning("replaced by another video: %s", problem)
            seen, replaced = seen + len(batch), replaced + len(batch.problems)
            if replaced > max(10, _MAX_REPLACED_SHARE * seen):
                raise InputError(
                    f"{replaced} of the first {seen} samples could not be read, the last one: "
                    f"{batch.problems[-1] if batch.problems else 'see the log'}; look at the files "
                    "or raise data.version to index them anew"
                )
            yield batch

    def _samples(self) -> Iterator[list[_Sample]]:
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self._start_step, self.total_steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order = epoch_order(self._seed, epoch, len(self._clips.table))
                order_epoch = epoch
            for part in range(self.accumulation):
                first = place * self._batch_size
                first += (part * self._world_size + self._rank) * self._micro_batch
                numbers = range(first, first + self._micro_batch)
                yield [_Sample(int(order[i]), epoch, i) for i in numbers]


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
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Centre crops of equally spaced windows of every video of this rank's share.

    Rank r takes rows r, r + world_size, ...; windows of one video follow each other.

    Yields:
        The batch (B, N, C, T, H, W), the rows (B,) and the window numbers (B,).

    Raises:
        InputError: a video cannot be read. None is left out, or the result would not be that of
            the split.
    """
    items = [_Window(r, w) for r in range(rank, len(table), world_size) for w in range(windows)]
    parts = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    clips = _EvalClips(table, clip, windows)
    batches = load_in_order(clips, parts, workers, pin_memory)
    for part, batch in zip(parts, batches, strict=True):
        yield batch, batch.videos, torch.tensor([item.window for item in part])


class _TrainClips(Dataset[Batch]):
    """Random clips by sample; runs in the workers."""

    def __init__(
        self, table: VideoTable, clip: ClipConfig, augment: AugmentConfig, seed: int
    ) -> None:
        self.table, self._clip, self._augment, self._seed = table, clip, augment, seed

    def __getitems__(self, samples: Sequence[_Sample]) -> Batch:
        return _join(self.table, [self._read(sample) for sample in samples])

    def _read(self, sample: _Sample) -> _Read:
        """One sample; where its video cannot be read, the next readable row takes its place."""
        problem = ""
        for shift in range(_SUBSTITUTES):
            row = (sample.row + shift) % len(self.table)
            rng = np.random.default_rng([_SAMPLE, self._seed, sample.epoch, sample.number])
            seed = int(rng.integers(0, 2**63 - 1))
            try:
                return _Read(self._clip_of(row, rng), row, seed, problem)
            except InputError as error:
                problem = problem or str(error)
        raise InputError(f"{problem}; nor can the {_SUBSTITUTES - 1} videos behind it be read")

    def _clip_of(self, row: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        table, config = self.table, self._augment
        flip = rng.random() < config.flip
        indices = blocks(int(table.frames[row]), self._clip, rng)
        height, width = int(table.heights[row]), int(table.widths[row])
        if config.crop_area is None:
            box = centre_box(height, width)
        else:
            box = random_box(height, width, config.crop_area, config.crop_aspect, rng)
        frames = read_box(table, row, indices.ravel(), box, self._clip.size)
        return _to_clip(frames[:, :, ::-1] if flip else frames, self._clip)


class _EvalClips(Dataset[Batch]):
    """Fixed windows, centre crop; runs in the workers."""

    def __init__(self, table: VideoTable, clip: ClipConfig, windows: int) -> None:
        self.table, self._clip, self._windows = table, clip, windows

    def __getitems__(self, items: Sequence[_Window]) -> Batch:
        rows = dict.fromkeys(item.row for item in items)
        return _join(
            self.table,
            [
                _Read(clip, row, 0, "")
                for row in rows
                for clip in self._read(row, [item.window for item in items if item.row == row])
            ],
        )

    def _read(self, row: int, numbers: list[int]) -> list[NDArray[np.uint8]]:
        """All asked windows of one video in one pass through the file."""
        chosen = uniform_windows(int(self.table.frames[row]), self._clip, self._windows)[numbers]
        box = centre_box(int(self.table.heights[row]), int(self.table.widths[row]))
        frames = read_box(self.table, row, chosen.ravel(), box, self._clip.size)
        return [_to_clip(part, self._clip) for part in np.split(frames, len(numbers))]


def _to_clip(frames: NDArray[np.uint8], clip: ClipConfig) -> NDArray[np.uint8]:
    """(N*T, H, W, C) frames to an (N, C, T, H, W) clip."""
    parts = frames.reshape(clip.blocks, clip.frames, *frames.shape[1:])
    return np.ascontiguousarray(parts.transpose(0, 4, 1, 2, 3))


def _join(table: VideoTable, samples: Sequence[_Read]) -> Batch:
    rows = np.array([sample.row for sample in samples], dtype=np.int64)
    return Batch(
        clips=torch.from_numpy(np.stack([sample.clip for sample in samples])),
        labels=torch.from_numpy(table.labels[rows]),
        seeds=torch.tensor([sample.seed for sample in samples], dtype=torch.int64),
        videos=torch.from_numpy(rows),
        problems=tuple(sample.problem for sample in samples if sample.problem),
    )
