"""Checkpoints of two ranks, written without torch, for the tests of the commit protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.engine import checkpoint, shards
from recipes.engine.shards import Stored

SHARDS = [shards.file_name(rank) for rank in range(2)]


def content(step: int, rank: int) -> bytes:
    return f"weights of step {step}, rank {rank}. ".encode() * 500


def write(store: Path, step: int, keep: int = 2, **options: Any) -> Path:
    """A whole save by two ranks, one after the other."""
    folder = checkpoint.begin(store, step)
    for rank in range(2):
        data = content(step, rank)
        layout = {"weight/0/layer": Stored("U8", (len(data),), 0, len(data))}
        path = folder / shards.file_name(rank)
        written = shards.write(path, layout, memoryview(data), {"step": step, "rank": rank})
        checkpoint.note_written(folder, rank, written)
    return checkpoint.commit(store, step, {"world_size": 2}, ranks=2, keep=keep, **options)


def newest_step(store: Path) -> int | None:
    found = checkpoint.newest(store)
    if found is None:
        return None
    for rank in range(2):
        saved = (found.path / shards.file_name(rank)).read_bytes()
        assert saved.endswith(content(found.step, rank))
    return found.step
