"""The commands that look at a site and rehearse its faults; `cli` registers them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import IO, Annotated

import typer

from orchestrator.arguments import Json, Overrides, StoreOption, Target, confirm, open_store
from orchestrator.store import SCHEMA_VERSION


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
    from cluster.contract import SchedulerError
    from orchestrator import answers
    from orchestrator.checkup import Check, check_up
    from orchestrator.errors import Refused
    from orchestrator.naming import UnknownName, find_recipe

    if recipe and not job:
        raise UnknownName(f"{recipe}: a recipe is only looked at with --job")
    if not job and (nodes is not None or gpus is not None):
        raise Refused("--nodes and --gpus are about the job: they need --job")
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
        try:
            with one_line(sys.stderr) as say:
                checks += examine(wish, chosen, say)
        except SchedulerError as error:  # what was found out here is told all the same
            checks.append(Check(name="job", state="failed", found=str(error)))
    answers.show_checks(checks, as_json=as_json)
    return 3 if any(check.state == "failed" for check in checks) else 0


def drill(
    target: Target,
    preempt: Annotated[
        bool, typer.Option("--preempt", help="Requeue its job, as a preemption does.")
    ] = False,
    timeout: Annotated[
        bool, typer.Option("--timeout", help="Warn it as ahead of its time limit.")
    ] = False,
    kill_node: Annotated[
        bool, typer.Option("--kill-node", help="Kill its ranks on one of its nodes.")
    ] = False,
    hang: Annotated[
        bool, typer.Option("--hang", help="Stop one rank, so that the others wait for it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before.")] = False,
    patience: Annotated[
        float, typer.Option(metavar="MINUTES", min=0.1, help="How long to wait for its return.")
    ] = 60.0,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Rehearse a fault on a running stage, and follow until it goes on.

    It happens to the real job, as any user may do it, and costs what the fault costs. The report
    says what was lost; the exit code is 1 if the stage did not come back. Ctrl-C ends the
    following, not the stage.
    """
    from orchestrator import answers
    from orchestrator.drill import Fault, describe, find_target, inflict
    from orchestrator.drill_watch import follow
    from orchestrator.naming import UnknownName, find_stage
    from orchestrator.naming import find_target as find_names
    from orchestrator.submit import executor_for

    chosen = open_store(store)
    flags = {Fault.PREEMPT: preempt, Fault.TIMEOUT: timeout, Fault.KILL_NODE: kill_node}
    wanted = [fault for fault, asked in {**flags, Fault.HANG: hang}.items() if asked]
    if len(wanted) != 1:
        names = ", ".join(f"--{fault}" for fault in Fault)
        raise UnknownName(f"which fault? Name one of {names}")
    run_id, named = find_names(chosen, target)
    stage = named or find_stage(chosen, run_id, "")
    executor = executor_for(chosen.read_run(run_id))
    hit = find_target(run_id, stage, chosen, executor)
    saved = f"its checkpoint is of step {hit.saved}" if hit.saved else "it has no checkpoint yet"
    about = f"{run_id}:{stage} runs on {', '.join(hit.hosts)} at step {hit.step}; {saved}."
    told = f"{about} This will {describe(wanted[0], hit)}."
    confirm(told, "Do it?", "say --yes to do it", yes=yes, ask=not as_json)
    did = inflict(wanted[0], hit)
    with one_line(sys.stderr) as say:
        report = follow(wanted[0], did, hit, chosen, executor, say, patience_seconds=60 * patience)
    if as_json:
        answers.print_json({"schema_version": SCHEMA_VERSION, **report.record()})
    else:
        print("\n".join(report.lines()))
    return 0 if report.came_back else 1


@contextlib.contextmanager
def one_line(stream: IO[str]) -> Iterator[Callable[[str], None]]:
    """A line on a terminal that is written over; elsewhere nothing is said of progress."""
    import shutil

    if not stream.isatty():
        yield lambda text: None
        return

    def say(text: str) -> None:
        # A line that a terminal breaks could not be written over.
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{text[:width]}", end="", file=stream, flush=True)

    try:
        yield say
    finally:
        print("\r\x1b[K", end="", file=stream, flush=True)
