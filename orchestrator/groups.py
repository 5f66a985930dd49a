"""The many parts of one stage as a person sees them: one line, one name; pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

_PART = re.compile(r"(?P<whole>.+)/part-\d{3}")


class Part(Protocol):
    """A stage that may be a part of another one."""

    @property
    def name(self) -> str:
        """Its own name."""

    @property
    def part_of(self) -> str | None:
        """The name of the stage it is a part of."""


_Stage = TypeVar("_Stage", bound=Part)


def pattern(whole: str) -> str:
    """What the parts of a stage are called together."""
    return f"{whole}/part-*"


def grouped(stages: Iterable[_Stage]) -> list[list[_Stage]]:
    """The stages in order, those of one whole together in the place of the first of them."""
    groups: dict[str, list[_Stage]] = {}
    for stage in stages:
        groups.setdefault(pattern(stage.part_of) if stage.part_of else stage.name, []).append(stage)
    return list(groups.values())


def name_of(group: Sequence[_Stage]) -> str:
    """The name a group has on the screen."""
    return pattern(str(group[0].part_of)) if group[0].part_of else group[0].name


def counted(words: Iterable[str]) -> str:
    """How many of each: `12 succeeded, 4 running`, in the order in which they first come."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).items())


def collapsed(names: Sequence[str]) -> list[str]:
    """Names of stages, with one name for several parts of one stage."""
    wholes = [match["whole"] if (match := _PART.fullmatch(name)) else "" for name in names]
    count = Counter(wholes)
    shown = (
        pattern(whole) if whole and count[whole] > 1 else name
        for name, whole in zip(names, wholes, strict=True)
    )
    return list(dict.fromkeys(shown))
