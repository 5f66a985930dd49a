"""The identity of a stage: a digest of what it does, of its configuration and of its inputs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import recipes
from recipes.catalog import BACKBONES, DATASETS, METHODS, STAGES

_ROOT = Path(recipes.__file__).parent
# The frame around all stages: what it says reaches a key by the values it leads to.
_FRAME = frozenset({"recipes", "recipes.catalog", "recipes.config", "recipes.contract"})

_STRING = (
    r"[rRbBuUfF]{0,2}(?:"
    r'"""(?:\\.|[^\\])*?"""'
    r"|'''(?:\\.|[^\\])*?'''"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'(?:\\.|[^'\\\n])*')"
)
_STRING_OR_COMMENT = re.compile(rf"({_STRING})|#[^\n]*", re.DOTALL)
_DOCSTRING = re.compile(
    r'(:[ \t]*\n\s*|\A\s*)(?:"""(?:\\.|[^\\])*?"""|"(?:\\.|[^"\\\n])*")[ \t]*(?=\n|\Z)', re.DOTALL
)
_FROM = re.compile(r"^[ \t]*from[ \t]+(recipes[\w.]*)[ \t]+import[ \t]*(\([^)]*\)|[^\n]*)", re.M)
_IMPORT = re.compile(r"^[ \t]*import[ \t]+(recipes[\w.]*)", re.M)
_TARGET = re.compile(r"""["'](recipes(?:\.\w+)+)(?::\w+)?["']""")
_DATA_FILE = re.compile(r"""["']([\w.-]+\.(?:csv|json|yaml|txt))["']""")


def stage_key(
    *,
    kind: str,
    version: int,
    code: str,
    config: Mapping[str, Any],
    outside: Iterable[str] = (),
    inputs: Mapping[str, Sequence[tuple[str, str]]],
    files: Mapping[str, str | None] | None = None,
) -> str:
    """The key of a stage: 64 hexadecimal digits.

    Args:
        kind: kind of stage.
        version: version its configuration class declares.
        code: digest of the code it runs.
        config: its fields with all defaults.
        outside: dotted paths of fields that do not belong to the identity.
        inputs: for each slot the artifact names and the keys (or file digests) of the upstreams;
            their order does not count.
        files: digests of files whose content belongs to the identity, None for absent ones.
    """
    identity = {
        "kind": kind,
        "version": version,
        "code": code,
        "config": without(config, outside),
        "inputs": {slot: sorted(map(list, refs)) for slot, refs in inputs.items()},
        "files": dict(files or {}),
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def without(config: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """A copy of `config` without the fields at these dotted paths."""
    kept = dict(config)
    for path in paths:
        head, _, rest = path.partition(".")
        if not rest:
            kept.pop(head, None)
        elif isinstance(kept.get(head), Mapping):
            kept[head] = without(kept[head], [rest])
    return kept


def code_modules(kind: str, config: Mapping[str, Any], *, reads_data: bool) -> tuple[str, ...]:
    """Modules a stage runs: that of its kind, and of the method, backbone and data set it names.

    Its work may have been done in shares, so the module of those counts as well. `reads_data` is
    for a kind that looks at the data set itself and not at its index.
    """
    targets = [STAGES[name].target for name in (kind, f"{kind}_part") if name in STAGES]
    for field, table, tag in (("method", METHODS, "name"), ("backbone", BACKBONES, "name")):
        named = config.get(field)
        if isinstance(named, Mapping) and named.get(tag) in table:
            targets.append(table[named[tag]].target)
    data = config.get("data")
    if reads_data and isinstance(data, Mapping) and data.get("format") in DATASETS:
        targets.append(DATASETS[data["format"]].target)
    return tuple(target.partition(":")[0] for target in targets)


def code_digest(modules: Iterable[str]) -> str:
    """Digest of modules of `recipes` and of all they import from there, found without importing.

    Comments, docstrings and blank lines do not count, nor does the frame every stage shares (the
    catalog and the contracts), so that adding a method leaves the keys of the others alone.
    """
    return hashlib.sha256(canonical_json(code_closure(modules)).encode()).hexdigest()


def code_closure(modules: Iterable[str], root: Path | None = None) -> dict[str, str]:
    """The digest of each module that these run, themselves included.

    Args:
        modules: where to begin.
        root: the folder of the package `recipes`, such as that of a snapshot; the one that was
            imported by default.
    """
    root = root or _ROOT
    closure: dict[str, str] = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module in closure or module in _FRAME:
            continue
        digest, imported = _scan(module, root)
        if digest:
            closure[module] = digest
            pending += imported
    return closure


@cache
def _scan(module: str, root: Path) -> tuple[str, tuple[str, ...]]:
    """Digest of one module's code with the data files it names, and the modules it imports."""
    file = _file_of(module, root)
    if file is None:
        return "", ()
    code = normalize_code(file.read_text(encoding="utf-8"))
    digest = hashlib.sha256(code.encode())
    for name in sorted(set(_DATA_FILE.findall(code))):
        for place in (file.parent / name, root / name):
            if place.is_file():
                digest.update(hashlib.sha256(place.read_bytes()).digest())
                break
    parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
    return digest.hexdigest(), (*parents, *_imports(code))


def _file_of(module: str, root: Path) -> Path | None:
    place = root.joinpath(*module.split(".")[1:])
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        if file.is_file():
            return file
    return None


def normalize_code(text: str) -> str:
    """Python code without comments, docstrings and blank lines."""
    text = _STRING_OR_COMMENT.sub(lambda match: match[1] or "", text)
    text = _DOCSTRING.sub(lambda match: match[1], text)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def _imports(code: str) -> Iterator[str]:
    for module, names in _FROM.findall(code):
        yield module
        for name in names.strip("()").split(","):
            words = name.split()
            if words:
                yield f"{module}.{words[0]}"
    yield from _IMPORT.findall(code)
    yield from _TARGET.findall(code)
