"""The command line: one short function a command; heavy things are imported where they are used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import doctor_commands, tracking_commands
from orchestrator.arguments import (
    DEBUG,
    Json,
    Listed,
    Overrides,
    Recipe,
    Run,
    StoreOption,
    Target,
    Wait,
    command,
    open_store,
)

if TYPE_CHECKING:
    from cluster.contract import Executor
    from orchestrator.store import Store

_EPILOG = """\b
Examples:
  orchestrate plan recipes/quickstart.yaml
  orchestrate submit recipes/quickstart.yaml seed=1
  orchestrate status
  orchestrate logs latest:pretrain -f
\b
Exit codes: 0 ok, 1 failed, 2 invalid input, 3 a problem of the site (scheduler, disk, rights).
"""

app = typer.Typer(
    name="orchestrate",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Entry point of the program; `--debug` may stand anywhere."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        os.environ[DEBUG] = "1"
        arguments = [one for one in arguments if one != "--debug"]
    app(args=arguments, prog_name="orchestrate")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"orchestrate {version('orchestrate-video-ssl')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show tracebacks of errors (also {DEBUG}=1).")
    ] = False,
) -> None:
    """Self-supervised video learning pipelines on SLURM: a recipe becomes a chain of jobs."""
    if debug:
        os.environ[DEBUG] = "1"


@command(app, "validate recipes/dpc_k400.yaml", "validate my.yaml stages.pretrain.epochs=10")
def validate(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe; print all that is wrong with it."""
    from orchestrator.load import load_recipe
    from orchestrator.naming import find_recipe
    from orchestrator.plan import StageFacts, make_plan

    path = find_recipe(recipe)
    loaded = load_recipe(path, overrides or [])
    plan = make_plan(loaded, lambda kind, key: StageFacts(), has_gpus=True)
    print(f"{path}: valid, {len(plan.stages)} stages")


@command(app, "plan recipes/quickstart.yaml", "plan recipes/dpc_k400.yaml cluster=slurm --sbatch")
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    sbatch: Annotated[
        bool, typer.Option("--sbatch", help="Print the script of every job.")
    ] = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> None:
    """Show what `submit` would do; writes and submits nothing."""
    from orchestrator import answers
    from orchestrator.naming import find_recipe
    from orchestrator.submit import prepare

    chosen = open_store(store)
    prepared = prepare(find_recipe(recipe), overrides or [], chosen)
    if sbatch:
        answers.show_scripts(prepared, chosen)
    else:
        answers.show_plan(prepared, as_json=as_json)


@command(
    app,
    "submit recipes/quickstart.yaml",
    "submit recipes/dpc_k400.yaml stages.pretrain.optimizer.lr=3e-4 --wait",
)
def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    wait: Wait = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Submit a recipe, or what is missing of it.

    Done again, it reuses what is finished, keeps what runs and continues the rest. On SLURM it
    returns once the jobs are in; on the local executor it stays until they are done.
    """
    from orchestrator import answers
    from orchestrator import submit as submission
    from orchestrator.naming import find_recipe

    chosen, words = open_store(store), overrides or []
    prepared = submission.prepare(find_recipe(recipe), words, chosen)
    executor = prepared.executor
    run = submission.submit(prepared, chosen, executor, ["submit", recipe, *words])
    answers.show_submitted(run, chosen, prepared.plan, as_json=as_json)
    return answers.finish(run, chosen, executor, wait=wait, as_json=as_json)


@command(app, "status", "status quickstart-1a2b --watch", "status latest --json")
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


@command(app, "logs quickstart-1a2b:pretrain", "logs latest:pretrain -f --rank 0")
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
    store: StoreOption = None,
) -> None:
    """Print what the ranks of a stage wrote, in all attempts."""
    from orchestrator import answers
    from orchestrator import logs as files
    from orchestrator.naming import find_stage, find_target
    from orchestrator.record import folder_jobs, stage_folder

    chosen = open_store(store)
    run_id, named = find_target(chosen, target)
    stage = named or find_stage(chosen, run_id, "")
    folder = stage_folder(run_id, stage, chosen)

    def find() -> list[files.LogFile]:
        return files.find_logs(folder.logs, rank=rank, jobs=folder_jobs(folder))

    if follow:
        from orchestrator.waiting import stage_is_done

        done = stage_is_done(run_id, stage, chosen, _executor(chosen, run_id))
        coming = files.follow(find, done, last=lines)
        return answers.show_lines(coming, prefix=rank is None)
    found = find()
    if not found:
        print(f"{run_id}:{stage} has written nothing yet in {folder.logs}", file=sys.stderr)
    several = len({log.rank for log in found}) > 1
    return answers.show_lines(files.read_lines(found, last=lines), prefix=several)


@command(app, "resume quickstart-1a2b", "resume latest --stage finetune/ucf101-1")
def resume(
    run: Run = None,
    stage: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Only this stage and what it needs.")
    ] = None,
    wait: Wait = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> int:
    """Continue what is broken in a run, from its checkpoints.

    It runs the code that the run was submitted with; after a fix of the code, submit again.
    """
    from orchestrator import answers
    from orchestrator import submit as submission
    from orchestrator.naming import find_run, find_stage

    chosen = open_store(store)
    run_id = find_run(chosen, run)
    only = find_stage(chosen, run_id, stage) if stage else None
    executor = submission.executor_for(chosen.read_run(run_id))
    again = submission.resume(run_id, chosen, executor, only)
    answers.show_submitted(again, chosen, as_json=as_json)
    return answers.finish(again, chosen, executor, wait=wait, as_json=as_json)


@command(app, "cancel quickstart-1a2b", "cancel latest:finetune")
def cancel(target: Target, as_json: Json = False, store: StoreOption = None) -> None:
    """Stop a run, or a stage and what depends on it.

    `resume` continues it later.
    """
    from orchestrator import answers
    from orchestrator import submit as submission
    from orchestrator.naming import find_target

    chosen = open_store(store)
    run_id, stage = find_target(chosen, target)
    executor = submission.executor_for(chosen.read_run(run_id))
    names = submission.cancel(run_id, chosen, executor, stage)
    answers.show_cancelled(run_id, names, as_json=as_json)


@command(app, "list", "list recipes", name="list")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")] = Listed.RUNS,
    all_runs: Annotated[
        bool, typer.Option("--all", help="Every run, not only the last 20.")
    ] = False,
    as_json: Json = False,
    store: StoreOption = None,
) -> None:
    """List runs, or what a recipe can name."""
    from orchestrator import answers, listing

    if what is Listed.RUNS:
        chosen = open_store(store)
        runs = listing.runs(chosen, None if all_runs else 20)
        answers.show_runs(runs, chosen, as_json=as_json)
    else:
        answers.show_names(what.value, listing.named(what.value), as_json=as_json)


command(app, "ui", "ui quickstart-1a2b --port 5001")(tracking_commands.ui)
command(app, "sync", "sync quickstart-1a2b", "sync --all", "sync --rebuild")(tracking_commands.sync)
command(
    app,
    "lineage latest:report",
    "lineage quickstart-1a2b:data-ucf101 --down",
    "lineage encoder.safetensors --html lineage.html",
)(tracking_commands.lineage)


command(app, "doctor", "doctor --job --gpus 1", "doctor --job recipes/dpc_k400.yaml --json")(
    doctor_commands.doctor
)
command(app, "drill latest:pretrain --preempt", "drill quickstart-1a2b:pretrain --hang --yes")(
    doctor_commands.drill
)


@command(app, "schema > recipe.schema.json", "schema -o .vscode/recipe.schema.json")
def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it to a file.")
    ] = None,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    import json

    from orchestrator.editor_schema import json_schema

    text = json.dumps(json_schema(), indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")


def _executor(store: Store, run_id: str) -> Executor | None:
    """Whom to ask for a run's jobs; None where its executor does not work on this machine."""
    from cluster.contract import SchedulerError
    from cluster.executors import make

    try:
        return make(str(store.read_run(run_id)["executor"]))
    except (SchedulerError, ImportError, ValueError):
        return None


if __name__ == "__main__":
    main()
