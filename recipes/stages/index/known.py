"""Remembers what was found in files, so that an unchanged file is not looked at again.

Two memories: a journal in the stage's own folder, of which the next attempt goes on, and the cache
of the store, from which another index of the same root takes what it needs. An entry counts only
while size and time of the file are those it was made with, so nothing in them can be out of date;
either may vanish at any time.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cluster import fsio
from recipes.data.probe import VERSION, Probe

_THREADS = 16  # a stat on a network file system is mostly waiting
_FIELDS = tuple(field.name for field in fields(Probe))

State = tuple[int, int]  # size in bytes, time of the last change in ns


def signature(mode: str, decoder: str) -> str:
    """How files were looked at: another way or version of a decoder may find other things."""
    packages = sorted({"av", {"pyav": "av"}.get(decoder, decoder)})
    return " ".join([f"v{VERSION}", mode, decoder, *map(_version, packages)])


def _version(package: str) -> str:
    try:
        return f"{package}-{importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:  # the module of a fork of it
        return f"{package}-unknown"


def states(root: Path, paths: Iterable[str]) -> dict[str, State]:
    """Size and time of each file that is there."""

    def state(path: str) -> tuple[str, State | None]:
        try:
            found = (root / path).stat()
        except OSError:
            return path, None
        return path, (found.st_size, found.st_mtime_ns)

    with ThreadPoolExecutor(_THREADS) as pool:
        return {path: found for path, found in pool.map(state, paths) if found is not None}


class Journal:
    """One JSON line a file, appended as soon as it was looked at."""

    def __init__(self, path: Path, signed: str) -> None:
        self._path = path
        self._signed = signed
        fsio.make_dir(path.parent)

    def append(self, path: str, probe: Probe) -> None:
        """Remember a file; one that could not be opened is tried again by the next attempt."""
        if probe.mtime_ns:
            line = {"path": path, "looked": self._signed, **asdict(probe)}
            fsio.append_json_line(self._path, line)

    def load(self, present: Mapping[str, State]) -> dict[str, Probe]:
        """What was found in files that are still the same."""
        lines = (line for _, line in fsio.read_json_lines(self._path))
        return _matching((one for one in lines if one.get("looked") == self._signed), present)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Tables of what was found below one root; each share of the work has a file of its own."""

    folder: Path
    share: str

    @staticmethod
    def of(cache_dir: Path, root: Path, signed: str, share: str) -> Cache:
        """The cache of a root, for files looked at in one way."""
        key = fsio.sha256_text(f"{root.resolve()}\n{signed}")[:24]
        return Cache(folder=cache_dir / "index" / key, share=share)

    def load(self, present: Mapping[str, State]) -> dict[str, Probe]:
        """What was found in files that are still the same; a damaged table is as good as none."""
        found: dict[str, Probe] = {}
        for file in sorted(self.folder.glob("*.parquet")):
            found |= _matching(_records(file), present)
        return found

    def save(self, found: Mapping[str, Probe]) -> None:
        """Add what this share found to what it knew."""
        import pandas as pd

        file = self.folder / f"{self.share}.parquet"
        known = {str(one["path"]): one for one in _records(file)}
        fresh = {p: {"path": p, **asdict(one)} for p, one in found.items() if one.mtime_ns}
        if all(known.get(path) == one for path, one in fresh.items()):
            return
        content = io.BytesIO()
        rows = [{**known, **fresh}[path] for path in sorted({*known, *fresh})]
        pd.DataFrame(rows, columns=["path", *_FIELDS]).to_parquet(content, index=False)
        fsio.make_dir(self.folder)
        fsio.write_bytes(file, content.getvalue())


def _records(file: Path) -> list[dict[str, Any]]:
    import pandas as pd
    import pyarrow as pa

    try:
        records = pd.read_parquet(file).to_dict("records")
    except (OSError, ValueError, pa.ArrowException):
        return []
    return [{str(name): value for name, value in one.items()} for one in records]


def _matching(
    records: Iterable[Mapping[str, Any]], present: Mapping[str, State]
) -> dict[str, Probe]:
    return {
        str(one["path"]): Probe(**{name: one[name] for name in _FIELDS})
        for one in records
        if present.get(str(one["path"])) == (one.get("bytes"), one.get("mtime_ns"))
    }
