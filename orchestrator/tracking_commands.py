"""The commands about MLflow and lineage; `cli` registers them."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.arguments import Json, Run, StoreOption, open_store

if TYPE_CHECKING:
    from tracking.ancestry import Direction


def ui(
    run: Run = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Else 5000, or any free one.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Another address than this machine's own needs --auth and --cert.")
    ] = "127.0.0.1",
    auth: Annotated[bool, typer.Option("--auth", help="Ask for user and password.")] = False,
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate (PEM), for https.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.")] = None,
    allowed_hosts: Annotated[
        str, typer.Option(metavar="NAME,...", help="Further names by which it is reached.")
    ] = "",
    store: StoreOption = None,
) -> int:
    """Show the MLflow UI until Ctrl-C, to this machine alone.

    With an MLflow server (tracking.uri) it only says where that is.
    """
    from orchestrator.errors import Refused
    from orchestrator.interface import bring_in, tracking_uri
    from orchestrator.naming import find_run
    from tracking.access import Access, check
    from tracking.backend import is_server
    from tracking.redact import scrub
    from tracking.server import serve

    names = tuple(name.strip() for name in allowed_hosts.split(",") if name.strip())
    access = Access(host=host, auth=auth, cert=cert, key=key, hosts=names)
    check(access)
    chosen = open_store(store)
    run_id = find_run(chosen, run) if run or chosen.run_ids() else None
    uri = tracking_uri(chosen, run_id)
    if is_server(uri) and (port or access != Access()):
        raise Refused(
            f"{scrub(uri)} keeps these records: --port, --host, --auth, --cert, --key and"
            " --allowed-hosts are for a server that `ui` starts itself"
        )
    bring_in(chosen, uri)
    return serve(uri, chosen.root, access, port, say=functools.partial(print, flush=True))


def sync(
    run: Run = None,
    all_runs: Annotated[bool, typer.Option("--all", help="Every run of the store.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Send all there is, into a database that was lost.")
    ] = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Deliver to MLflow what no job could; close runs whose job is gone.

    Done again, it delivers only what is new. --rebuild sends everything once more, of all runs if
    none is named; what the database has already is found and not doubled. The exit code is 3 if
    anything is missing still.
    """
    from orchestrator import answers
    from orchestrator.naming import UnknownName, find_run
    from orchestrator.sync import deliver_runs

    chosen = open_store(store)
    if run and all_runs:
        raise UnknownName(f"--all means every run: leave it out, or {run!r}")
    first = find_run(chosen, run)
    everything = all_runs or (rebuild and not run)
    wanted = chosen.run_ids() if everything else [first]
    reports, troubles = [], dict[str, None]()
    for status, report in deliver_runs(chosen, wanted, anew=rebuild):
        reports.append(report)
        if status.scheduler_error:
            unclear = "whether jobs are gone is not known, no run was closed for that"
            troubles[f"warning: {status.scheduler_error}: {unclear}"] = None
        prefix = "" if report.away else f"{report.run_id}: "
        troubles.update({f"error: {prefix}{problem}": None for problem in report.problems})
    answers.show_synced(reports, as_json=as_json)
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    return 3 if troubles else 0


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="RUN, RUN:STAGE, a stage's key or folder, a file, a SHA-256, models:/NAME@ALIAS.",
        ),
    ],
    up: Annotated[bool, typer.Option("--up", help="Only what it came from.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what it went into.")] = False,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that stands alone.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write the graph as a picture.")
    ] = None,
    as_json: Json = False,
    store: StoreOption = None,
) -> None:
    """Show what a result came from and what it went into.

    Up: encoders, datasets with digests, code. Down: every number that rests on it, and the stages
    to run again if it was wrong. Read from the store alone.
    """
    from orchestrator import answers
    from orchestrator.lineage_find import find_items
    from orchestrator.lineage_graph import read_ancestry
    from tracking.ancestry import Ancestry

    chosen = open_store(store)
    ancestry = read_ancestry(chosen)
    asked = find_items(chosen, ancestry, what)
    if asked.digest:
        ancestry = Ancestry(ancestry.items.values(), asked.digest)
    directions: list[Direction] = ["up"] if up or not down else []
    directions += ["down"] if down or not up else []
    shown = ancestry.around(asked.ids, directions)
    answers.write_lineage(what, ancestry, asked.ids, shown, page, picture)
    answers.show_lineage(what, ancestry, asked.ids, shown, directions, as_json=as_json)
