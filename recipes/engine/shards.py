"""One rank's file of a checkpoint: safetensors, written here in one pass; and who has what range.

Torch-free. The file is plain safetensors (https://github.com/huggingface/safetensors#format): the
length of a JSON header, the header, and the tensors one behind the other. Names of tensors are
`kind/start/parameter` for a 1-D fragment of a parameter's weight or of a tensor of its optimizer
state, `buffer/name` and `random/name`; everything that is no tensor is JSON in the header's
metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cluster import fsio
from recipes.contract import InputError
from recipes.engine import faults

_CHUNK = 8 << 20  # hashed and written at a time
# Flushed at a time: what the system only holds in memory is no progress, and the last flush, which
# may be slow, has little to do.
_FLUSHED = 512 << 20


class Stored(NamedTuple):
    """A tensor in the data of a file: its safetensors type, shape, and bytes from and to."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Piece(NamedTuple):
    """Elements [start, start + length) of one kind of one parameter, and the rank that has them."""

    start: int
    length: int
    rank: int


class Part(NamedTuple):
    """Elements [begin, end) of a piece, which go to `offset` of what is wanted."""

    piece: Piece
    begin: int
    end: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a file is on disk."""

    name: str
    bytes: int
    sha256: str


def file_name(rank: int) -> str:
    """Name of a rank's file."""
    return f"shard_{rank:05d}.safetensors"


def fragment_key(kind: str, start: int, parameter: str) -> str:
    """Name of a fragment's tensor in the file."""
    return f"{kind}/{start}/{parameter}"


def unheard() -> None:
    """Where nobody wants to know how far it is."""


def write(
    path: Path,
    tensors: Mapping[str, Stored],
    data: memoryview,
    state: Mapping[str, Any],
    moved: Callable[[], None] = unheard,
) -> Written:
    """Write and flush a file, digesting on the way; both leave the interpreter to other threads.

    Args:
        path: must not exist.
        tensors: tile `data` without gaps.
        data: bytes.
        state: plain JSON.
        moved: called behind every few MB.

    Raises:
        OSError: it could not be written; what is there is worthless.
    """
    digest, size, flushed = hashlib.sha256(), 0, 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, fsio.PRIVATE_FILE)
    try:
        for block in (_header(tensors, state), data):
            for begin in range(0, len(block), _CHUNK):
                chunk = memoryview(block)[begin : begin + _CHUNK]
                digest.update(chunk)
                _write_all(descriptor, chunk)
                size += len(chunk)
                if size - flushed >= _FLUSHED:
                    os.fsync(descriptor)
                    flushed = size
                moved()
        faults.passage("checkpoint.fsync")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Written(name=path.name, bytes=size, sha256=digest.hexdigest())


def _header(tensors: Mapping[str, Stored], state: Mapping[str, Any]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"state": json.dumps(state, sort_keys=True)}}
    for name, stored in tensors.items():
        entries[name] = {
            "dtype": stored.dtype,
            "shape": list(stored.shape),
            "data_offsets": [stored.begin, stored.end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    return len(text).to_bytes(8, "little") + text


def _write_all(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        faults.passage("checkpoint.write")
        chunk = chunk[os.write(descriptor, chunk) :]


class Pieces:
    """Which rank's file has which range of which kind of which parameter."""

    def __init__(self, names: Iterable[tuple[int, str, int]]) -> None:
        """Of all fragments of a checkpoint.

        Args:
            names: rank, name of the tensor in its file, and number of elements.
        """
        found: dict[tuple[str, str], list[Piece]] = defaultdict(list)
        for rank, key, length in names:
            kind, start, parameter = key.split("/", 2)
            found[kind, parameter].append(Piece(int(start), length, rank))
        self._found = {key: sorted(pieces) for key, pieces in found.items()}

    def kinds(self, parameter: str) -> list[str]:
        """What is kept of a parameter, `weight` first."""
        kinds = sorted(kind for kind, name in self._found if name == parameter)
        return sorted(kinds, key=lambda kind: kind != "weight")

    def check(self, numels: Mapping[str, int]) -> None:
        """Every kind of every parameter must be there once, from the first element to the last.

        Raises:
            InputError: names parameter and range.
        """
        for parameter, numel in numels.items():
            if numel and ("weight", parameter) not in self._found:
                raise InputError(f"the checkpoint has no weight of {parameter}")
        for (kind, parameter), pieces in sorted(self._found.items()):
            at = 0
            for piece in pieces:
                if piece.start != at:
                    fault = "is missing" if piece.start > at else "is there twice"
                    low, high = sorted((at, piece.start))
                    raise InputError(_say(kind, parameter, low, high, fault))
                at += piece.length
            if at != numels[parameter]:
                fault = "is missing" if at < numels[parameter] else "is too much"
                low, high = sorted((at, numels[parameter]))
                raise InputError(_say(kind, parameter, low, high, fault))

    def parts(self, kind: str, parameter: str, start: int, length: int) -> Sequence[Part]:
        """Where elements [start, start + length) come from, in order; `check` must have passed."""
        parts = []
        for piece in self._found[kind, parameter]:
            low = max(start, piece.start)
            high = min(start + length, piece.start + piece.length)
            if low < high:
                parts.append(Part(piece, low - piece.start, high - piece.start, low - start))
        return parts


def _say(kind: str, parameter: str, low: int, high: int, fault: str) -> str:
    return f"checkpoint: {kind} of {parameter}, elements {low} to {high - 1}, {fault}"
