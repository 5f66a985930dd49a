"""What commands print when they are done: tables for people, or one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from orchestrator.store import SCHEMA_VERSION, Store

if TYPE_CHECKING:
    from cluster.contract import Executor
    from cluster.transport import Transport
    from orchestrator.checkup import Check
    from orchestrator.logs import LogLine
    from orchestrator.plan import Plan
    from orchestrator.resume import Resumed
    from orchestrator.status import RunStatus
    from orchestrator.submit import Prepared, SubmittedRun
    from orchestrator.why import Answer
    from tracking.ancestry import Ancestry, Direction, Item
    from tracking.sync import RunSync


def show_scripts(prepared: Prepared, store: Store) -> None:
    """Every script the executor would be handed, each under the name of its stage."""
    from orchestrator.jobs import requests_to_show

    for name, request in requests_to_show(prepared.plan, store):
        print(f"# ---- stage {name}\n{prepared.executor.render(request).rstrip()}\n")


def show_plan(prepared: Prepared, *, as_json: bool) -> None:
    """What would happen."""
    if as_json:
        return print_json(plan_object(prepared.plan, prepared.executor_name, prepared.transport))
    from orchestrator.view import emit, plan_view

    view = plan_view(prepared.plan, prepared.executor_name, prepared.transport)
    return emit(view, sys.stdout)


def show_submitted(
    run: SubmittedRun, store: Store, plan: Plan | None = None, *, as_json: bool
) -> None:
    """What was done about each stage."""
    record = store.read_run(run.run_id)
    if as_json:
        return print_json(submitted_object(run, record))
    from orchestrator.view import emit, submitted_view

    return emit(submitted_view(run, record, plan), sys.stdout)


def show_status(status: RunStatus, *, as_json: bool) -> None:
    """One run."""
    if as_json:
        from orchestrator.status import to_json

        return print_json(to_json(status))
    from orchestrator.status_view import status_view
    from orchestrator.view import emit

    return emit(status_view(status), sys.stdout)


def show_runs(runs: Sequence[RunStatus], store: Store, *, as_json: bool) -> None:
    """Many runs, a line each."""
    if as_json:
        from orchestrator.status import run_object

        entries = [run_object(run) for run in runs]
        return print_json({"schema_version": SCHEMA_VERSION, "runs": entries})
    if not runs:
        return print(f"no runs in {store.root} yet", file=sys.stderr)
    from orchestrator.view import emit, runs_view

    return emit(runs_view(runs), sys.stdout)


def show_names(what: str, rows: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    """What a recipe can name, with a line on each."""
    if as_json:
        entries = [{"name": name, "about": about} for name, about in rows]
        return print_json({"schema_version": SCHEMA_VERSION, what: entries})
    from orchestrator.view import emit, table

    return emit(table([what, "about"], rows), sys.stdout)


def show_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """What `doctor` found."""
    if as_json:
        found = [asdict(check) for check in checks]
        return print_json({"schema_version": SCHEMA_VERSION, "checks": found})
    from orchestrator.view import checks_view, emit

    return emit(checks_view(checks), sys.stdout)


def show_why(run: RunStatus, found: Sequence[Answer], *, alone: bool, as_json: bool) -> None:
    """Why stages stand as they do; alone, one of them tells all of itself."""
    if as_json:
        from orchestrator.why import to_json

        return print_json(to_json(run, found))
    from orchestrator.view import emit
    from orchestrator.why_view import why_view

    return emit(why_view(run, found, alone=alone), sys.stdout)


def show_left(resumed: Resumed, store: Store) -> None:
    """What a resume of one stage leaves broken, on stderr."""
    if resumed.left:
        from orchestrator.explain import Commands
        from orchestrator.view import names

        again = Commands.of(resumed.run.run_id, store).resume()
        print(f"not continued: {names(resumed.left)}; `{again}` does", file=sys.stderr)


def show_cancelled(
    run_id: str,
    names: Sequence[str],
    kept: Mapping[str, Sequence[str]] = MappingProxyType({}),
    *,
    as_json: bool,
) -> None:
    """Which stages were stopped, and which were left to other runs."""
    if as_json:
        fields = {
            "run": run_id,
            "cancelled": list(names),
            "kept": {n: list(r) for n, r in kept.items()},
        }
        return print_json({"schema_version": SCHEMA_VERSION, **fields})
    from orchestrator.groups import collapsed

    nothing = "nothing: none of it waits or runs"
    print(f"{run_id}: cancelled {', '.join(collapsed(names)) or nothing}")
    for name, runs in kept.items():
        print(f"{run_id}: {name} goes on for {', '.join(runs)}")
    return None


def show_synced(reports: Sequence[RunSync], *, as_json: bool) -> None:
    """What was brought to MLflow."""
    if as_json:
        runs = [asdict(report) for report in reports]
        return print_json({"schema_version": SCHEMA_VERSION, "runs": runs})
    from orchestrator.view import emit, synced_view

    return emit(synced_view(reports), sys.stdout)


def write_lineage(
    what: str,
    ancestry: Ancestry,
    ids: Sequence[str],
    shown: Sequence[Item],
    page: Path | None,
    picture: Path | None,
) -> None:
    """The files that were asked for, named on stderr."""
    from cluster import fsio
    from tracking.ancestry import as_html, as_svg

    if page is not None:
        fsio.write_text(page, as_html(f"Lineage of {what}", ancestry, ids, shown))
    if picture is not None:
        fsio.write_text(picture, as_svg(shown))
    for path in filter(None, (page, picture)):
        print(f"wrote {path}", file=sys.stderr)


def show_lineage(
    what: str,
    ancestry: Ancestry,
    ids: Sequence[str],
    shown: Sequence[Item],
    directions: Sequence[Direction],
    *,
    as_json: bool,
) -> None:
    """What something came from and what it went into."""
    if as_json:
        from tracking.ancestry import as_json as plain

        asked = {"schema_version": SCHEMA_VERSION, "asked": what}
        return print_json({**asked, **plain(ancestry, ids, shown)})
    from orchestrator.lineage_view import lineage_view
    from orchestrator.view import emit

    return emit(lineage_view(ancestry, ids, directions), sys.stdout)


def show_lines(lines: Iterable[LogLine], *, prefix: bool) -> None:
    """Lines of logs, each with its rank in front where there may be more than one."""
    for line in lines:
        print(f"[{line.rank}] {line.text}" if prefix else line.text, flush=True)


def finish(
    run: SubmittedRun, store: Store, executor: Executor, *, wait: bool, as_json: bool
) -> int:
    """Stay where that was asked for or the jobs live in this process; returns the exit code."""
    if wait or executor.name == "local":
        from orchestrator.waiting import succeeded, wait_for

        stream = sys.stderr if as_json else sys.stdout
        end = wait_for(run.run_id, store, executor, list(run.handles.values()), stream)
        if executor.name == "local":
            # Stages that were blocked or killed had no outbox: their runs are closed here.
            from orchestrator.sync import deliver_finished

            report = deliver_finished(store, end)
            for problem in report.problems if report else ():
                print(f"warning: {problem}", file=sys.stderr)
        if not as_json:
            show_status(end, as_json=False)
        return 0 if succeeded(end) else 1
    if not as_json:
        from orchestrator.explain import Commands

        commands = Commands.of(run.run_id, store)
        print(f"status: {commands.status()}   ui: {commands.ui()}")
    return 1 if any(stage.action == "blocked" for stage in run.stages) else 0


def plan_object(plan: Plan, executor: str, transport: Transport | None = None) -> dict[str, Any]:
    """The object of `plan --json`; docs/cli.md documents its fields."""
    stages = [
        {
            "name": stage.name,
            "kind": stage.kind,
            "key": stage.key,
            "action": stage.action,
            "reason": stage.reason,
            "after": list(stage.upstream),
            "part_of": stage.part_of,
            "resources": asdict(stage.resources),
            "config": dict(stage.config),
        }
        for stage in plan.stages
    ]
    run = {"id": plan.run_id, "recipe": plan.recipe.name, "executor": executor}
    return {
        "schema_version": SCHEMA_VERSION,
        "run": {
            **run,
            "gpu_hours": plan.gpu_hours,
            "transport": asdict(transport) if transport else None,
        },
        "stages": stages,
    }


def submitted_object(run: SubmittedRun, record: Mapping[str, Any]) -> dict[str, Any]:
    """The object of `submit --json` and `resume --json`; docs/cli.md documents its fields."""
    about = {"recipe": record["recipe"], "executor": record["executor"]}
    return {
        "schema_version": SCHEMA_VERSION,
        "run": {"id": run.run_id, **about, "code": record["code"]["version"]},
        "stages": [
            {**asdict(stage), "job_id": stage.job_id or None, "after": list(stage.after)}
            for stage in run.stages
        ],
    }


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)
