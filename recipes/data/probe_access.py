"""Tries how a file can be read: by random access, from its first frame on, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.contract import InputError
from recipes.data.decode import last_line
from recipes.data.demux import Order, is_indexed
from recipes.data.witness import Witnesses, agrees

_AROUND = range(-8, 5)  # frames tried around a key frame of a file that may be misread
_ALONE, _TOGETHER = 4, 12  # key frames tried with a reader each, and by one reader in turn
_IN_ORDER = 64  # frames compared when the whole file is read in order
_SHORT_TAIL = 16  # frames behind a key frame few enough to decode them for the last one

_STREAMS = frozenset({"mpegts", "mpeg", "mpegvideo"})


@dataclass(frozen=True, kw_only=True)
class Film:
    """What is known of a file when its access is tried; `size` is that of the stored picture."""

    path: Path
    container: str
    order: Order
    witnesses: Witnesses
    size: tuple[int, int]
    rotation: int
    decoder: str

    def agrees(self, numbers: Sequence[int], verdict: str) -> bool:
        """Whether the decoder gives the frames of these numbers; raises InputError."""
        return agrees(
            self.path,
            self.witnesses,
            numbers,
            size=self.size,
            verdict=verdict,
            decoder=self.decoder,
            rotation=self.rotation,
        )


def try_access(film: Film) -> tuple[str, str]:
    """Verdict (`random`, `sequential`, `reject`) and the reason where it is not `random`.

    Errors of a decoder show where it enters the file, right behind a key frame. Where containers
    have an index of presentation times and each key frame starts afresh, all are entered alike and
    one is tried; elsewhere several, from the frames before to those after.
    """
    doubt = film.order.doubt or _known_trouble(film)
    if not doubt:
        try:
            if all(film.agrees(numbers, "random") for numbers in _trials(film)):
                return "random", ""
            doubt = f"{film.decoder} finds other frames by random access"
        except InputError as error:
            doubt = f"{film.decoder} fails by random access ({_without_path(error)})"
    try:
        if film.agrees(_spread(sorted(film.witnesses.kept), _IN_ORDER), "sequential"):
            return "sequential", f"read from its first frame each time: {doubt}"
    except InputError as error:
        return "reject", f"{film.decoder} fails ({_without_path(error)})"
    return "reject", f"{film.decoder} shows other frames than the file has"


def _known_trouble(film: Film) -> str:
    if film.order.b_frames and "avi" in film.container.split(","):
        return "AVI has no time stamps that tell the order of its B-frames"
    if film.decoder == "decord" and not _STREAMS.isdisjoint(film.container.split(",")):
        return "a stream has no index, seeking in it takes longer than decoding it"
    return ""


def _trials(film: Film) -> list[list[int]]:
    """Frames to read with a reader each; a pure function of the file."""
    kept, keys, last = film.witnesses.kept, film.witnesses.keys, film.witnesses.count - 1
    if is_indexed(film.container) and not film.order.early and not film.witnesses.every_key:
        entered = [key for key in keys if key + 3 <= last] or keys
        trial = {min(entered[-1] + 1, last), min(entered[-1] + 3, last)}
        if last - int(film.order.keys[-1]) <= _SHORT_TAIL:
            trial.add(last)
        return [sorted(trial)]
    alone = [
        [key + step for step in _AROUND if key + step in kept] for key in _spread(keys, _ALONE)
    ]
    in_turn = {
        key + step for key in _spread(keys, _TOGETHER) for step in (0, 2) if key + step in kept
    }
    return [*alone, sorted(in_turn | {last})]


def _spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spread, with the first and the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def _without_path(error: InputError) -> str:
    """The message without the file it begins with: the row names that."""
    return last_line(error).split(": ", 1)[-1]
