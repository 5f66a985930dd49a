"""The commands about a run that is there: look at it, explain it, stop it, let it go on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.arguments import (
    Json,
    Run,
    StoreOption,
    Target,
    Wait,
    Yes,
    confirm,
    open_store,
)

if TYPE_CHECKING:
    from cluster.contract import Executor
    from orchestrator.cancel import Cancellation
    from orchestrator.resume import Changes
    from orchestrator.retry import Clearing
    from orchestrator.store import Store

Nodes = Annotated[
    int | None, typer.Option("--nodes", min=1, help="Other number of nodes; the batch must fit.")
]
Hours = Annotated[float | None, typer.Option("--hours", min=0.02, help="Other time limit.")]
Partition = Annotated[str | None, typer.Option("--partition", help="Other partition.")]
Memory = Annotated[float | None, typer.Option("--mem-gb", min=0.1, help="Other memory a node.")]


def status(
    run: Run = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay until the run is done; exit 1 if it failed.")
    ] = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Show a run: status, progress and trouble of each stage."""
    from orchestrator import answers
    from orchestrator.naming import find_run
    from orchestrator.status import read_status

    chosen = open_store(store)
    run_id = find_run(chosen, run)
    executor = _executor(chosen, run_id)
    if not watch:
        answers.show_status(read_status(run_id, chosen, executor), as_json=as_json)
        return 0
    from orchestrator.waiting import succeeded
    from orchestrator.waiting import watch as watch_run

    end = watch_run(run_id, chosen, executor, sys.stderr if as_json else sys.stdout)
    answers.show_status(end, as_json=as_json)
    return 0 if succeeded(end) else 1


def why(
    target: Annotated[
        str | None,
        typer.Argument(metavar="RUN[:STAGE]", help="Without a stage, all; without a run, latest."),
    ] = None,
    as_json: Json = False,
    store: StoreOption = None,
) -> None:
    """Explain why stages wait, failed, ran again or were reused.

    Cause, evidence and what to do next; for one stage also its attempts.
    """
    from orchestrator import answers
    from orchestrator.naming import find_target
    from orchestrator.status import read_status
    from orchestrator.why import answers as find_answers

    chosen = open_store(store)
    run_id, stage = find_target(chosen, target)
    current = read_status(run_id, chosen, _executor(chosen, run_id))
    found = find_answers(current, chosen, stage)
    answers.show_why(current, found, alone=stage is not None, as_json=as_json)


def logs(
    target: Target,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay and print what comes, until it is done.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Only this rank; without, all, rank 0 first.")
    ] = None,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, help="Only the last N lines of each file.")
    ] = None,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", min=1, help="Only the N-th attempt, as `why` numbers them."),
    ] = None,
    grep: Annotated[
        str | None, typer.Option("--grep", metavar="REGEX", help="Only lines that match.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Print what the ranks of a stage wrote, in all attempts and jobs."""
    from orchestrator import answers
    from orchestrator import logs as files
    from orchestrator.errors import Refused
    from orchestrator.naming import find_stage, find_target
    from orchestrator.record import folder_jobs, stage_folder

    chosen = open_store(store)
    run_id, named = find_target(chosen, target)
    stage = named or find_stage(chosen, run_id, "")
    folder = stage_folder(run_id, stage, chosen)
    wanted = files.Wanted(
        attempt=files.attempt_named(folder.attempts, attempt), pattern=files.pattern(grep)
    )

    def find() -> list[files.LogFile]:
        return files.find_logs(folder.logs, rank=rank, jobs=folder_jobs(folder))

    if follow:
        from orchestrator.waiting import stage_is_done

        done = stage_is_done(run_id, stage, chosen, _executor(chosen, run_id))
        coming = files.follow(find, done, wanted, last=lines)
        return answers.show_lines(coming, prefix=rank is None)
    found = find()
    if not found and rank is not None and (others := files.find_logs(folder.logs)):
        ranks = sorted({log.rank for log in others})
        raise Refused(f"--rank {rank}: {run_id}:{stage} has logs of {_told(ranks)}")
    if not found:
        print(f"{run_id}:{stage} has written nothing yet in {folder.logs}", file=sys.stderr)
    several = len({log.rank for log in found}) > 1
    return answers.show_lines(wanted.last(found, lines), prefix=several)


def _told(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def resume(
    run: Run = None,
    stage: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Only this stage and what it needs.")
    ] = None,
    nodes: Nodes = None,
    hours: Hours = None,
    partition: Partition = None,
    mem_gb: Memory = None,
    wait: Wait = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Continue what is broken in a run, from its checkpoints.

    From the newest that is whole. It runs the code that the run was submitted with; after a fix of
    the code, submit again.
    Nodes, time, partition and memory may change: of STAGE, or of the one stage that broke.
    """
    from orchestrator import resume as resumption
    from orchestrator.naming import find_run, find_stage

    chosen = open_store(store)
    run_id = find_run(chosen, run)
    only = find_stage(chosen, run_id, stage) if stage else None
    changes = resumption.Changes(nodes=nodes, hours=hours, partition=partition, mem_gb=mem_gb)
    return _go_on(run_id, chosen, only, changes, wait=wait, as_json=as_json)


def retry(
    target: Annotated[
        str, typer.Argument(metavar="RUN:STAGE", help="Both may be shortened; `latest` is a run.")
    ],
    clear: Annotated[
        bool, typer.Option("--clear", help="From the beginning: move aside what it has so far.")
    ] = False,
    yes: Yes = False,
    wait: Wait = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Try one stage again; with --clear from its beginning.

    Checkpoints, outputs and result are moved to a folder beside them, never deleted.
    """
    from orchestrator import retry as clearing
    from orchestrator.errors import Refused
    from orchestrator.explain import Commands
    from orchestrator.naming import find_stage, find_target
    from orchestrator.record import stage_folder

    chosen = open_store(store)
    run_id, named = find_target(chosen, target)
    stage = named or find_stage(chosen, run_id, "")
    if clear:
        found = clearing.look(run_id, stage, chosen)
        if not found.empty:
            _confirm_clearing(found, yes=yes, ask=not as_json)
            clearing.clear(found)
            print(f"moved to {found.aside}; to delete it: rm -r {found.aside}", file=sys.stderr)
    elif stage_folder(run_id, stage, chosen).result() is not None:
        again = Commands.of(run_id, chosen).retry(stage, "--clear")
        raise Refused(f"{stage} is finished; `{again}` starts it from the beginning")
    return _go_on(run_id, chosen, stage, None, wait=wait, as_json=as_json)


def cancel(
    target: Target,
    yes: Yes = False,
    keep_shared: Annotated[
        bool, typer.Option("--keep-shared", help="Leave stages alone that other runs use.")
    ] = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> None:
    """Stop a run, or a stage and what depends on it.

    `resume` continues it later. Asks before it stops a stage that another run uses too.
    """
    from orchestrator import answers
    from orchestrator import cancel as cancellation
    from orchestrator.naming import find_target
    from orchestrator.submit import executor_for

    chosen = open_store(store)
    run_id, stage = find_target(chosen, target)
    executor = executor_for(chosen.read_run(run_id))
    found = cancellation.look(run_id, chosen, executor, stage)
    shared = found.shared
    if shared and not keep_shared:
        _confirm_shared(found, shared, yes=yes, ask=not as_json)
    names = cancellation.cancel(found, chosen, executor, keep=shared if keep_shared else ())
    answers.show_cancelled(run_id, names, shared if keep_shared else {}, as_json=as_json)


def _go_on(
    run_id: str,
    store: Store,
    stage: str | None,
    changes: Changes | None,
    *,
    wait: bool,
    as_json: bool,
) -> int:
    from orchestrator import answers
    from orchestrator.resume import resume as go_on
    from orchestrator.submit import executor_for

    executor = executor_for(store.read_run(run_id))
    again = go_on(run_id, store, executor, stage, changes)
    answers.show_submitted(again.run, store, as_json=as_json)
    answers.show_left(again, store)
    return answers.finish(again.run, store, executor, wait=wait, as_json=as_json)


def _confirm_shared(
    found: Cancellation, shared: Mapping[str, tuple[str, ...]], *, yes: bool, ask: bool
) -> None:
    lines = [f"  {name}: {', '.join(runs)}" for name, runs in shared.items()]
    told = "\n".join([f"other runs use stages of {found.run_id} that would stop:", *lines])
    options = "--yes stops them too, --keep-shared leaves them alone"
    confirm(told, "stop them for all?", options, yes=yes, ask=ask)


def _confirm_clearing(found: Clearing, *, yes: bool, ask: bool) -> None:
    parts = ["its result"] if found.finished else []
    if found.steps:
        parts.append(f"checkpoints of step {', '.join(map(str, found.steps))}")
    lines = [f"{found.name} has {' and '.join(parts) or 'files'} ({found.num_bytes / 1e6:,.1f} MB)"]
    if found.shared:
        lines.append(f"  also used by {', '.join(found.shared)}")
    if found.stale:
        lines.append(f"  made from its result, and stale then: {', '.join(found.stale)}")
    told = "\n".join([*lines, f"  all of it goes to {found.aside}"])
    confirm(told, "start from the beginning?", "--yes does it unasked", yes=yes, ask=ask)


def _executor(store: Store, run_id: str) -> Executor | None:
    """Whom to ask for a run's jobs; None where its executor does not work on this machine."""
    from cluster.contract import SchedulerError
    from cluster.executors import make

    try:
        return make(str(store.read_run(run_id)["executor"]))
    except (SchedulerError, ImportError, ValueError):
        return None
