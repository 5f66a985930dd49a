"""Tries how a file can be read: by random access, from its first frame on, or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.contract import InputError
from recipes.data.decode import Request, Target, last_line, read_frames
from recipes.data.decode_pyav import read_again
from recipes.data.demux import is_indexed
from recipes.data.reel import Reel
from recipes.data.scan import Scan
from recipes.data.witness import agrees

_PLACE = re.compile(r"\[\d+:\d+:\d+\] |/\S+\.cc:\d+: ")
_INSIDE = 1  # frames behind a key frame: what is lost or doubled there is seen
_AFTER = 4  # frames tried from a key frame on where a file may be misread
_ALONE, _TOGETHER = 2, 16  # key frames tried with a reader each, and by one reader in turn
_IN_ORDER = 24  # frames compared when the whole file is read in order


@dataclass(frozen=True, kw_only=True)
class Film:
    """A file that was decoded in order, and the decoder that will read it."""

    reel: Reel
    decoder: str

    @property
    def scan(self) -> Scan:
        """What decoding in order found."""
        return self.reel.scan

    def agrees(self, numbers: Sequence[int], verdict: str) -> bool:
        """Whether the decoder gives the frames of these numbers; raises InputError."""
        if self.decoder == "pyav" and verdict == "random" and self._enters(numbers):
            return True
        scan, size = self.scan, (self.scan.height, self.scan.width)
        height, width = size if scan.rotation % 180 == 0 else size[::-1]
        read = read_frames(
            self.reel.path,
            numbers,
            height=height,
            width=width,
            verdict=verdict,
            decoder=self.decoder,
            rotation=scan.rotation,
        )
        turned_back = np.rot90(read, scan.rotation // 90, axes=(1, 2))
        if agrees(turned_back, numbers, scan.witnesses):
            return True
        return not self.reel.smooth and agrees(turned_back, numbers, self.reel.smoothed)

    def _enters(self, numbers: Sequence[int]) -> bool:
        """Whether PyAV, from the file as it is open, gives the frames; opening takes longer."""
        request = Request(
            path=self.reel.path,
            numbers=np.asarray(numbers, dtype=np.int64),
            target=Target(height=self.scan.height, width=self.scan.width),
            sequential=False,
            gop=self.scan.order.gop,
            rotation=0,
        )
        read = read_again(self.reel.container, self.reel.stream, request)
        return read is not None and agrees(read, numbers, self.scan.witnesses)


def try_access(film: Film) -> tuple[str, str]:
    """Verdict (`random`, `sequential`, `reject`) and the reason where it is not `random`.

    Errors of a decoder show where it enters the file, right behind a key frame. Where containers
    have an index of presentation times and each key frame starts afresh, all are entered alike and
    one is tried; elsewhere several, from the frames before to those after.
    """
    doubt = film.scan.order.doubt or _known_trouble(film)
    if not doubt:
        try:
            if all(film.agrees(numbers, "random") for numbers in _trials(film)):
                return "random", ""
            doubt = f"{film.decoder} finds other frames by random access"
        except InputError as error:
            doubt = f"{film.decoder} fails by random access ({words_of(error, film.reel.path)})"
    try:
        if film.agrees(_spread(sorted(film.scan.witnesses.kept), _IN_ORDER), "sequential"):
            return "sequential", f"read from its first frame each time: {doubt}"
    except InputError as error:
        return "reject", f"{film.decoder} fails ({words_of(error, film.reel.path)})"
    return "reject", f"{film.decoder} shows other frames than the file has"


def _known_trouble(film: Film) -> str:
    """Why random access is not even tried: it may go wrong now and then, or takes longer."""
    scan, is_avi = film.scan, "avi" in film.scan.container.split(",")
    if is_avi and (scan.order.b_frames or scan.b_frames):
        return "AVI has no time stamps that tell the order of its B-frames"
    if film.decoder == "pyav":  # reads the time stamps of all packets first
        return ""
    if not is_avi and not is_indexed(scan.container):
        return "its container has no index, seeking takes longer than decoding or goes astray"
    if scan.packets.dependent or scan.order.early:
        return "its key frames do not start afresh (open groups of pictures)"
    if is_avi and scan.reorders:
        return "AVI has no time stamps that tell how far its codec holds frames back"
    return ""


def _trials(film: Film) -> list[list[int]]:
    """Frames to read with a reader each; a pure function of the file."""
    witnesses, last = film.scan.witnesses, film.scan.witnesses.last
    keys = witnesses.keys
    if is_indexed(film.scan.container) and not witnesses.closely:
        return [[min(keys[-1] + _INSIDE, last)]]
    before = range(-film.scan.order.early, 0)
    alone = [[key + step for step in range(_AFTER)] for key in _spread(keys, _ALONE)]
    alone += [[keys[-1] + step] for step in before]
    in_turn = [key + _INSIDE for key in _spread(keys, _TOGETHER)]
    behind = [keys[-1] - 1, last]
    trials = [*alone, [*in_turn, *behind]]
    if film.decoder == "pyav":  # decodes each clip of one request afresh, if it does so at all
        trials = [[number for trial in trials for number in trial]]
    trials = [sorted({number for number in trial if number in witnesses.kept}) for trial in trials]
    return [trial for trial in trials if trial]


def _spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spread, with the first and the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def words_of(error: InputError, path: Path) -> str:
    """The message without time, place in the decoder's code and name of the file.

    What a row says of a file must not depend on when and where it was looked at.
    """
    text = last_line(error).replace(f"{path}: ", "").replace(f"[{path}]", "").replace(str(path), "")
    return " ".join(_PLACE.sub("", text).split())
