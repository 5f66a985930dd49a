"""Keeps some frames of a file that is decoded in order, to tell whether others read the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Luma = NDArray[np.uint8]
Levels = NDArray[np.float32]

_SAMPLES = 48  # of the shorter side; what is between them is not compared
_BEFORE = 8  # frames kept before a key frame while looking closely; held ones slow the decoder
_AFTER, _AFTER_CLOSELY = 3, 5  # frames kept from a key frame on
_APART = 48  # frames from one kept key frame to the next unless looking closely
_EVERY = 32  # frames; kept also without a key frame where a file is read in order
_NEIGHBOURS = 4  # frames before and after that a wrong frame may come from

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

    Attributes:
        kept: samples of frames by their number.
        keys: numbers of key frames, not of all unless looking closely.
        last: number of the last frame.
        closely: keep more, which takes every frame.
        until: frames before this one are kept.
    """

    def __init__(self) -> None:
        """Begin with the first frame."""
        self.kept: dict[int, Luma] = {}
        self.keys: list[int] = []
        self.last = 0
        self.closely = False
        self.until = 0
        self._recent: deque[tuple[int, Any]] = deque(maxlen=_BEFORE)

    def look_closely(self) -> None:
        """From now on keep more frames around key frames, and others now and then."""
        self.closely = True

    def offer(self, number: int, frame: Any, key: bool) -> None:
        """Look at a frame: a key frame, one before `until`, or any while looking closely."""
        apart = 1 if self.closely else _APART
        if key and (not self.keys or number >= self.keys[-1] + apart):
            self.keys.append(number)
            self._keep_recent()
            self.until = number + (_AFTER_CLOSELY if self.closely else _AFTER)
        elif self.closely and number % _EVERY == 0:
            self.until = max(self.until, number + 2)
        if number < self.until:
            self.kept[number] = luma(frame)
        elif self.closely:
            self._recent.append((number, frame))

    def finish(self, number: int, frame: Any) -> None:
        """Keep the last frame, and those before it while looking closely."""
        self.last = number
        self._keep_recent()
        self.kept[number] = luma(frame)

    def _keep_recent(self) -> None:
        self.kept.update((number, luma(frame)) for number, frame in self._recent)
        self._recent.clear()


def luma(frame: Any) -> Luma:
    """Every n-th pixel of every n-th row of a decoded picture's luma, 8 bits."""
    step = _step(frame.height, frame.width)
    bits = _luma_bits(frame.format)
    if not bits:
        gray: Luma = frame.reformat(format="gray").to_ndarray()
        return gray[::step, ::step].copy()
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16)
    rows = rows.reshape(-1, plane.line_size // rows.itemsize)
    sampled: NDArray[Any] = rows[: frame.height : step, : frame.width : step]
    eight_bits: Luma = sampled.copy() if bits == 8 else (sampled >> (bits - 8)).astype(np.uint8)
    return eight_bits


def _luma_bits(layout: Any) -> int:
    """Bits of a sample of the first plane where that is luma and nothing else, else 0."""
    name = layout.name
    if name == "yuv420p":
        return 8
    is_planar = name.startswith(("yuv4", "yuvj", "yuva", "nv", "gray")) and not name.endswith("be")
    bits: int = layout.components[0].bits
    return bits if is_planar and 8 <= bits <= 16 else 0


def _step(height: int, width: int) -> int:
    return max(1, min(height, width) // _SAMPLES)


def agrees(read: NDArray[np.uint8], numbers: Sequence[int], witnesses: Witnesses) -> bool:
    """Whether frames that were read by number are those that were kept.

    Args:
        read: (F, H, W, 3) RGB as stored, not turned.
        numbers: of the F frames, which were kept.
        witnesses: what decoding in order showed.
    """
    kept, step = witnesses.kept, _step(*read.shape[1:3])
    pictures = read[:, ::step, ::step]
    shown, own, stretch = _like_with_like(pictures, np.stack([kept[one] for one in numbers]))
    for place, number in enumerate(numbers):
        error = np.abs(shown[place] - own[place])
        if _share(error > _LEVELS) > _SHARE:
            allowed = _allowed(own[place], pictures[place], step)
            if _share(error > allowed) > _SHARE:
                return False  # another picture than the frame it should be, or damaged
        for near in range(number - _NEIGHBOURS, number + _NEIGHBOURS + 1):
            if near != number and near in kept:
                other = _on_scale(kept[near], stretch)
                if _is_closer(shown[place], other, own[place]):
                    return False
    return True


def _like_with_like(pictures: NDArray[np.uint8], truth: Luma) -> tuple[Levels, Levels, bool]:
    """Luma of the pictures read, the kept luma on the same scale, and whether that was stretched.

    A decoder may take either matrix and either range for a file that does not say which is right.
    """
    levels, candidates = pictures.astype(np.float32), []
    for weights in _MATRICES:
        shown = levels @ np.asarray(weights, np.float32)
        for stretch in (True, False):
            own = _on_scale(truth, stretch)
            error = np.abs(shown - own)
            # how many are far off, because the mean alone is ruled by how decoders round
            misfit = _share(error > _LEVELS), float(error.mean())
            candidates.append((misfit, (shown, own, stretch)))
        if min(misfit[0] for misfit, _ in candidates) == 0:
            break
    return min(candidates, key=lambda one: one[0])[1]


def _share(mask: NDArray[np.bool_]) -> float:
    return np.count_nonzero(mask) / mask.size


def _on_scale(kept: Luma, stretch: bool) -> Levels:
    levels = kept.astype(np.float32)
    return ((levels - _BLACK) * (255 / _RANGE)).clip(0, 255) if stretch else levels


def _allowed(own: Levels, picture: NDArray[np.uint8], step: int) -> Levels:
    """By how many levels each sample of a right picture may be off."""
    clipped = ((picture == 0) | (picture == 255)).any(axis=-1)
    allowed = np.where(clipped, np.float32(_LEVELS_CLIPPED), np.float32(_LEVELS))
    if step == 1:  # decord smooths rows of some small widths, of turned pictures columns
        across, down = np.abs(np.diff(own, axis=1)), np.abs(np.diff(own, axis=0))
        allowed[:, 1:] += across
        allowed[:, :-1] += across
        allowed[1:] += down
        allowed[:-1] += down
    return allowed


def _is_closer(shown: Levels, other: Levels, own: Levels) -> bool:
    """Whether a picture is rather another frame, where the two can be told apart."""
    apart = np.abs(own - other) > _DIFFERENT
    if np.count_nonzero(apart) < _FEWEST:
        return False
    shown, own, other = shown[apart], own[apart], other[apart]
    return bool(np.abs(shown - other).sum() < np.abs(shown - own).sum())
