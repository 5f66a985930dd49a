"""The command line: one short function a command; heavy things are imported where they are used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import doctor_commands, run_commands, tracking_commands
from orchestrator.arguments import (
    DEBUG,
    Json,
    Listed,
    Overrides,
    Recipe,
    StoreOption,
    Wait,
    command,
    open_store,
)

_EPILOG = """\b
Examples:
  orchestrate plan recipes/quickstart.yaml
  orchestrate submit recipes/quickstart.yaml seed=1
  orchestrate status
  orchestrate why latest:pretrain
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
    # A stream that was closed (`>&-`) is None here; what was said to it is for nobody.
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
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
    from orchestrator.errors import Refused
    from orchestrator.naming import find_recipe
    from orchestrator.submit import prepare

    if sbatch and as_json:
        raise Refused("--sbatch prints scripts, --json an object: say one of them")
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
    prepared = submission.prepare(find_recipe(recipe), words, chosen, patient=True)
    executor = prepared.executor
    run = submission.submit(prepared, chosen, executor, ["submit", recipe, *words])
    answers.show_submitted(run, chosen, prepared.plan, as_json=as_json)
    return answers.finish(run, chosen, executor, wait=wait, as_json=as_json)


command(app, "status", "status quickstart-1a2b --watch", "status latest --json")(
    run_commands.status
)
command(app, "why", "why quickstart-1a2b:pretrain", "why latest:probe --json")(run_commands.why)
command(
    app,
    "logs quickstart-1a2b:pretrain",
    "logs latest:pretrain -f --rank 0",
    "logs latest:pretrain --attempt 2 --grep 'nan|loss'",
)(run_commands.logs)
command(
    app,
    "resume quickstart-1a2b",
    "resume latest --stage finetune/ucf101-1",
    "resume latest --stage pretrain --nodes 1 --hours 48",
)(run_commands.resume)
command(app, "retry latest:probe", "retry quickstart-1a2b:pretrain --clear")(run_commands.retry)
command(app, "cancel quickstart-1a2b", "cancel latest:finetune", "cancel latest --keep-shared")(
    run_commands.cancel
)


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


if __name__ == "__main__":
    main()
