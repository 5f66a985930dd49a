"""One screen about a run: a line for each stage, then what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.decision import Status, overall
from orchestrator.explain import Commands, elsewhere
from orchestrator.groups import counted, grouped, name_of
from orchestrator.view import Cell, coloured, duration, jobs, local_time, names, table

if TYPE_CHECKING:
    from orchestrator.explain import Told
    from orchestrator.status import RunStatus, StageStatus

_MOST_TROUBLES = 5
_MOST_OF_A_GROUP = 3
_MOST_LINES = 8
_TELLING = (
    "top1",
    "R@1",
    "top5",
    "R@5",
    "chance",
    "train/loss",
    "train/top1",
    "excluded",
    "listed",
)


def status_view(run: RunStatus) -> RenderableType:
    """One screen: a line for each stage, then cause, evidence and next command of each trouble."""
    when = local_time(run.created_at)
    head = Text(f"{run.run_id}  ").append_text(coloured(run.status))
    head.append(f"  {run.executor}  {run.user}@{run.host}  {when}")
    rows: list[list[Cell]] = [
        [
            name_of(group),
            coloured(overall([stage.status for stage in group])),
            jobs(group),
            str(sum(stage.attempts for stage in group) or "-"),
            _lost(group),
            group_details(group),
        ]
        for group in grouped(run.stages)
    ]
    parts: list[RenderableType] = [head]
    if run.scheduler_error:
        text = f"The scheduler was not asked, this is what the files say: {run.scheduler_error}"
        parts.append(Text(text, style="yellow"))
    parts.append(table(["stage", "status", "job", "attempts", "lost", "details"], rows))
    parts.extend(_troubles(run))
    return Group(*parts)


def _lost(group: Sequence[StageStatus]) -> str:
    seconds = sum(stage.lost_seconds for stage in group)
    return duration(seconds) if seconds >= 1 else "-"


def _troubles(run: RunStatus) -> Iterator[Text]:
    """What is wrong, the same once; of many parts of one stage, or very many, only the first."""
    found: list[list[StageStatus]] = []
    for group in grouped(run.stages):
        same: dict[tuple[Status, Told], list[StageStatus]] = {}
        for stage in group:
            if _has_own_trouble(stage):
                same.setdefault((stage.status, stage.told), []).append(stage)
        found += _joined(found, list(same.values())[:_MOST_OF_A_GROUP])
    for stages in found[:_MOST_TROUBLES]:
        yield trouble(stages)
    wrong = sum(_has_own_trouble(stage) for stage in run.stages)
    if hidden := wrong - sum(map(len, found[:_MOST_TROUBLES])):
        commands = Commands(run_id=run.run_id, store=elsewhere(run.store))
        yield Text(f"{hidden} more in trouble: {commands.why()}")


def _joined(
    found: Sequence[list[StageStatus]], more: Sequence[list[StageStatus]]
) -> list[list[StageStatus]]:
    """Of the further troubles those that are new; the others join what they equal."""
    new = []
    for stages in more:
        like = [
            one
            for one in found
            if (one[0].status, one[0].told) == (stages[0].status, stages[0].told)
        ]
        if like:
            like[0].extend(stages)
        else:
            new.append(stages)
    return new


def trouble(stages: Sequence[StageStatus]) -> Text:
    """Cause, evidence, what was decided, and one command, of stages that have them in common."""
    stage, told = stages[0], stages[0].told
    text = Text(no_wrap=True, overflow="ignore")
    text.append(f"{names([one.name for one in stages])} ").append_text(coloured(stage.status))
    text.append(f": {told.reason}" if told.reason else "")
    lines = told.more.splitlines()
    for line in lines[:_MOST_LINES]:
        text.append(f"\n    {line}".rstrip())
    if len(lines) > _MOST_LINES:
        text.append(f"\n    ... {len(lines) - _MOST_LINES} more lines")
    if told.evidence:
        text.append(f"\n  see:  {told.evidence}")
    if (decision := stage.decision) is not None and decision.policy and _still_holds(stage):
        text.append(f"\n  policy: {decision}")
    if told.next:
        text.append(f"\n  next: {told.next}")
    return text


def _still_holds(stage: StageStatus) -> bool:
    return stage.status in (Status.FAILED, Status.LOST)


def details(stage: StageStatus) -> str:
    """What a stage is doing, in one line: progress while it runs, else why it stands as it does."""
    if stage.status is Status.SUCCEEDED:
        return "  ".join([*_metrics(stage.metrics), stage.told.reason]).strip()
    if stage.status is Status.WAITING:
        after = f"after {names(stage.after)}" if stage.after else ""
        return "  ".join(text for text in (after, stage.told.reason, _without(stage)) if text)
    if stage.status in (Status.RUNNING, Status.REQUEUED):
        reason = f"({stage.told.reason})" if stage.told.reason else ""
        parts = (progress_text(stage.progress), reason, _without(stage))
        return "  ".join(text for text in parts if text)
    return "" if _has_own_trouble(stage) else stage.told.reason


def _without(stage: StageStatus) -> str:
    return f"without {', '.join(stage.excluded)}" if stage.excluded else ""


def group_details(group: Sequence[StageStatus]) -> str:
    """What a stage, or the parts of one together, are doing."""
    if group[0].part_of is None:
        return details(group[0])
    count = f"{len(group)} parts: {counted(str(stage.status) for stage in group)}"
    return "  ".join(text for text in (count, progress_text(_together(group))) if text)


def _together(parts: Sequence[StageStatus]) -> Mapping[str, Any] | None:
    """The progress of the parts as one: what is counted is added up, the last one ends it all."""
    running = [stage.progress for stage in parts if stage.status is Status.RUNNING]
    known = [progress for progress in running if progress]
    if not known:
        return None
    reports = [stage.progress for stage in parts if stage.progress]
    left = [one["seconds_left"] for one in known if one.get("seconds_left") is not None]
    return {
        "phase": known[0].get("phase"),
        "step": sum(one.get("step") or 0 for one in reports),
        "steps": sum(one.get("steps") or 0 for one in reports),
        "seconds_left": max(left, default=None),
    }


def progress_text(progress: Mapping[str, Any] | None) -> str:
    """How far, how well, how fast, how long still; what is not known is left out."""
    if not progress:
        return ""
    parts = [str(progress.get("phase") or "")]
    if progress.get("epochs"):
        parts.append(f"epoch {progress.get('epoch') or 0}/{progress['epochs']}")
    if progress.get("steps"):
        parts.append(f"step {progress.get('step', 0)}/{progress['steps']}")
    for name, form in (("loss", "loss {:.4g}"), ("clips_per_second", "{:.1f} clips/s")):
        if progress.get(name) is not None:
            parts.append(form.format(progress[name]))
    if progress.get("seconds_left") is not None:
        parts.append(f"{duration(progress['seconds_left'])} left")
    if progress.get("data_wait_share") is not None:
        parts.append(f"data wait {progress['data_wait_share']:.0%}")
    return "  ".join(part for part in parts if part)


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    """The figures a person looks for first; the rest is in the report and in MLflow."""
    telling = [name for name in _TELLING if name in metrics][:3]
    return [f"{name} {metrics[name]:.4g}" for name in telling or list(metrics)[:3]]


def _has_own_trouble(stage: StageStatus) -> bool:
    return stage.status in (Status.FAILED, Status.LOST, Status.CANCELLED)
