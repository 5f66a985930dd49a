"""What looks like a credential, by name or in an address; a leaf that every package may import.

Scripts of jobs leave such variables out, records and MLflow get neither their values nor those of
such keys in a recipe. One answer for both, or one of them would let out what the other keeps.
"""

from __future__ import annotations

import re

HIDDEN = "[hidden]"
# By part of a word; as whole words anywhere; at the end only, because `key_momentum`, `PWD` and
# `pass_env` are none.
_SECRET = re.compile(
    r"token|secret|passw|passphrase|credential|cookie|bearer|authorization"
    r"|(api|access|private|account|ssh|auth)_?key"
    r"|(^|[_\-.])(auth|dsn|jwt|pat)([_\-.]|$)"
    r"|[a-z0-9][_-]key[_-]|(^|[_\-.])(key|pass)$|[a-z][_\-.]pwd$"
)
_HARMLESS = re.compile(r"(^|[_\-.])stage_?key$|^orchestrate\.")  # our own names of stages
_USER_AND_PASSWORD = re.compile(r"(?P<before>[A-Za-z][A-Za-z0-9+.\-]*://)[^/\s:@]*:[^/\s@]*(?=@)")
_PARAMETER = re.compile(r"(?P<before>[?&;](?P<name>[\w.\-]+)=)[^&;#\s'\",}\])]+")


def looks_secret(name: str) -> bool:
    """Whether a variable or a key of that name usually holds what nobody else should read."""
    lowered = name.lower()
    return bool(_SECRET.search(lowered)) and not _HARMLESS.search(lowered)


def hide_in_addresses(text: str) -> str:
    """Hide user and password of URLs, and parameters such as `?password=...`."""
    return _PARAMETER.sub(_hide, _USER_AND_PASSWORD.sub(rf"\g<before>{HIDDEN}", text))


def _hide(parameter: re.Match[str]) -> str:
    return parameter["before"] + HIDDEN if looks_secret(parameter["name"]) else parameter[0]
