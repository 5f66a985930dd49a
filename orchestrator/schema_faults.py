"""Turns what pydantic refuses into faults of the recipe: the key as written, what was expected."""

from __future__ import annotations

import re
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import RecipeError, nearest
from orchestrator.references import NAME_IN_WORDS
from orchestrator.schema import NAME
from orchestrator.source_map import SourceMap, shown

_NUMBER = re.compile(r"[-+]?[\d.]+(?:e[-+]?\d+)?", re.IGNORECASE)

Parts = tuple[str | int, ...]

_EXPECTED = {
    "missing": "a value: this key is required",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a key {discriminator} that says which kind it is",
    "value_error": "{error}",
    "string_pattern_mismatch": "text that matches {pattern}",
}
# Faults of the type of a whole value: one of several alternatives of a union did not fit.
_WHOLE = {key for key in _EXPECTED if key.endswith("_type")} | {"literal_error"}


def translate(
    error: ValidationError, model: type[BaseModel], raw: Any, at: Parts, sources: SourceMap
) -> list[tuple[Parts, RecipeError]]:
    """All faults pydantic found in `raw`, which stands at `at` in the recipe, with their paths."""
    grouped: dict[Parts, list[ErrorDetails]] = defaultdict(list)
    for detail in error.errors(include_url=False):
        grouped[_real_path(detail, raw)].append(detail)
    faults = []
    for path, details in grouped.items():
        if any(other[: len(path)] == path and other != path for other in grouped):
            # An alternative of a union went deeper: its faults say more than "not the others".
            details = [each for each in details if each["type"] not in _WHOLE]
        if details:
            faults.append((at + path, _fault(details, model, raw, at, path, sources)))
    return faults


def _real_path(detail: ErrorDetails, raw: Any) -> Parts:
    """The location without the labels pydantic adds for the members of unions."""
    node, path = raw, []
    location = detail["loc"]
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if _has(node, part):
            node = node[part]
        elif not (last and detail["type"] == "missing"):
            continue
        path.append(part)
    return tuple(path)


def _has(node: Any, part: str | int) -> bool:
    if isinstance(node, Mapping):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)


def _fault(
    details: list[ErrorDetails],
    model: type[BaseModel],
    raw: Any,
    at: Parts,
    path: Parts,
    sources: SourceMap,
) -> RecipeError:
    first, key = details[0], path[-1] if path else ""
    value = None if first["type"] == "missing" else shown(first["input"], key)
    if first["type"] == "extra_forbidden":
        hint = _hint_for_unknown(str(key), _models_at(model, raw, path[:-1]))
        return sources.fault(at + path, "no such key here", shown({key: first["input"]}, key), hint)
    expected = " or ".join(dict.fromkeys(_expected(each) for each in details))
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):
        value = None
    return sources.fault(at + path, expected, value, _hint_for_value(first))


def _expected(detail: ErrorDetails) -> str:
    template = _EXPECTED.get(detail["type"])
    if template is None:
        return detail["msg"]
    if detail.get("ctx", {}).get("pattern") == NAME:
        return NAME_IN_WORDS
    context = {name: _tidy(value) for name, value in detail.get("ctx", {}).items()}
    return template.format_map(context)


def _tidy(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("'", "`")


def _hint_for_value(detail: ErrorDetails) -> str:
    """The nearest of the allowed words, or the way to write a number that became text."""
    context = detail.get("ctx", {})
    allowed = str(context.get("expected_tags") or context.get("expected") or "")
    given = context.get("tag", detail["input"])
    if allowed and isinstance(given, str):
        hint = nearest(given, re.findall(r"'([^']*)'", allowed))
        return hint if hint.startswith("did") else ""
    if detail["type"] in ("int_type", "float_type") and _NUMBER.fullmatch(str(given)):
        return "a number stands without quotes" if isinstance(given, str) else ""
    return ""


def _hint_for_unknown(key: str, models: list[type[BaseModel]]) -> str:
    """A nested field of that very name, else the nearest field."""
    known = [name for model in models for name in model.model_fields]
    for model in models:
        for name, info in model.model_fields.items():
            if any(key in inner.model_fields for inner in _models_in(info.annotation)):
                return f"did you mean `{name}.{key}`?"
    return nearest(key, list(dict.fromkeys(known)))


def _models_at(model: type[BaseModel], raw: Any, path: Parts) -> list[type[BaseModel]]:
    """The models that may stand at a path; tagged ones only if the tag in `raw` agrees."""
    models = [model]
    for part in path:
        raw = raw[part] if _has(raw, part) else None
        fields = [each.model_fields for each in models]
        inner = [f[part].annotation for f in fields if isinstance(part, str) and part in f]
        if inner:
            models = [each for annotation in inner for each in _models_in(annotation)]
        if isinstance(raw, Mapping):
            models = [each for each in models if _agrees(each, raw)]
    return models


def _agrees(model: type[BaseModel], raw: Mapping[str, Any]) -> bool:
    tags = {n: get_args(i.annotation) for n, i in model.model_fields.items() if _is_tag(i)}
    return all(raw.get(name, values[0]) in values for name, values in tags.items())


def _is_tag(info: Any) -> bool:
    return get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    if get_origin(annotation) is not typing.Literal:
        for argument in get_args(annotation):
            yield from _models_in(argument)
