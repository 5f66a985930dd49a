"""Turns what Hydra refuses to compose into a fault of the recipe, with the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.errors import RecipeError, nearest

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

_COMMAND_LINE = "command line"


def explain(
    error: Exception,
    loader: ConfigLoader,
    overrides: Sequence[Override],
    label: str,
    base: Callable[[], DictConfig],
) -> RecipeError:
    """The fault behind an exception of Hydra or OmegaConf.

    `label` names the recipe file, `overrides` are those of the command line, `base` composes the
    recipe without them.
    """
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException):
        return _missing_config(error, loader, overrides, label)
    message = _innermost(error)
    found = re.search(r"'([^']*)'", str(error))
    line = next((o for o in overrides if found and o.get_key_element().endswith(found[1])), None)
    if line is None:
        line = next((o for o in overrides if o.input_line and o.input_line in str(error)), None)
    if line is None:
        return RecipeError(path="defaults", file=label, value=message, expected=_DEFAULTS)
    return _override(str(error), message, line, base)


_DEFAULTS = "a defaults list such as [cluster: local, data: [ucf101, hmdb51], _self_]"


def _innermost(error: BaseException) -> str:
    """First line of the most specific message of a chain."""
    text = str(error)
    while error.__cause__ is not None and (not text or text.startswith("Error merging")):
        error = error.__cause__
        text = str(error)
    return (
        text.splitlines()[0].replace("__recipe__", "the recipe") if text else type(error).__name__
    )


def _missing_config(
    error: Any, loader: ConfigLoader, overrides: Sequence[Override], label: str
) -> RecipeError:
    from hydra.core.object_type import ObjectType

    from orchestrator.hydra_source import PRIMARY, find_source

    group, _, name = str(error.missing_cfg_file).rpartition("/")
    kind = ObjectType.CONFIG if group else None
    options = [o for o in loader.get_group_options(group, kind) if o] if group else []
    expected = f"a file of group `{group}`" if group else "a config beside the recipe or a group"
    hint = nearest(name, sorted(options)) if options else _near_group(loader, group)
    for override in overrides:
        if override.key_or_group == group:
            file, line = _COMMAND_LINE, None
            break
    else:
        parent = re.match(r"In '([^']*)'", str(error))
        source = find_source(loader, parent[1] if parent else PRIMARY)
        file = source.label if source else label
        line = _line_of(name, source.text) if source else None
    value = f"{group}: {name}" if group else name
    return RecipeError(
        path="defaults", file=file, line=line, value=value, expected=expected, hint=hint
    )


def _near_group(loader: ConfigLoader, group: str) -> str:
    groups = [name for name in loader.list_groups("") if name not in ("hydra", "__pycache__")]
    return nearest(group, sorted(groups))


def _line_of(name: str, text: str) -> int | None:
    """Line of the defaults list that names a config."""
    word = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        inside = line.startswith("defaults") or (inside and line[:1] in " -#")
        if inside and word.search(line.partition("#")[0]):
            return number
    return None


def _override(
    error: str, message: str, override: Override, base: Callable[[], DictConfig]
) -> RecipeError:
    """A wrong override; its text stands in `value`, as it was typed."""
    key = override.key_or_group
    expected, hint = f"an override Hydra can apply: {message}", ""
    if "Could not append" in error:
        expected = f"a new key after `+`: `{key}` exists"
        hint = f"write {str(override.input_line).lstrip('+')}"
    elif "Could not delete" in error:
        expected, hint = "the name and value of something that is there", ""
    elif "No match in the defaults list" in error:
        expected = f"a group of the recipe's defaults list: `{key}` is not in it"
        hint = f"to add it write +{override.input_line}"
    elif "Could not override" in error:
        expected, hint = f"a key of the recipe: `{key}` is not in it", _near_key(key, base())
        hint = f"{hint}to add it write +{override.input_line}"
    return RecipeError(
        path=key, file=_COMMAND_LINE, value=override.input_line, expected=expected, hint=hint
    )


def _near_key(key: str, base: DictConfig) -> str:
    """The nearest key to a dotted one, as composed without any override."""
    from omegaconf import DictConfig

    node: Any = base
    parts = key.split(".")
    for index, part in enumerate(parts):
        names = [str(name) for name in node] if isinstance(node, DictConfig) else []
        if part not in names:
            hint = nearest(part, names)
            above = ".".join(parts[:index])
            return f"{f'in {above}: ' if above and hint else ''}{hint}{'; ' if hint else ''}"
        node = node._get_node(part)
    return ""
