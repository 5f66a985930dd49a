"""What is wrong with a recipe: a record for each fault, one exception for all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RecipeError:
    """One fault of a recipe.

    Attributes:
        path: dotted path of the key, empty where the file as a whole is meant.
        file: file the key was written in, or `command line` for an override; empty if unknown.
        line: line in that file, counted from 1.
        value: what was found, as text; None where nothing was there.
        expected: what would be right, as a sentence.
        hint: what to do, for example the nearest valid name; empty if nothing is known.
    """

    path: str = ""
    file: str = ""
    line: int | None = None
    value: str | None = None
    expected: str
    hint: str = ""

    @property
    def where(self) -> str:
        """File and line as editors and terminals recognise them."""
        return f"{self.file}:{self.line}" if self.file and self.line else self.file

    def render(self) -> str:
        """The block of lines a person reads, without a final newline."""
        place = f" ({self.where})" if self.path and self.where else self.where
        lines = [f"error: {self.path}{place}"]
        if self.value is not None:
            lines.append(f"  found:    {self.value}")
        lines.append(f"  expected: {self.expected}")
        if self.hint:
            lines.append(f"  hint:     {self.hint}")
        return "\n".join(lines)


class RecipeErrors(Exception):
    """All faults found in a recipe; its text is one block for each."""

    def __init__(self, errors: Iterable[RecipeError]) -> None:
        self.errors = tuple(dict.fromkeys(errors))
        super().__init__("\n".join(error.render() for error in self.errors))


class Refused(Exception):
    """What a person asked for is not done as it was asked; the text says why, and what would be."""


def nearest(name: str, known: Sequence[str]) -> str:
    """`did you mean X?` for the closest known name, else the list of what there is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"known: {shown}"
