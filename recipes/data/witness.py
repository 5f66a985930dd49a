"""Keeps some frames of a file that is decoded in order, to tell whether others read the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.decode import read_frames

Luma = NDArray[np.uint8]
Levels = NDArray[np.float32]

_SAMPLES = 64  # of the shorter side; what is between them is not compared
_BEFORE, _BEFORE_OPEN, _AFTER = 3, 8, 5  # frames kept around a key frame
_APART = 48  # frames from one kept key frame to the next where all are alike
_EVERY = 32  # frames; kept also without a key frame where a file is read in order
_NEIGHBOURS = 8  # frames before and after that a wrong frame may come from

# Right frames of 45 files, decoded by FFmpeg 4.1 and 8.1: 99.9 % of the pixels differ by less than
# 2.5 grey levels where no colour is cut off at 0 or 255; 99 % by less than 4 where one of the two
# takes another colour matrix. Wrong frames differ by more than 10 in 1 % even in still scenes.
_LEVELS, _LEVELS_CLIPPED, _SHARE = 10, 40, 0.003
_DIFFERENT, _FEWEST = 6, 4  # levels and pixels by which two frames must differ to be told apart
_MATRICES = ((0.299, 0.587, 0.114), (0.2126, 0.7152, 0.0722))  # ITU-R BT.601 and BT.709
_BLACK, _RANGE = 16.0, 219.0  # luma of black, and from there to white, where not 0 and 255


class Witnesses:
    """Samples of the luma of frames around key frames, kept while a file is decoded in order.

    A decoder that goes astray does so where it enters a file, at a key frame. Which frames are kept
    depends on the file alone.
    """

    def __init__(self, every_key: bool) -> None:
        """Keep frames around all key frames, and others now and then, if `every_key`."""
        self.every_key = every_key
        self.kept: dict[int, Luma] = {}
        self.keys: list[int] = []
        self.count = 0
        self._recent: deque[Any] = deque(maxlen=_BEFORE_OPEN)
        self._until = 0

    def offer(self, frame: Any, key: bool) -> None:
        """Look at the next frame in presentation order."""
        number = self.count
        self.count += 1
        apart = 1 if self.every_key else _APART
        if key and (not self.keys or number >= self.keys[-1] + apart):
            self.keys.append(number)
            self._keep_recent(number - (_BEFORE_OPEN if self.every_key else _BEFORE))
            self._until = number + _AFTER
        elif self.every_key and number % _EVERY == 0:
            self._until = max(self._until, number + 2)
        if number < self._until:
            self.kept[number] = luma(frame)
        else:
            self._recent.append((number, frame))

    def finish(self) -> None:
        """Keep the last frames and let go of the rest."""
        self._keep_recent(self.count - _BEFORE)

    def _keep_recent(self, first: int) -> None:
        for number, frame in self._recent:
            if number >= first:
                self.kept[number] = luma(frame)
        self._recent.clear()


def luma(frame: Any) -> Luma:
    """Every n-th pixel of every n-th row of a decoded picture's luma, 8 bits."""
    step = _step(frame.height, frame.width)
    layout = frame.format
    bits = layout.components[0].bits
    planar = layout.name.startswith(("yuv", "nv", "gray")) and not layout.name.endswith("be")
    if not planar or layout.components[0].plane != 0 or layout.name.startswith("yuyv"):
        gray: Luma = frame.reformat(format="gray").to_ndarray()
        return gray[::step, ::step].copy()
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8 if bits <= 8 else np.uint16)
    rows = rows.reshape(-1, plane.line_size // rows.itemsize)
    sampled = rows[: frame.height : step, : frame.width : step]
    eight_bits: Luma = (sampled >> max(0, bits - 8)).astype(np.uint8)
    return eight_bits


def _step(height: int, width: int) -> int:
    return max(1, min(height, width) // _SAMPLES)


def agrees(
    path: Path,
    witnesses: Witnesses,
    numbers: Sequence[int],
    *,
    size: tuple[int, int],
    verdict: str,
    decoder: str,
    rotation: int,
) -> bool:
    """Whether a decoder, asked for frames by number, gives those that were kept.

    Args:
        path: the file.
        witnesses: what decoding in order showed.
        numbers: kept frames.
        size: height and width of the stored picture.
        verdict: `random` or `sequential`.
        decoder: the one to try.
        rotation: degrees clockwise from the stored to the upright picture.

    Raises:
        InputError: the decoder fails.
    """
    height, width = size if rotation % 180 == 0 else size[::-1]
    read = read_frames(
        path,
        numbers,
        height=height,
        width=width,
        verdict=verdict,
        decoder=decoder,
        rotation=rotation,
    )
    ordered = sorted(set(numbers))
    step = _step(*size)
    stored = np.rot90(read, rotation // 90, axes=(1, 2))[:, ::step, ::step]
    truth = np.stack([witnesses.kept[number] for number in ordered])
    shown, own, stretch = _like_with_like(stored, truth)
    allowed = _allowed(own, stored, step)
    for place, number in enumerate(ordered):
        if _differs(shown[place], own[place], allowed[place]):
            return False
        for near in range(number - _NEIGHBOURS, number + _NEIGHBOURS + 1):
            if near != number and near in witnesses.kept:
                other = _on_scale(witnesses.kept[near], stretch)
                if _is_closer(shown[place], other, own[place]):
                    return False
    return True


def _like_with_like(stored: NDArray[np.uint8], truth: Luma) -> tuple[Levels, Levels, bool]:
    """Luma of the pictures read, the kept luma on the same scale, and whether that was stretched.

    A decoder may take either matrix and either range for a file that does not say which is right.
    """
    candidates = [
        (
            stored.astype(np.float32) @ np.asarray(weights, np.float32),
            _on_scale(truth, stretch),
            stretch,
        )
        for weights in _MATRICES
        for stretch in (True, False)
    ]
    return min(candidates, key=lambda one: _misfit(one[0], one[1]))


def _misfit(shown: Levels, own: Levels) -> tuple[float, float]:
    error = np.abs(shown - own)  # its mean alone is ruled by how decoders round
    return float((error > _LEVELS).mean()), float(error.mean())


def _on_scale(kept: Luma, stretch: bool) -> Levels:
    levels = kept.astype(np.float32)
    return ((levels - _BLACK) * (255 / _RANGE)).clip(0, 255) if stretch else levels


def _differs(shown: Levels, own: Levels, allowed: Levels) -> bool:
    """Whether a picture is another one than the frame it should be, or damaged."""
    return bool(np.mean(np.abs(shown - own) > allowed) > _SHARE)


def _allowed(own: Levels, stored: NDArray[np.uint8], step: int) -> Levels:
    """By how many levels each sample of a right picture may be off."""
    clipped = ((stored == 0) | (stored == 255)).any(axis=-1)
    allowed = np.where(clipped, np.float32(_LEVELS_CLIPPED), np.float32(_LEVELS))
    if step == 1:  # decord smooths rows of some small widths
        slopes = np.abs(np.diff(own, axis=-1))
        allowed[..., 1:] += slopes
        allowed[..., :-1] += slopes
    return allowed


def _is_closer(shown: Levels, other: Levels, own: Levels) -> bool:
    """Whether a picture is rather another frame, where the two can be told apart."""
    apart = np.abs(own - other) > _DIFFERENT
    own_error, other_error = np.abs(shown - own)[apart], np.abs(shown - other)[apart]
    return bool(apart.sum() >= _FEWEST and other_error.sum() < own_error.sum())
