"""How much space the videos still to be prepared will take, and whether there is that much."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.contract import InputError
from recipes.data.encode import prepared_size
from recipes.stages.prepare.one import FULL, Done

_TRIALS = 16  # videos, taken evenly from all, after which the estimate counts
_MARGIN = 1.1
_UNKNOWN = (240, 320, 250)  # height, width, frames of a video the index could not measure


def work_of(height: int, width: int, frames: int, short_side: int) -> int:
    """Pixels of all frames of a prepared video: bytes and time go with it."""
    height, width, frames = (height, width, frames) if height and width and frames else _UNKNOWN
    high, wide = prepared_size(height, width, short_side)
    return high * wide * frames


def num_trials(videos: int) -> int:
    """After how many of `videos` the estimate counts: 16, of a few videos every eighth."""
    return min(_TRIALS, (videos + 7) // 8)


@dataclass(kw_only=True)
class DiskEstimate:
    """Bytes a pixel of the videos done so far, times the pixels of those still to do.

    A video from the cache is a second name of an existing file and counts as no bytes.
    """

    folder: Path
    work_left: int
    videos_left: int
    work_done: int = 0
    videos_done: int = 0
    bytes_done: int = 0

    def add(self, done: Done, work: int) -> None:
        """Count a video as done."""
        self.work_left -= work
        self.videos_left -= 1
        self.videos_done += 1
        if done.file is not None:
            self.work_done += work
            self.bytes_done += 0 if done.reused else done.file.bytes

    @property
    def bytes_left(self) -> int:
        """Estimate for the videos still to do; 0 as long as too few were tried."""
        if self.videos_done < num_trials(self.videos_done + self.videos_left):
            return 0
        if self.work_done == 0:
            return 0
        return int(_MARGIN * self.work_left * self.bytes_done / self.work_done)

    def check(self) -> None:
        """Compare with the free space.

        Raises:
            InputError: it is not enough.
        """
        free = shutil.disk_usage(self.folder).free
        if free < self.bytes_left:
            raise InputError(self.message(f"{_size(free)} are free"))

    def message(self, found: str) -> str:
        """What a person has to know when the space does not suffice."""
        left = self.bytes_left
        need = f"about {_size(left)}" if left else "more (how much is not known yet)"
        return (
            f"not enough disk space in {self.folder}: {found}, and the {self.videos_left} videos "
            f"still to be prepared need {need}. Free space or raise the quota, then submit again: "
            f"the {self.videos_done} prepared ones are kept. A smaller data.prepare.short_side, a "
            "larger crf or `files: needed` take less"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextlib.contextmanager
def full_disk_explained(estimate: DiskEstimate) -> Iterator[None]:
    """Say in place of a bare `No space left on device` what is needed and what is kept.

    Raises:
        InputError: the disk or the quota is exhausted.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(estimate.message(os.strerror(error.errno))) from error
