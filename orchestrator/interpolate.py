"""Resolves `${...}` in a composed recipe: allowed resolvers only, bounded work, every fault."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.errors import nearest
from orchestrator.source import MAX_NODES

if TYPE_CHECKING:
    from omegaconf import DictConfig

_PLAIN_VARIABLES = frozenset({"USER", "HOME"})
_OUR_VARIABLE = re.compile(r"ORCHESTRATE_[A-Z0-9_]+")
SECRET = re.compile(r"token|secret|passw|credential|api_?key|private", re.IGNORECASE)
MISSING = "???"
TOO_MANY = f"at most {MAX_NODES:,} values once references are resolved"
# Nothing but one absolute reference, as `data: ${data.ucf101}`; and one to a matrix value.
WHOLE_REFERENCE = re.compile(r"\$\{((?!matrix\.)\w[\w-]*(?:\.[\w-]+)*)\}")
MATRIX_REFERENCE = re.compile(r"\$\{matrix\.([\w-]+)\}")
_REFERENCE = re.compile(r"\$\{([^${}:]*)\}")
_NESTED = re.compile(r"\$\{[^${}]*\}")
_ALLOWED = "oc.env of USER, HOME and ORCHESTRATE_*, and oc.select"


@dataclass(frozen=True, kw_only=True)
class Unresolved:
    """One value that could not be resolved: its path below `keys`, its text, what is wrong."""

    path: tuple[str | int, ...]
    value: str
    expected: str
    hint: str = ""


class _NotAllowed(Exception):
    """A resolver was asked for something it must not give."""


def _environment(name: str, default: Any = ...) -> Any:
    """`${oc.env:NAME,default}` for variables that cannot hold a secret.

    A secret in a recipe would be written to the run's files and to MLflow, where it stays.
    """
    known = name in _PLAIN_VARIABLES or _OUR_VARIABLE.fullmatch(name)
    if not known or SECRET.search(name):
        raise _NotAllowed(f"variable {name} is not read")
    value = os.environ.get(name)
    if value is not None:
        return value
    if default is ...:
        raise _NotAllowed(f"variable {name} is not set and there is no default")
    return default if default is None else str(default)


@contextlib.contextmanager
def allowed_resolvers() -> Iterator[None]:
    """Leave OmegaConf only the resolvers a recipe may use; the others are back afterwards."""
    from omegaconf import OmegaConf
    from omegaconf.basecontainer import BaseContainer

    before = BaseContainer._resolvers
    select = {name: before[name] for name in ("oc.select",) if name in before}
    try:
        BaseContainer._resolvers = select
        OmegaConf.register_new_resolver("oc.env", _environment)
        yield
    finally:
        BaseContainer._resolvers = before


def resolve(root: DictConfig, keys: Sequence[str], faults: list[Unresolved]) -> Any:
    """The plain value below `keys` of `root`, interpolations resolved.

    What cannot be resolved is None in the result and has a record in `faults`.
    """
    *above, last = keys
    node: Any = root
    with allowed_resolvers():
        for key in above:
            node = node[key]
        return _Walk(root=root, faults=faults).item(node, last, ())


def expansion(raw: Mapping[str, Any]) -> Callable[[str], int]:
    """How many values a dotted path of `raw` becomes once resolved: an upper bound, at most 10,001.

    A reference with a nested one counts as the largest of the places it could mean.
    """
    flat: dict[str, Any] = {}
    _flatten(raw, "", flat)
    sizes: dict[str, int] = {}

    def size(path: str) -> int:
        if path in sizes:
            return sizes[path]
        sizes[path] = 1
        value, total = flat.get(path), 1
        if isinstance(value, list):
            total += sum(map(size, value))
        elif isinstance(value, str):
            for names in _targets(value, path, flat):
                total += max(map(size, names), default=0)
        sizes[path] = min(total, MAX_NODES + 1)
        return sizes[path]

    return size


def _flatten(value: Any, path: str, flat: dict[str, Any]) -> None:
    """Each path to its scalar, or to the list of the paths below it."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        below = [(f"{path}.{key}" if path else str(key), item) for key, item in items]
        flat[path] = [name for name, _ in below]
        for name, item in below:
            _flatten(item, name, flat)
    else:
        flat[path] = value


def _targets(text: str, path: str, flat: Mapping[str, Any]) -> list[list[str]]:
    """For each reference in a text, the paths it may mean."""
    found = []
    while match := _NESTED.search(text):
        plain = _REFERENCE.fullmatch(match.group())
        if plain:
            found.append(_absolute(plain.group(1), path))
        text = f"{text[: match.start()]}*{text[match.end() :]}"
    return [_matching(target, flat) for target in found]


def _absolute(name: str, path: str) -> str:
    name = name.replace("[", ".").replace("]", "").strip()
    ups = len(name) - len(name.lstrip("."))
    if not ups:
        return name
    base = path.split(".")[:-ups]
    return ".".join([*base, name.lstrip(".")])


def _matching(target: str, flat: Mapping[str, Any]) -> list[str]:
    if "*" not in target:
        return [target]
    pattern = re.compile(".*".join(map(re.escape, target.split("*"))))
    return [name for name in flat if pattern.fullmatch(name)]


def _mapping_child(node: Any, key: str) -> Any:
    """A child of a mapping that is there and no reference itself; None for all else."""
    from omegaconf import DictConfig

    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
        return None
    return node._get_node(key)


_CIRCLE = "references that end: this one leads back to itself"


def _text(node: Any) -> str:
    """What a node says before it is resolved."""
    return repr(node) if node is None else str(node._value())


@dataclass(kw_only=True)
class _Walk:
    """Copies a node to plain values, one leaf after the other, so that each fault is found."""

    root: DictConfig
    faults: list[Unresolved]
    left: int = field(default=MAX_NODES)

    def item(
        self,
        parent: Any,
        key: Any,
        path: tuple[str | int, ...],
        followed: tuple[tuple[int, Any, str], ...] = (),
    ) -> Any:
        """The plain value of one child, None where there is a fault.

        `followed` are the places, and what is written there, whose references led here: one that
        comes twice is a circle, told at the first of them whatever the depth of the stack allows.
        """
        from omegaconf.errors import OmegaConfBaseException

        raw = parent._get_node(key)
        if any((id(parent), key) == place[:2] for place in followed):
            return self._fault(path, followed[0][2], _CIRCLE)
        self.left -= 1
        if self.left <= 0:
            # The caller looked at `expansion` first; this stops what it could not foresee.
            if self.left == 0:
                self._fault(path, _text(raw), TOO_MANY)
            return None
        if raw is not None and raw._is_missing():
            return self._missing(path)
        try:
            target = self._shortcut(raw)
            if target is None:
                return self._plain(parent[key], path)
            return self.item(*target, path, (*followed, (id(parent), key, _text(raw))))
        except (OmegaConfBaseException, RecursionError) as error:
            return self._translate(path, _text(raw), error)

    def _shortcut(self, raw: Any) -> tuple[Any, str] | None:
        """Parent and key of what a plain `${a.b}` means: most references, without the parser."""
        text = raw._value() if raw is not None else None
        if not isinstance(text, str) or "${" not in text:
            return None
        cell: Any = self.root._get_node("matrix") or {}
        text = MATRIX_REFERENCE.sub(lambda m: str(cell.get(m[1], m[0])), text)
        match = WHOLE_REFERENCE.fullmatch(text)
        if match is None:
            return None
        *above, last = match[1].split(".")
        node: Any = self.root
        for part in above:
            node = _mapping_child(node, part)
        return (node, last) if _mapping_child(node, last) is not None else None

    def _plain(self, node: Any, path: tuple[str | int, ...]) -> Any:
        from omegaconf import DictConfig, ListConfig

        if isinstance(node, DictConfig):
            return {str(key): self.item(node, key, (*path, str(key))) for key in node}
        if isinstance(node, ListConfig):
            return [self.item(node, index, (*path, index)) for index in range(len(node))]
        return node

    def _missing(self, path: tuple[str | int, ...]) -> None:
        return self._fault(path, MISSING, "a value: this one must be given")

    def _fault(self, path: tuple[str | int, ...], text: str, expected: str, hint: str = "") -> None:
        text = text if len(text) <= 80 else f"{text[:77]}..."
        self.faults.append(Unresolved(path=path, value=text, expected=expected, hint=hint))

    def _translate(self, path: tuple[str | int, ...], text: str, error: Exception) -> None:
        from omegaconf.errors import InterpolationKeyError, UnsupportedInterpolationType

        message = str(error).splitlines()[0] if str(error) else ""
        if isinstance(error, UnsupportedInterpolationType):
            return self._fault(path, text, f"what may be read: {_ALLOWED}", "no other resolver")
        if isinstance(error, InterpolationKeyError):
            found = re.search(r"key '([^']*)' not found", message)
            name = found.group(1) if found else text
            return self._fault(path, text, "a reference to a key that exists", self._near(name))
        if isinstance(error, RecursionError) or "recursi" in message.lower():
            return self._fault(path, text, _CIRCLE)
        if "_NotAllowed raised" in message:
            return self._fault(path, text, f"what may be read: {_ALLOWED}", message.split(": ")[-1])
        return self._fault(path, text, f"a valid interpolation: {message}")

    def _near(self, name: str) -> str:
        """The nearest name to the first part of a dotted name that does not exist."""
        node: Any = self.root
        parts = name.split(".")
        for index, part in enumerate(parts):
            keys = [str(key) for key in node] if hasattr(node, "keys") else []
            if part not in keys:
                prefix = ".".join(parts[:index])
                where = f"`{prefix}` has" if prefix else "the recipe has"
                return f"{where} no `{part}`; {nearest(part, keys)}"
            node = node._get_node(part)
        return ""
