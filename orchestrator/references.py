"""Names of matrix cells, and what the reference of an input can say; pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_IN_WORDS = (
    "a name of letters, digits, `.`, `_` and `-`, at most 64, beginning with a letter or digit"
)
MAX_CELLS = 1000
# What MLflow itself takes after `models:/`: a name with an alias or version, or a model's own id.
_MODEL = re.compile(
    r"models:/(m-[0-9a-f]{32}|[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}(@[A-Za-z0-9._-]+|/(\d+|latest)))"
)


class GraphFault(ValueError):
    """A matrix, reference or cycle is wrong: `expected` says what would be right."""

    def __init__(self, expected: str, hint: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What an input names: exactly one of stage name or pattern, stage of a run, file or model.

    Attributes:
        text: as the recipe writes it.
        stage: name of a stage, or a pattern with `*` over the cells of one.
        run: id of another run, for `run:<run_id>:<stage>.<artifact>`.
        file: absolute path, for `file:<path>`.
        model: name in MLflow, for `models:/<name>@<alias>` or `models:/<name>/<version>`.
        artifact: name of the artifact; empty for a file and a model.
    """

    text: str
    stage: str = ""
    run: str = ""
    file: str = ""
    model: str = ""
    artifact: str = ""


def cells(stage: str, matrix: Mapping[str, Sequence[Any]] | None) -> dict[str, dict[str, Any]]:
    """Names of the cells of a stage with their matrix values; the stage itself without a matrix.

    `{target: [ucf101, hmdb51], split: [1, 2]}` gives `stage/ucf101-1`, `stage/ucf101-2`, ...

    Raises:
        GraphFault: too many cells, a value that makes no name, or two cells of one name.
    """
    if matrix is None:
        return {stage: {}}
    count = 1
    for values in matrix.values():
        count *= len(values)
    if count > MAX_CELLS:
        raise GraphFault(f"at most {MAX_CELLS} cells: these lists make {count:,}")
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*matrix.values()):
        cell = "-".join(_word(value) for value in values)
        if not NAME.fullmatch(cell):
            raise GraphFault(f"values that make {NAME_IN_WORDS}: {cell!r} is none")
        name = f"{stage}/{cell}"
        if name in found:
            raise GraphFault(f"values that differ: there would be two cells {name}")
        found[name] = dict(zip(matrix, values, strict=True))
    return found


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_reference(text: str) -> Reference:
    """Read `stage.artifact`, `stage/*.artifact`, or what lies outside of the recipe.

    That is `run:<id>:<stage>.<artifact>`, `file:<path>`, `models:/<name>@<alias>`,
    `models:/<name>/<version>` or, of a model without a version, `models:/m-<id>`.

    Raises:
        GraphFault: it is none of these.
    """
    if text.startswith("models:"):
        if not _MODEL.fullmatch(text):
            raise GraphFault("`models:/<name>@<alias>` or `models:/<name>/<version>`")
        return Reference(text=text, model=text)
    if text.startswith("file:"):
        path = text.removeprefix("file:")
        if not path.startswith("/") or not path.isprintable() or "/../" in f"{path}/":
            raise GraphFault("an absolute path after `file:`, without `..`")
        return Reference(text=text, file=path)
    run = ""
    rest = text
    if text.startswith("run:"):
        run, separator, rest = text.removeprefix("run:").partition(":")
        if not separator or not NAME.fullmatch(run):
            raise GraphFault("a reference such as `run:<run_id>:<stage>.<artifact>`")
    stage, dot, artifact = rest.rpartition(".")
    if not dot or not stage or not NAME.fullmatch(artifact):
        raise GraphFault(
            "a reference such as `pretrain.encoder`: a stage, a dot, an artifact",
            f"did you mean `{text}.result`?" if NAME.fullmatch(text) else "",
        )
    return Reference(text=text, stage=stage, run=run, artifact=artifact)
