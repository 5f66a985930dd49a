"""Tells where a value of the expanded recipe was written, through references and matrix cells."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import RecipeError
from orchestrator.interpolate import MATRIX_REFERENCE, SECRET, WHOLE_REFERENCE

_SHOWN = 80
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a value was written: a file and line, or the command line; empty where unknown."""

    file: str = ""
    line: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One stage after expansion: the stage it came from and its matrix values."""

    stage: str
    matrix: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SourceMap:
    """The composed recipe before resolution, the origin of each dotted path, and the cells."""

    raw: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    cells: Mapping[str, Cell] = field(default_factory=dict)

    def locate(self, parts: Sequence[str | int]) -> tuple[str, Origin]:
        """The dotted path at which a value is really written, and its file and line.

        `data: ${data.ucf101}` leads from `stages.probe.data.root` to `data.ucf101.root`.
        """
        names = [str(part) for part in parts]
        cell = self.cells.get(names[1]) if len(names) > 1 and names[0] == "stages" else None
        shown = names
        if cell is not None:
            names = ["stages", cell.stage, *names[2:]]
        real = self._follow(names, cell.matrix if cell else {})
        if real != names:
            shown = real
        return ".".join(shown), self.origin(real)

    def origin(self, parts: Sequence[str]) -> Origin:
        """Origin of a path, or of the nearest one above it that was written anywhere."""
        for length in range(len(parts), -1, -1):
            found = self.origins.get(".".join(parts[:length]))
            if found is not None:
                return found
        return Origin()

    def fault(
        self, parts: Sequence[str | int], expected: str, value: str | None = None, hint: str = ""
    ) -> RecipeError:
        """A fault of the value at `parts`."""
        path, origin = self.locate(parts)
        return RecipeError(
            path=path,
            file=origin.file,
            line=origin.line,
            value=value,
            expected=expected,
            hint=hint,
        )

    def _follow(self, names: list[str], matrix: Mapping[str, Any]) -> list[str]:
        for _ in range(20):
            target = self._redirect(names, matrix)
            if target is None:
                return names
            names = target
        return names

    def _redirect(self, names: list[str], matrix: Mapping[str, Any]) -> list[str] | None:
        """`names` with its first part that is nothing but a reference replaced by the target."""
        node: Any = self.raw
        for index, name in enumerate(names):
            node = _child(node, name)
            if isinstance(node, str):
                text = MATRIX_REFERENCE.sub(lambda m: str(matrix.get(m[1], m[0])), node)
                match = WHOLE_REFERENCE.fullmatch(text)
                if match is None:
                    return None
                return [*match[1].split("."), *names[index + 1 :]]
        return None


def _child(node: Any, name: str) -> Any:
    if isinstance(node, Mapping):
        return node.get(name)
    if isinstance(node, list) and name.isdigit() and int(name) < len(node):
        return node[int(name)]
    return None


def shown(value: Any, key: str | int = "") -> str:
    """A value as a message shows it: short, on one line, secrets hidden."""
    if isinstance(key, str) and SECRET.search(key):
        return "<hidden>"
    text = _CREDENTIALS.sub("//<hidden>@", json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
