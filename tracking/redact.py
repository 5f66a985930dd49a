"""Keeps secrets out of records and of MLflow, by key, in URLs and by the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cluster.credentials import HIDDEN, hide_in_addresses, looks_secret

_PAIR = re.compile(
    r"(?P<key>[A-Za-z0-9_.\-]+)(?P<sign>\s*[:=]\s*)(?P<value>'[^']*'|\"[^\"]*\"|[^\s,{}\[\]]+)"
)
_NUMBER = re.compile(r"[-+0-9.e]+|true|false|null")
_MIN_SECRET = 8  # shorter values of the environment would hide ordinary words


def scrub(text: str) -> str:
    """Hide credentials in URLs and every value of a secret-looking environment variable."""
    text = hide_in_addresses(text)
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET and looks_secret(name):
            text = text.replace(value, HIDDEN)
    return text


def redacted(value: Any, key: str = "") -> Any:
    """A copy of plain data with secrets hidden; numbers and switches under such keys stay readable.

    `num_tokens: 196` is a fact about a network and no secret, so only text is hidden by its key,
    except below a password, where everything is.
    """
    if isinstance(value, Mapping):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, key) for item in value]
    if isinstance(value, str):
        return HIDDEN if value and looks_secret(key) else scrub(value)
    if "passw" in key.lower() and value is not None:
        return HIDDEN
    return value


def redacted_words(words: Iterable[str]) -> list[str]:
    """A command line with secrets hidden, also inside of values such as `{token: abc}`."""
    return [scrub(_PAIR.sub(_hide, word)) for word in words]


def _hide(pair: re.Match[str]) -> str:
    secret = looks_secret(pair["key"].rpartition(".")[2]) and not _NUMBER.fullmatch(pair["value"])
    return f"{pair['key']}{pair['sign']}{HIDDEN}" if secret else pair[0]


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, text) of every leaf; lists of plain values stay together as JSON."""
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from flatten({str(n): item for n, item in enumerate(value)}, f"{path}.")
        else:
            yield path, value if isinstance(value, str) else json.dumps(value, default=str)
