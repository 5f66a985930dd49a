"""Reads a YAML file with guards and remembers the line each key was written in."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from orchestrator.errors import RecipeError, RecipeErrors

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 50

_TAGS = frozenset({"null", "bool", "int", "float", "str", "seq", "map", "merge", "timestamp"})
_TAG_PREFIX = "tag:yaml.org,2002:"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Text of a YAML mapping and, for each dotted path in it, the line (from 1) of its key."""

    label: str
    text: str
    lines: Mapping[str, int]


def read_source(path: Path, *, expected: str = "a recipe: a YAML file") -> Source:
    """Read a YAML mapping.

    Refused are: anything but a readable UTF-8 file of at most 1 MB, an empty one, tabs for
    indentation, duplicate keys, keys that are no text, tags that build objects, and aliases that
    would expand to more than 10,000 values or 50 levels.

    Raises:
        RecipeErrors: with one fault that names file and line.
    """
    label = _label(path)
    text = _read_text(path, label, expected)
    _refuse_tabs(text, label)
    _guard_expansion(text, label)
    return Source(label=label, text=text, lines=_key_lines(text, label))


def _label(path: Path) -> str:
    """The path as a person would type it from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _fail(label: str, expected: str, line: int | None = None, **rest: str) -> NoReturn:
    raise RecipeErrors([RecipeError(file=label, line=line, expected=expected, **rest)])


def _read_text(path: Path, label: str, expected: str) -> str:
    try:
        status = path.stat()
    except FileNotFoundError:
        _fail(label, expected, value="no such file", hint=_similar_file(path))
    except (OSError, ValueError) as error:
        _fail(label, expected, value=f"cannot be opened: {error}")
    if stat.S_ISDIR(status.st_mode):
        inside = sorted(file.name for file in path.glob("*.yaml"))[:8]
        hint = f"name one of its files: {', '.join(inside)}" if inside else ""
        _fail(label, expected, value="a directory", hint=hint)
    if not stat.S_ISREG(status.st_mode):
        _fail(label, expected, value="neither a file nor a directory")
    if status.st_size > MAX_BYTES:
        size = f"{status.st_size / 1e6:.1f} MB"
        _fail(label, "a YAML file of at most 1 MB", value=f"a file of {size}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        _fail(label, "text in UTF-8", value=f"byte {error.start} is not UTF-8")
    except OSError as error:
        _fail(label, expected, value=f"cannot be read: {error.strerror}")


def _similar_file(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    there = sorted(file.name for file in path.parent.glob("*.yaml"))
    close = difflib.get_close_matches(path.name, there, n=1, cutoff=0.5)
    return f"did you mean `{path.parent / close[0]}`?" if close else ""


def _refuse_tabs(text: str, label: str) -> None:
    if "\t" not in text:
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if "\t" in line[: len(line) - len(line.lstrip())] and line.strip():
            _fail(label, "blanks for indentation", number, value="a tab")


@dataclass
class _Open:
    """A collection whose end was not seen yet."""

    anchor: str | None
    size: int = 1
    depth: int = 1


@dataclass
class _Expansion:
    """Counts the values of a document as if every alias were written out, without doing so."""

    label: str
    stack: list[_Open] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def open(self, anchor: str | None, line: int) -> None:
        self.stack.append(_Open(anchor))
        self._check(len(self.stack), 0, line)

    def close(self, line: int) -> None:
        done = self.stack.pop()
        if done.anchor is not None:
            self.sizes[done.anchor] = (done.size, done.depth)
        self.add(done.size, done.depth, line)

    def alias(self, anchor: str, line: int) -> None:
        if any(each.anchor == anchor for each in self.stack):
            _fail(self.label, "aliases that end", line, value=f"*{anchor} contains itself")
        self.add(*self.sizes.get(anchor, (1, 0)), line)

    def add(self, size: int, depth: int, line: int) -> None:
        if self.stack:
            self.stack[-1].size += size
            self.stack[-1].depth = max(self.stack[-1].depth, depth + 1)
        self._check(len(self.stack) + depth, sum(each.size for each in self.stack), line)

    def _check(self, depth: int, size: int, line: int) -> None:
        if depth > MAX_DEPTH:
            expected = f"at most {MAX_DEPTH} levels of nesting"
            _fail(self.label, expected, line, value=f"more than {MAX_DEPTH} levels")
        if size > MAX_NODES:
            expected = f"at most {MAX_NODES:,} values once aliases are written out"
            _fail(self.label, expected, line, value=f"more than {MAX_NODES:,} values")


def _loader() -> type[yaml.SafeLoader]:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _guard_expansion(text: str, label: str) -> None:
    """Walk the events of the parser, which never expands an alias nor recurses."""
    import yaml

    expansion = _Expansion(label)
    try:
        for event in yaml.parse(text, Loader=_loader()):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent):
                expansion.alias(str(event.anchor), line)
            elif isinstance(event, yaml.CollectionStartEvent):
                expansion.open(event.anchor, line)
            elif isinstance(event, yaml.CollectionEndEvent):
                expansion.close(line)
            elif isinstance(event, yaml.ScalarEvent):
                expansion.add(1, 0, line)
    except yaml.YAMLError as error:
        _fail_yaml(label, error)


def _fail_yaml(label: str, error: Exception) -> NoReturn:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    if "'\\t'" in problem:
        _fail(label, "blanks, not tabs", mark.line + 1 if mark else None, value="a tab")
    hint = 'quote text that holds `: `, ` #` or starts with one of @ ` % & * ! [ { "'
    value = f"{problem} ({context})" if context else problem
    _fail(label, "valid YAML", mark.line + 1 if mark else None, value=value, hint=hint)


def _key_lines(text: str, label: str) -> dict[str, int]:
    import yaml

    try:
        root = yaml.compose(text, Loader=_loader())
    except yaml.YAMLError as error:
        _fail_yaml(label, error)
    if root is None or root.tag == f"{_TAG_PREFIX}null":
        _fail(label, "a mapping such as `name: my_recipe`", value="an empty file")
    if not isinstance(root, yaml.MappingNode):
        _fail(label, "a mapping such as `name: my_recipe`", 1, value=_what(root))
    return dict(_walk(root, "", label))


def _what(node: yaml.Node) -> str:
    import yaml

    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _walk(node: yaml.Node, path: str, label: str) -> Iterator[tuple[str, int]]:
    import yaml

    line = node.start_mark.line + 1
    if node.tag.removeprefix(_TAG_PREFIX) not in _TAGS:
        _fail(label, "plain values", line, value=f"the tag {node.tag}", hint="remove the tag")
    if isinstance(node, yaml.MappingNode):
        yield from _walk_mapping(node, path, label)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            inner = f"{path}.{index}"
            yield inner, item.start_mark.line + 1
            yield from _walk(item, inner, label)


def _walk_mapping(node: yaml.MappingNode, path: str, label: str) -> Iterator[tuple[str, int]]:
    import yaml

    seen: dict[str, int] = {}
    # Merged keys come first, so that the mapping's own lines win.
    for key, value in sorted(node.value, key=lambda pair: not _is_merge(pair[0])):
        line = key.start_mark.line + 1
        if _is_merge(key):
            several = isinstance(value, yaml.SequenceNode)
            for part in reversed(value.value) if several else [value]:
                yield from _walk(part, path, label)
            continue
        _check_key(key, seen.get(str(key.value)), label)
        seen[key.value] = line
        inner = f"{path}.{key.value}" if path else key.value
        yield inner, line
        yield from _walk(value, inner, label)


def _is_merge(key: yaml.Node) -> bool:
    return bool(key.tag == f"{_TAG_PREFIX}merge")


def _check_key(key: yaml.Node, first_line: int | None, label: str) -> None:
    line = key.start_mark.line + 1
    if key.tag != f"{_TAG_PREFIX}str":
        found = f"the key {str(key.value)[:60]}" if key.value else "an empty key"
        _fail(label, "keys that are text", line, value=found, hint="put it in quotes")
    if first_line is not None:
        found = f"`{key.value}` again, first in line {first_line}"
        _fail(label, "each key once in its mapping", line, value=found)
