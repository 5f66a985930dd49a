"""The code of an encoder as one file of plain PyTorch, for people who do not have this package."""

from __future__ import annotations

import ast
import importlib.util
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from recipes.catalog import BACKBONES
from recipes.models.config import EncoderConfig

_OURS = "recipes."
_NEEDED = (
    ("recipes.models.encoder", "VideoEncoder"),
    ("recipes.models.conv_gru", "ConvGRU"),
    ("recipes.data.augment", "normalize"),
)
_HEADER = '''"""The encoder of encoder.safetensors in plain PyTorch; collected from orchestrate.

    from encoder import load, normalize

    encoder = load("encoder.safetensors")  # or load("models:/NAME@ALIAS") of an MLflow registry
    features = encoder(normalize(clips))  # clips (B, N, 3, T, H, W) in [0, 1]
"""

from __future__ import annotations
'''
_LOADER = '''def load(path: str) -> VideoEncoder:
    """The trained encoder in `path`, on the CPU and in evaluation mode.

    A path that begins with `models:/` names one in an MLflow registry, which is downloaded.
    """
    if path.startswith("models:/"):
        from mlflow.artifacts import download_artifacts

        path = download_artifacts(path) + "/encoder.safetensors"
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["encoder"]
    config = json.loads(text, object_hook=lambda entries: SimpleNamespace(**entries))
    backbone = {build}(config.backbone)
    context = ConvGRU(backbone.feature_dim, config.context.dropout) if config.context else None
    encoder = VideoEncoder(backbone, context)
    encoder.load_state_dict(load_file(path))
    return encoder.eval()
'''
_LOADER_IMPORTS = (
    ("json", None),
    ("types", "SimpleNamespace"),
    ("typing", "Any"),
    ("safetensors", "safe_open"),
    ("safetensors.torch", "load_file"),
)
# A module and a name in it, or None for the module itself; ` as x` may follow what is imported.
Imported = tuple[str, str | None]


class NotStandaloneError(Exception):
    """The code of a backbone cannot be collected; the message says which definition is why."""


@dataclass(frozen=True, kw_only=True)
class _Module:
    """A source file: its top-level definitions and its imports, by name."""

    lines: list[str]
    definitions: dict[str, ast.stmt]
    imports: dict[str, Imported]


@dataclass(kw_only=True)
class _Collected:
    """What goes into the file: definitions behind all they need, foreign imports, absent types."""

    definitions: dict[str, tuple[str, str]] = field(default_factory=dict)  # name: (module, text)
    imports: set[Imported] = field(default_factory=lambda: set(_LOADER_IMPORTS))
    absent: set[str] = field(default_factory=set)


def standalone_code(config: EncoderConfig) -> str:
    """Python that loads the file of an encoder and needs nothing but torch and safetensors.

    It holds the very definitions, with their comments, that the encoder's backbone, its context and
    the normalization of clips are made of, and of those modules no more. Types of our configuration
    are `Any` in it, as they only annotate.

    Raises:
        NotStandaloneError: two definitions share a name, or one is imported under another.
    """
    module, _, build = BACKBONES[config.backbone.name].target.partition(":")
    collected = _Collected()
    for place, name in (*_NEEDED, (module, build)):
        _collect(place, name, collected)
    absent = sorted(collected.absent - collected.definitions.keys())
    head = [
        _HEADER,
        _import_lines(collected.imports),
        *(f"{name} = Any  # in annotations only" for name in absent),
    ]
    texts = [text for _, text in collected.definitions.values()]
    return "\n\n\n".join(["\n".join(head), *texts, _LOADER.format(build=build)])


def _collect(place: str, name: str, collected: _Collected) -> None:
    """Take the definition of `name` in module `place`, behind everything it refers to."""
    module = _read(place)
    if name not in module.definitions:
        _collect_import(place, name, collected)
        return
    known = collected.definitions.get(name)
    if known is not None:
        if known[0] != place:
            raise NotStandaloneError(f"{name} is defined in {place} and in {known[0]}")
        return
    node = module.definitions[name]
    collected.definitions[name] = (place, "")  # it may refer to itself
    in_code, in_annotations = _names(node)
    for used in sorted(in_code):
        if used in module.definitions or used in module.imports:
            _collect(place, used, collected)
    for used in sorted(in_annotations - in_code):
        _collect_annotation(place, used, collected)
    del collected.definitions[name]
    collected.definitions[name] = (place, _text(module, node))


def _collect_import(place: str, name: str, collected: _Collected) -> None:
    source, original = _read(place).imports[name]
    if source.startswith(_OURS):
        if name != original:
            raise NotStandaloneError(f"{place} imports {source} {original or ''} as {name}")
        _collect(source, name, collected)
    elif original is None:
        same = name == source.partition(".")[0]
        collected.imports.add((source if same else f"{source} as {name}", None))
    else:
        collected.imports.add((source, name if name == original else f"{original} as {name}"))


def _collect_annotation(place: str, name: str, collected: _Collected) -> None:
    """Annotations are not evaluated: types that would need more of our code are left out."""
    module = _read(place)
    if name in module.definitions:
        _collect(place, name, collected)
    elif name in module.imports and module.imports[name][0].startswith(_OURS):
        collected.absent.add(name)
    elif name in module.imports:
        _collect_import(place, name, collected)


@cache
def _read(place: str) -> _Module:
    spec = importlib.util.find_spec(place)
    if spec is None or spec.origin is None:
        raise NotStandaloneError(f"the source of {place} is not to be found")
    source = Path(spec.origin).read_text(encoding="utf-8")
    module = _Module(lines=source.splitlines(), definitions={}, imports={})
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module not in (None, "__future__"):
            for alias in node.names:
                module.imports[alias.asname or alias.name] = (str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module.imports[alias.asname or alias.name.partition(".")[0]] = (alias.name, None)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            module.definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            module.definitions.update({t.id: node for t in targets if isinstance(t, ast.Name)})
    return module


def _import_lines(imports: set[Imported]) -> str:
    """Modules before names of modules, the standard library before the rest."""
    names: dict[str, list[str]] = {}
    for module, name in sorted(entry for entry in imports if entry[1] is not None):
        names.setdefault(module, []).append(str(name))
    lines = [(module, f"import {module}") for module, name in sorted(imports, key=str) if not name]
    lines += [(m, f"from {m} import {', '.join(found)}") for m, found in names.items()]
    groups: list[list[str]] = [[], []]
    for module, line in lines:
        groups[module.partition(".")[0] not in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(group) for group in groups) + "\n"


def _names(node: ast.stmt) -> tuple[set[str], set[str]]:
    """Names a definition uses in what is run, and those in its annotations."""
    annotations: list[ast.expr] = []
    for part in ast.walk(node):
        if isinstance(part, ast.arg | ast.AnnAssign) and part.annotation is not None:
            annotations.append(part.annotation)
        elif isinstance(part, ast.FunctionDef) and part.returns is not None:
            annotations.append(part.returns)
    inside = {id(part) for annotation in annotations for part in ast.walk(annotation)}
    found = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    in_code = {part.id for part in found if id(part) not in inside}
    return in_code, {part.id for part in found if id(part) in inside}


def _text(module: _Module, node: ast.stmt) -> str:
    """The lines of a definition, with its decorators and the comment above it."""
    first = min(part.lineno for part in (node, *getattr(node, "decorator_list", [])))
    while first > 1 and module.lines[first - 2].startswith("#"):
        first -= 1
    return "\n".join(module.lines[first - 1 : node.end_lineno])
