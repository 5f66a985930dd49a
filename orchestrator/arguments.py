"""The arguments that commands share, and what becomes of an error in a command."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.store import Store, default_store

DEBUG = "ORCHESTRATE_DEBUG"

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="OVERRIDES", help="Hydra's grammar: key=value, +key=value, ~key, group=name."
    ),
]
Run = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="Id of a run, or part of it; without, the latest."),
]
Target = Annotated[
    str, typer.Argument(metavar="RUN[:STAGE]", help="Both may be shortened; `latest` is a run.")
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", metavar="PATH", help="Where runs are kept; else $ORCHESTRATE_STORE, else ./runs."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Stay until the run is done; exit 1 if it failed.")
]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Listed(StrEnum):
    """What `list` lists."""

    RUNS = "runs"
    RECIPES = "recipes"
    STAGES = "stages"
    METHODS = "methods"
    BACKBONES = "backbones"
    DATASETS = "datasets"


def open_store(given: Path | None) -> Store:
    """The store that was named on the command line, or the default one."""
    root = given.expanduser().absolute() if given else default_store()
    # Jobs, and commands that are copied, shall see no `..`; links stay where there is none, because
    # what they lead to may have another path on the nodes.
    return Store(root.resolve() if ".." in root.parts else root)


def confirm(told: str, question: str, options: str, *, yes: bool, ask: bool = True) -> None:
    """Go on only with a person's consent; whoever says no gets exit code 1.

    Args:
        told: what is about to happen.
        question: what to ask.
        options: what to say on the command line instead of an answer.
        yes: consent was given there.
        ask: whether somebody may be asked.

    Raises:
        Refused: there is no terminal to ask on; names the options.
    """
    from orchestrator.errors import Refused

    if yes:
        return
    if not (ask and on_terminal()):
        raise Refused(f"{told}\n  nothing was done: {options}")
    typer.confirm(f"{told}\n{question}", abort=True, err=True)


def on_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def command(
    app: typer.Typer, *examples: str, name: str | None = None
) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a command. What it returns is the exit code; an error becomes a message and a code.

    Args:
        app: where to register it.
        examples: command lines, without the program's name, that end its help.
        name: its name, where that is not the function's.
    """
    lines = "".join(f"\n  orchestrate {line}" for line in examples)

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                code = function(*args, **kwargs)
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
            except Exception as error:
                raise typer.Exit(report(error)) from error
            if code:
                raise typer.Exit(code)

        app.command(name=name, epilog=f"\b\nExamples:{lines}")(guarded)
        return guarded

    return register


def report(error: Exception) -> int:
    """Tell an error on stderr and return its exit code; tracebacks are for those who ask."""
    from orchestrator.problems import describe

    if os.environ.get(DEBUG, "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    code, text = describe(error)
    print(text, file=sys.stderr)
    return code
