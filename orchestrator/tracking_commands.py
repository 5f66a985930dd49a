"""The commands about MLflow and lineage; `cli` registers them."""

from __future__ import annotations

import functools
import sys
from typing import Annotated

import typer

from orchestrator.arguments import Json, Run, StoreOption, open_store


def ui(
    run: Run = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Else 5000, or the next free one.")
    ] = None,
    store: StoreOption = None,
) -> int:
    """Show the MLflow UI on this machine until Ctrl-C.

    With an MLflow server (tracking.uri) it only says where that is.
    """
    from orchestrator.interface import bring_in, tracking_uri
    from orchestrator.naming import find_run
    from tracking.server import serve

    chosen = open_store(store)
    run_id = find_run(chosen, run) if run or chosen.run_ids() else None
    uri = tracking_uri(chosen, run_id)
    bring_in(chosen, uri)
    return serve(uri, port=port, say=functools.partial(print, flush=True))


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
