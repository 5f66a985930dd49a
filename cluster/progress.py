"""What a stage has committed so far, by its files: the ground on which restarts are decided."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_CHECKPOINT = re.compile(r"step_(\d+)")
_CHUNK_BYTES = 1 << 20


def committed_step(stage: Path) -> int:
    """Step of the newest checkpoint, or lines in the journals of a stage that has none.

    A checkpoint is committed by its manifest, its last file. A stage that goes through many files
    appends a line to `checkpoints/*.jsonl` for each that is done.
    """
    return max(max(_steps(stage), default=0), sum(map(_lines, _journals(stage))))


def has_committed(stage: Path) -> bool:
    """Whether another attempt has anything to go on from; reads no journal."""
    return any(_steps(stage)) or any(path.stat().st_size for path in _journals(stage))


def _steps(stage: Path) -> Iterator[int]:
    for manifest in (stage / "checkpoints").glob("step_*/manifest.json"):
        match = _CHECKPOINT.fullmatch(manifest.parent.name)
        if match:
            yield int(match.group(1))


def _journals(stage: Path) -> Iterator[Path]:
    return (stage / "checkpoints").glob("*.jsonl")


def _lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""))
