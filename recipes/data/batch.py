"""What the loader hands to training and evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips of B samples, cropped, scaled and flipped, but not yet coloured.

    Attributes:
        clips: (B, N, C=3, T, H, W) uint8.
        labels: (B,) int64, -1 where unlabeled.
        seeds: (B,) int64, what `augment` draws a sample's colours from.
        videos: (B,) int64, rows of the table.
        extra: (B, N) int64 each, what the sampler says of each clip (`samplers.Sampled.extra`);
            `camera_pair` gives `video`, the row each clip is from, `videos` being the first.
        problems: one line for each video that could not be read and was replaced.
    """

    clips: Tensor
    labels: Tensor
    seeds: Tensor
    videos: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
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
            extra={
                name: value.to(device, non_blocking=non_blocking)
                for name, value in self.extra.items()
            },
        )

    def pin_memory(self) -> Batch:
        """The same batch with what goes to a device in page-locked memory."""
        return replace(
            self,
            clips=self.clips.pin_memory(),
            labels=self.labels.pin_memory(),
            extra={name: value.pin_memory() for name, value in self.extra.items()},
        )


def pinned(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The same batches in page-locked memory."""
    device = torch.cuda.current_device()

    def pin(batch: Batch) -> Batch:
        torch.cuda.set_device(device)  # of this thread
        return batch.pin_memory()

    return copied(batches, pin)


def copied(
    batches: Generator[Batch, None, None], copy: Callable[[Batch], Batch]
) -> Generator[Batch, None, None]:
    """What `copy` makes of each batch, in a thread, while the one before is used."""
    with ThreadPoolExecutor(1, "copying") as thread, closing(batches):
        copies: deque[Future[Batch]] = deque()
        for batch in batches:
            copies.append(thread.submit(copy, batch))
            del batch  # its memory is used again as soon as it is copied
            if len(copies) > 1:
                yield copies.popleft().result()
        if copies:
            yield copies.popleft().result()
