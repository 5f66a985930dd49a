"""The commands that look at a site and rehearse its faults; `cli` registers them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import IO, Annotated

import typer

from orchestrator.arguments import Json, Overrides, StoreOption, open_store


def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="With --job: whose cluster settings to use."),
    ] = None,
    overrides: Overrides = None,
    job: Annotated[
        bool, typer.Option("--job", help="Look at compute nodes too, with a job of a minute.")
    ] = False,
    partition: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of that job; else the site's default.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Of that job; else 2.")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="A node; else the recipe's, or 1 where there are any.")
    ] = None,
    patience: Annotated[
        float, typer.Option(metavar="MINUTES", min=0.1, help="How long that job may wait to start.")
    ] = 15.0,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Look at what this machine has, and with --job at compute nodes.

    Packages, decoders, store, scheduler. The job looks at python, GPUs, the network between ranks,
    the shared file system, limits and more, and what it finds is kept for `submit` to use. The exit
    code is 3 if something cannot work.
    """
    from orchestrator import answers
    from orchestrator.checkup import check_up
    from orchestrator.naming import UnknownName, find_recipe

    if recipe and not job:
        raise UnknownName(f"{recipe}: a recipe is only looked at with --job")
    chosen = open_store(store)
    checks = check_up(chosen, partition)
    if job:
        from orchestrator.job_checkup import Wish, examine

        words = [*([recipe] if recipe else []), *(overrides or [])]
        # Nobody wants to name a recipe only to say `cluster.resources.account=mine`.
        named = words.pop(0) if words and "=" not in words[0] else None
        wish = Wish(
            recipe=find_recipe(named) if named else None,
            overrides=words,
            partition=partition,
            nodes=nodes,
            gpus=gpus,
            patience_minutes=patience,
        )
        with one_line(sys.stderr) as say:
            checks += examine(wish, chosen, say)
    answers.show_checks(checks, as_json=as_json)
    return 3 if any(check.state == "failed" for check in checks) else 0


@contextlib.contextmanager
def one_line(stream: IO[str]) -> Iterator[Callable[[str], None]]:
    """A line on a terminal that is written over; elsewhere nothing is said of progress."""
    if not stream.isatty():
        yield lambda text: None
        return
    try:
        yield lambda text: print(f"\r\x1b[K{text[:100]}", end="", file=stream, flush=True)
    finally:
        print("\r\x1b[K", end="", file=stream, flush=True)
