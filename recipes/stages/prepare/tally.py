"""Counts of what a prepare stage or its parts did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recipes.contract import Artifact
from recipes.stages.prepare.one import Done


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Files that were encoded, taken from the cache, or not prepared; processor time spent."""

    encoded: int = 0
    reused: int = 0
    failed: int = 0
    cpu_seconds: float = 0.0

    @classmethod
    def of(cls, done: Iterable[Done]) -> Tally:
        """Count finished files."""
        every = list(done)
        made = [one for one in every if one.file is not None]
        reused = sum(one.reused for one in made)
        return cls(
            encoded=len(made) - reused,
            reused=reused,
            failed=len(every) - len(made),
            cpu_seconds=round(sum(one.cpu_seconds for one in every), 1),
        )

    @classmethod
    def of_part(cls, part: Artifact) -> Tally:
        """What a part says of itself."""
        counts: Mapping[str, Any] = part.meta["tally"]
        return cls(**counts)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, for the description of a part."""
        return asdict(self)

    def __add__(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(
            encoded=self.encoded + other.encoded,
            reused=self.reused + other.reused,
            failed=self.failed + other.failed,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
        )
