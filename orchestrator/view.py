"""Tables of plans, submissions, runs and checks, as a person reads them on a terminal."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.decision import Status, overall
from orchestrator.groups import collapsed, grouped, name_of

if TYPE_CHECKING:
    from cluster.contract import Resources
    from cluster.transport import Transport
    from orchestrator.checkup import Check
    from orchestrator.handover import SubmittedRun, SubmittedStage
    from orchestrator.planned import Plan, PlannedStage
    from orchestrator.status import RunStatus, StageStatus
    from tracking.sync import RunSync, StageSync

STYLES = {
    Status.SUCCEEDED: "green",
    Status.RUNNING: "cyan",
    Status.REQUEUED: "yellow",
    Status.WAITING: "yellow",
    Status.FAILED: "bold red",
    Status.LOST: "bold red",
    Status.BLOCKED: "red",
    Status.CANCELLED: "magenta",
}
_UNBOUNDED_WIDTH = 10_000
# What is written in sentences or lists may be folded on a narrow terminal; a name, an id or a
# number never, because nobody can read or copy a piece of one.
_FREE_TEXT = frozenset({"found", "advice", "why", "after", "details", "about"})
_NARROWEST_TEXT = 14
_CAN_BE_MISSED = ("key", "kind")  # `--json` has them
_GAP = 2
Cell: TypeAlias = str | Text


def emit(view: RenderableType, stream: IO[str]) -> None:
    """Print in colour and to the width of a terminal; elsewhere as plain, unbroken lines."""
    console = Console(file=stream, highlight=False)
    if console.is_terminal:
        console.print(view, crop=False)
        return
    plain = Console(file=stream, highlight=False, no_color=True, width=_UNBOUNDED_WIDTH)
    with plain.capture() as captured:
        plain.print(view)
    stream.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Columns:
    """A table without lines; columns that are empty in every row are left out."""
    cells = [list(row) for row in rows]
    kept = [n for n in range(len(columns)) if any(str(row[n]) not in ("", "-") for row in cells)]
    return Columns(
        names=tuple(columns[n] for n in kept), rows=[[row[n] for n in kept] for row in cells]
    )


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A table that fits a terminal: texts are folded, then columns left out that can be missed.

    Where that is not enough, it is wider than the terminal, which breaks its lines.
    """

    names: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = list(self.names)
        for spare in _CAN_BE_MISSED:
            if self._least(names) > options.max_width and spare in names:
                names.remove(spare)
        yield self._drawn(names, options.max_width)

    def _drawn(self, names: Sequence[str], width: int) -> Table:
        least = self._least(names)
        view = Table(
            box=None,
            pad_edge=False,
            padding=(0, _GAP, 0, 0),
            header_style="dim",
            width=least if least > width else None,
        )
        for name in names:
            free = name in _FREE_TEXT
            view.add_column(name, overflow="fold", no_wrap=not free, min_width=self._needed(name))
        places = [self.names.index(name) for name in names]
        for row in self.rows:
            view.add_row(*(one if isinstance(one := row[n], Text) else escape(one) for n in places))
        return view

    def _least(self, names: Sequence[str]) -> int:
        """Characters a line takes at least; nothing stands behind the last gap."""
        return sum(self._needed(name) + _GAP for name in names)

    def _needed(self, name: str) -> int:
        place = self.names.index(name)
        cells = (cell_len(str(row[place])) for row in self.rows)
        widest = max(cell_len(name), *cells, 0)
        return min(widest, _NARROWEST_TEXT) if name in _FREE_TEXT else widest


def plan_view(plan: Plan, executor: str, transport: Transport | None = None) -> RenderableType:
    """What would happen to each stage, how it goes on, and what it may cost at most."""
    rows: list[list[Cell]] = [
        [
            name_of(group),
            group[0].kind,
            _actions(group),
            *_shape(group[0].resources, _one_that_runs(group)),
            names(group[0].upstream) or "-",
            _key(group),
            _reasons(group),
        ]
        for group in grouped(plan.stages)
    ]
    columns = ["stage", "kind", "action", "nodes x ranks", "gpus", "time", "after", "key", "why"]
    head = f"{plan.recipe.name}  run {plan.run_id}  executor {executor}"
    how = [Text(f"transport: {transport}")] if transport else []
    return Group(Text(head), table(columns, rows), Text(_cost(plan)), *how)


def submitted_view(
    run: SubmittedRun, record: Mapping[str, Any], plan: Plan | None = None
) -> RenderableType:
    """What was done about each stage; the plan, where there is one, tells what each job may use."""
    planned = {stage.name: stage for stage in plan.stages} if plan else {}
    rows: list[list[Cell]] = []
    for group in grouped(run.stages):
        known = planned.get(group[0].name)
        shape = _shape(known.resources, _one_that_runs(group)) if known else ["-", "-", "-"]
        rows.append(
            [
                name_of(group),
                _actions(group),
                jobs(group),
                *shape,
                names(group[0].after) or "-",
                _key(group),
                _reasons(group),
            ]
        )
    columns = ["stage", "action", "job", "nodes x ranks", "gpus", "time", "after", "key", "why"]
    facts = [f"executor {record['executor']}", f"code {record['code']['version']}"]
    head = "  ".join([str(record["recipe"]), f"run {run.run_id}", *facts])
    return Group(Text(head), table(columns, rows))


def runs_view(runs: Sequence[RunStatus]) -> RenderableType:
    """One line for each run: what became of it, and how many of its stages are finished."""
    rows: list[list[Cell]] = []
    for run in runs:
        groups = [overall(stage.status for stage in group) for group in grouped(run.stages)]
        stages = f"{groups.count(Status.SUCCEEDED)}/{len(groups)}"
        started = local_time(run.created_at)
        rows.append([run.run_id, coloured(run.status), stages, run.executor, run.user, started])
    return table(["run", "status", "stages", "executor", "user", "started"], rows)


def checks_view(checks: Sequence[Check]) -> RenderableType:
    """What was looked at on a machine, and what to do about it."""
    styles = {"ok": "green", "warning": "yellow", "failed": "bold red"}
    rows: list[list[Cell]] = [
        [one.name, Text(one.state, style=styles[one.state]), one.found, one.advice]
        for one in checks
    ]
    return table(["what", "state", "found", "advice"], rows)


def synced_view(reports: Sequence[RunSync]) -> RenderableType:
    """A table a run: what was new of each stage, and the status that its MLflow run has now."""
    parts: list[RenderableType] = []
    for report in reports:
        head = Text(f"{report.run_id}  {report.status}".rstrip())
        if not report.tracked:
            head.append("  tracking is off (tracking.enabled)")
        elif report.uri:
            head.append(f"  {report.page}")
        parts.append(head)
        rows = [[one.stage, _delivery(one), one.state, one.status] for one in report.stages]
        parts += [table(["stage", "delivered", "state", "MLflow run"], rows)] if rows else []
    return Group(*parts)


def _delivery(stage: StageSync) -> str:
    if stage.problem:
        return "problem"
    if stage.held_by:
        return f"by {stage.held_by} just now"
    if not stage.mlflow_run_id:
        return "-"
    points = "1 point" if stage.points == 1 else f"{stage.points} points"
    return points if stage.delivered else "nothing new"


def names(stages: Sequence[str], most: int = 3) -> str:
    """The first names of many, so that a fan-in does not fill the screen."""
    found = collapsed(stages)
    shown = ", ".join(found[:most])
    return f"{shown} and {len(found) - most} more" if len(found) > most else shown


def jobs(group: Sequence[StageStatus] | Sequence[SubmittedStage]) -> str:
    """The job of a stage, or the first and last job of its parts."""
    known = [stage.job_id for stage in group if stage.job_id]
    first, last = (short_job(known[n]) if known else "-" for n in (0, -1))
    return first if first == last else f"{first}..{last}"


def short_job(job_id: str | None) -> str:
    """A job's id; of a local one, boot-pid-start.number, only process and number."""
    if not job_id:
        return "-"
    parts = job_id.split("-")
    return f"{parts[1]}.{parts[2].partition('.')[2]}" if len(parts) == 3 else job_id


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:03 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _actions(group: Sequence[PlannedStage] | Sequence[SubmittedStage]) -> Text:
    found = Counter(stage.action for stage in group)
    if len(found) == 1:
        return _action(group[0].action)
    return Text(", ").join(_action(action).append(f" {n}") for action, n in found.items())


def _one_that_runs(group: Sequence[PlannedStage] | Sequence[SubmittedStage]) -> str:
    """The action that tells whether any job of a group will be submitted."""
    actions = [stage.action for stage in group]
    return next((action for action in actions if action in ("run", "resume")), actions[0])


def _key(group: Sequence[PlannedStage] | Sequence[SubmittedStage]) -> str:
    return "-" if group[0].part_of else group[0].key[:8]


def _reasons(group: Sequence[PlannedStage] | Sequence[SubmittedStage]) -> str:
    if group[0].part_of is None:
        return _why(group[0].reason)
    return f"{len(group)} parts"


def _why(reason: str) -> str:
    """A plan's reason without the upstream, which has a column of its own."""
    return reason.partition(", after ")[0]


def coloured(status: Status) -> Text:
    """A status in the colour it has everywhere."""
    return Text(str(status), style=STYLES.get(status, ""))


def _action(action: str) -> Text:
    style = {"run": "cyan", "resume": "cyan", "reuse": "green", "blocked": "red"}.get(action, "")
    return Text(action, style=style)


def _shape(resources: Resources, action: str) -> list[str]:
    if action not in ("run", "resume"):
        return ["-", "-", "-"]
    gpus = resources.nodes * resources.gpus_per_node
    limit = duration(resources.hours * 3600)
    return [f"{resources.nodes} x {resources.tasks_per_node}", str(gpus or "-"), limit]


def _cost(plan: Plan) -> str:
    """The upper bound of what the time limits allow, in GPU-hours, or CPU-hours without GPUs."""
    jobs = [stage for stage in plan.stages if stage.action in ("run", "resume")]
    if not jobs:
        return "nothing to run"
    of = "job" if len(jobs) == 1 else "jobs"
    if plan.gpu_hours:
        return f"{len(jobs)} {of}, up to {plan.gpu_hours:g} GPU-hours"
    hours = sum(
        one.resources.hours * one.resources.world_size * one.resources.cpus_per_task for one in jobs
    )
    return f"{len(jobs)} {of}, no GPUs, up to {hours:g} CPU-hours"


def local_time(seconds: float) -> str:
    """Unix seconds as date and time of this machine."""
    return f"{datetime.datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M}"
