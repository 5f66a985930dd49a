"""The JSON schema of a recipe file as people write it: for completion and checks in an editor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.schema import NAME, RecipeHeader, stage_class
from orchestrator.shards import RECIPE_KINDS

_REFERENCE = {"type": "string", "pattern": r"\$\{"}
_KEPT = frozenset({"kind"})
_TEXT_KEYS = frozenset({"type", "description", "default"})
_DEFAULTS = {
    "description": "groups this recipe is composed of; later ones override earlier ones",
    "type": "array",
    "items": {
        "anyOf": [
            {"type": "string"},
            {
                "type": "object",
                "additionalProperties": {
                    "anyOf": [
                        {"type": ["string", "null"]},
                        {"type": "array", "items": {"type": "string"}},
                    ]
                },
            },
        ]
    },
}
_MATRIX = {
    "description": "one cell for each combination of these values, named stage/value-value",
    "anyOf": [
        {
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": ["string", "number", "boolean"]},
                    },
                    _REFERENCE,
                ]
            },
        },
        _REFERENCE,
    ],
}


def json_schema() -> dict[str, Any]:
    """The schema, draft 2020-12.

    A file may leave out what its groups give, so that nothing is required, and any value may be a
    reference such as `${data.ucf101}`. What a whole recipe must have, `validate` says.
    """
    header = RecipeHeader.model_json_schema()
    definitions: dict[str, Any] = header.pop("$defs", {})
    branches = []
    for kind in RECIPE_KINDS:
        model = stage_class(kind)
        stage = model.model_json_schema()
        definitions |= stage.pop("$defs", {})
        stage["properties"]["kind"] = {"const": kind}
        definitions[model.__name__] = stage
        branches.append(
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{model.__name__}"},
            }
        )
    written = {name: _as_written(schema) for name, schema in definitions.items()}
    for kind in RECIPE_KINDS:
        written[stage_class(kind).__name__]["properties"]["matrix"] = _MATRIX
    written["Stage"] = {
        "type": "object",
        "properties": {"kind": {"enum": list(RECIPE_KINDS), "description": "kind of stage"}},
        "allOf": branches,
    }
    root = _as_written(header)
    data = root["properties"]["data"]
    root["properties"] = {
        "defaults": _DEFAULTS,
        **root["properties"],
        "data": {"anyOf": [data, _one_dataset(header)], "description": "data sets by name, or one"},
        "stages": {
            "type": "object",
            "description": "stages by name; their inputs make the graph",
            "propertyNames": {"pattern": NAME},
            "additionalProperties": {"$ref": "#/$defs/Stage"},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "orchestrate recipe",
        **root,
        "$defs": written,
    }


def _one_dataset(header: Mapping[str, Any]) -> Any:
    return _as_written(header["properties"]["data"]["additionalProperties"])


def _as_written(schema: Any) -> Any:
    """A schema of values turned into one of what a file may say in their place."""
    if isinstance(schema, list):
        return [_as_written(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {
        key: _as_written(value)
        for key, value in schema.items()
        if key not in ("required", "title", "discriminator", "properties", "default")
    }
    if "default" in schema:
        kept["default"] = schema["default"]
    if "oneOf" in kept:
        # Without the tag, which a group may give, several alternatives fit.
        kept["anyOf"] = kept.pop("oneOf")
    if "properties" in schema:
        kept["properties"] = {
            name: _as_written(value) if name in _KEPT else _or_reference(_as_written(value))
            for name, value in schema["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), Mapping):
            kept[key] = _or_reference(kept[key])
    return kept


def _or_reference(schema: Any) -> Any:
    if schema in ({}, True) or (schema.get("type") == "string" and set(schema) <= _TEXT_KEYS):
        return schema
    outer = {key: schema[key] for key in ("description", "default") if key in schema}
    inner = {key: value for key, value in schema.items() if key not in outer}
    return {**outer, "anyOf": [inner, _REFERENCE]}
