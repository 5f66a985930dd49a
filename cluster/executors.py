"""Table of executors: name to where it is; imported only when asked for."""

from __future__ import annotations

import importlib
from typing import cast

from cluster.contract import Executor

EXECUTORS: dict[str, str] = {
    "local": "cluster.local:LocalExecutor",
    "slurm": "cluster.slurm:SlurmExecutor",
}


def make(name: str) -> Executor:
    """The executor of that name.

    Raises:
        ValueError: no such executor; the message lists them.
    """
    try:
        module, _, attribute = EXECUTORS[name].partition(":")
    except KeyError:
        known = ", ".join(sorted(EXECUTORS))
        raise ValueError(f"unknown executor {name!r}; known: {known}") from None
    return cast(Executor, getattr(importlib.import_module(module), attribute)())
