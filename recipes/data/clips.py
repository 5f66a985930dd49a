"""Reads the clips of training and evaluation samples; runs in the processes that open videos."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from recipes.contract import ConfigurationError, InputError
from recipes.data.boxes import draw_crops, draw_flips
from recipes.data.clip_config import AugmentConfig, ClipConfig
from recipes.data.crop import centre_box, read_box, read_part
from recipes.data.crop_resize import crop_resize, flip
from recipes.data.pool import Beat, Bytes, Refused, Shape
from recipes.data.sampler_config import CameraPair
from recipes.data.samplers import Indices, sample, uniform_windows
from recipes.data.table import VideoTable
from recipes.data.view_samplers import camera_pair

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Extra = Mapping[str, Indices]

_SAMPLE = 2  # domain of the random streams; the order of an epoch has 1
_SUBSTITUTES = 16
_PIXELS_A_SECOND = (
    10e6  # a tenth of what a core decodes, so that long videos are not taken for hung
)


class Sample(NamedTuple):
    """A training sample: what is shown, epoch, number in the epoch's global order.

    `unit` is a row of the table; for `camera_pair` the number of an instance.
    """

    unit: int
    epoch: int
    number: int


class Window(NamedTuple):
    """An evaluation sample: table row and window number."""

    row: int
    window: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What there is to say of one sample beside its pixels.

    `seed` is that of its colours; `extra` as in `Batch`, (N,) here; `problem` says why another
    video took the place of the one meant.
    """

    row: int
    seed: int = 0
    extra: Extra = field(default_factory=dict)
    problem: str = ""


Watch = Callable[[int, Indices], None]  # the reading of these frames of a row begins


class Source(Protocol[Item_contra]):
    """Says what a batch shows and reads it."""

    @property
    def table(self) -> VideoTable:
        """The videos."""

    @property
    def shape(self) -> Shape:
        """Of one sample."""

    def fill(self, items: Sequence[Item_contra], out: Bytes, watch: Watch) -> list[Facts]:
        """Read samples into `out` (B, *shape); `watch` comes before each reading."""


class ClipReader(Generic[Item]):
    """A `pool.Reader` of clips: gives a source what it needs to work in a watched process."""

    def __init__(self, source: Source[Item], seconds: float) -> None:
        """`seconds` is how long the reading of a short clip may take."""
        self._source, self._table, self._seconds = source, source.table, seconds

    def start(self) -> None:
        """One thread, and no messages but ours."""
        torch.set_num_threads(1)
        if self._table.decoder == "decord":
            decord = importlib.import_module("decord")
            decord.logging.set_level(decord.logging.QUIET)

    def shape(self, items: Sequence[Item]) -> Shape:
        """(B, N, C, T, H, W)."""
        return len(items), *self._source.shape

    def name(self, row: int) -> str:
        """The file of a row."""
        return str(self._table.file(row))

    def read(self, items: Sequence[Item], out: Bytes, beat: Beat, refused: Refused) -> list[Facts]:
        """Fill `out`; the facts of each sample."""

        def watch(row: int, indices: Indices) -> None:
            if row in refused:
                raise InputError(refused[row])
            beat(row, self._seconds + self._pixels(row, indices) / _PIXELS_A_SECOND)

        return self._source.fill(items, out, watch)

    def _pixels(self, row: int, indices: Indices) -> int:
        """An upper bound of what must be decoded for these frames."""
        table, first, last = self._table, int(indices.min()), int(indices.max())
        jump = table.verdicts[row] == "random"
        frames = last + 1 - max(0, first - int(table.gops[row]) if jump else 0)
        return frames * int(table.heights[row]) * int(table.widths[row])


class TrainClips:
    """Random clips: a function of (seed, epoch, number) and the table alone."""

    def __init__(
        self, table: VideoTable, clip: ClipConfig, augment: AugmentConfig, seed: int
    ) -> None:
        """Find what there is to be shown.

        Raises:
            ConfigurationError: `camera_pair` for videos of single cameras.
        """
        self.table, self._clip, self._augment, self._seed = table, clip, augment, seed
        self.shape = (clip.blocks, 3, clip.frames, clip.size, clip.size)
        self._pairs = isinstance(clip.sampler, CameraPair)
        self._instances = _instances(table) if self._pairs else ()
        self.count = len(self._instances) if self._pairs else len(table)

    def fill(self, items: Sequence[Sample], out: Bytes, watch: Watch) -> list[Facts]:
        """Read samples into `out`; where a video cannot be read, another takes its place.

        These are the rows (or instances) 1, 2, 4, ... behind it: what is damaged together often
        lies together.

        Raises:
            InputError: none of those can be read.
        """
        return [self._sample(item, place, watch) for item, place in zip(items, out, strict=True)]

    def _sample(self, item: Sample, out: Bytes, watch: Watch) -> Facts:
        problem = ""
        for step in range(_SUBSTITUTES):
            unit = (item.unit + (1 << step) // 2) % self.count
            rng = np.random.default_rng([_SAMPLE, self._seed, item.epoch, item.number])
            seed = int(rng.integers(0, 2**63 - 1))
            try:
                row, extra = (self._pair if self._pairs else self._single)(unit, rng, out, watch)
            except InputError as error:
                problem = problem or str(error)
                continue
            if problem:
                problem = f"{problem}; replaced by {self.table.file(row)}"
            return Facts(row=row, seed=seed, extra=extra, problem=problem)
        tried = f"the {_SUBSTITUTES - 1} tried in its place"
        raise InputError(f"{problem}; nor can {tried} be read")

    def _single(self, row: int, rng: Generator, out: Bytes, watch: Watch) -> tuple[int, Extra]:
        drawn = sample(int(self.table.frames[row]), self._clip, rng)
        flips = draw_flips(self._augment, drawn.indices.shape, rng)
        self._read(row, drawn.indices, flips, rng, out, watch)
        return row, drawn.extra

    def _pair(self, unit: int, rng: Generator, out: Bytes, watch: Watch) -> tuple[int, Extra]:
        """Two cameras of one instance, each ordered pair as likely."""
        rows = rng.choice(self._instances[unit], 2, replace=False)
        indices = self._common(rows, rng)
        flips = draw_flips(self._augment, indices.shape, rng)
        # pictures may differ in size: "the same box" is that of the same random numbers
        crops = int(rng.integers(0, 2**63 - 1))
        again = self._augment.crop_scope == "per_clip"
        rng = np.random.default_rng(crops)
        for view, row in enumerate(rows.tolist()):
            rng = np.random.default_rng(crops) if again else rng
            own = flips if len(flips) == 1 else flips[view : view + 1]
            one = slice(view, view + 1)
            self._read(row, indices[one], own, rng, out[one], watch)
        return int(rows[0]), {"video": rows}

    def _common(self, rows: Indices, rng: Generator) -> Indices:
        table, clip = self.table, self._clip
        if table.offsets is None or not isinstance(clip.sampler, CameraPair):
            raise ValueError("only videos of several cameras can be paired")
        lengths, offsets = table.frames[rows].tolist(), table.offsets[rows].tolist()
        try:
            return camera_pair(
                lengths, offsets, clip.frames, clip.stride, rng, clip.sampler.pick, clip.short
            )
        except ValueError as error:
            raise InputError(f"{table.file(rows[0])}, {table.file(rows[1])}: {error}") from error

    def _read(
        self,
        row: int,
        indices: Indices,
        flips: NDArray[np.bool_],
        rng: Generator,
        out: Bytes,
        watch: Watch,
    ) -> None:
        """Clips (N, C, T, H, W) of one video, opened once."""
        table, size = self.table, self._clip.size
        height, width = int(table.heights[row]), int(table.widths[row])
        crops = draw_crops(height, width, self._augment, indices.shape, size, rng)
        watch(row, indices)
        box, one_flip = crops.single, flips.size == 1
        if box is None:
            outer = crops.outer(height, width)
            shape = crops.reading_size(outer, size)
            frames = _shaped(read_part(table, row, indices.ravel(), outer, shape), indices)
            out[...] = crop_resize(torch.from_numpy(frames), outer, crops, size, flips).numpy()
            return
        frames = _shaped(read_box(table, row, indices.ravel(), box, size), indices)
        mirrored = bool(one_flip and flips.item())
        out[...] = (frames[..., ::-1, :] if mirrored else frames).transpose(0, 4, 1, 2, 3)
        if not one_flip:
            out[...] = flip(torch.from_numpy(out), flips).numpy()


class EvalClips:
    """Centre crops of equally spaced windows, as many as `windows` of each video."""

    def __init__(self, table: VideoTable, clip: ClipConfig, windows: int) -> None:
        self.table, self._clip, self._windows = table, clip, windows
        shown = clip.evaluated
        self.shape = (shown.blocks, 3, shown.frames, shown.size, shown.size)

    def fill(self, items: Sequence[Window], out: Bytes, watch: Watch) -> list[Facts]:
        """Read windows into `out`, those of one video in one pass through it.

        Raises:
            InputError: a video cannot be read.
        """
        for row in dict.fromkeys(item.row for item in items):
            places = [place for place, item in enumerate(items) if item.row == row]
            self._read(row, [items[place].window for place in places], out, places, watch)
        return [Facts(row=item.row) for item in items]

    def _read(
        self, row: int, windows: list[int], out: Bytes, places: list[int], watch: Watch
    ) -> None:
        table, clip = self.table, self._clip
        indices = uniform_windows(int(table.frames[row]), clip, self._windows)[windows]
        box = centre_box(int(table.heights[row]), int(table.widths[row]))
        watch(row, indices)
        frames = read_box(table, row, indices.ravel(), box, clip.size)
        for place, window in zip(places, np.split(frames, len(places)), strict=True):
            out[place] = _shaped(window, indices[0]).transpose(0, 4, 1, 2, 3)


def _shaped(frames: Bytes, indices: Indices) -> Bytes:
    """(N*T, H, W, C) frames as (N, T, H, W, C)."""
    return frames.reshape(*indices.shape, *frames.shape[1:])


def _instances(table: VideoTable) -> tuple[Indices, ...]:
    """The rows of each instance that two cameras or more have filmed, in the order of their names.

    Raises:
        ConfigurationError: there are none.
    """
    if table.instances is None:
        raise ConfigurationError(
            f"{table.name}: the sampler camera_pair needs a data set with several cameras "
            "(format: multicamera)"
        )
    _, numbers, counts = np.unique(list(table.instances), return_inverse=True, return_counts=True)
    rows = np.argsort(numbers, kind="stable")
    parts = np.split(rows, np.cumsum(counts)[:-1])
    return tuple(part for part in parts if len(part) > 1)
