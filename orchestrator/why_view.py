"""Why stages stand as they do, on a terminal: cause, evidence, history and the next command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.decision import Status
from orchestrator.pending import clock
from orchestrator.status_view import progress_text
from orchestrator.view import coloured, duration, names, short_job
from orchestrator.why import quiet

if TYPE_CHECKING:
    from orchestrator.status import RunStatus
    from orchestrator.why import Answer, PastAttempt

_MOST_FIELDS = 8


def why_view(run: RunStatus, found: Sequence[Answer], *, alone: bool) -> RenderableType:
    """A block for each stage; one alone also tells of its attempts and of all that was new."""
    head = Text(f"{run.run_id}  ").append_text(coloured(run.status))
    parts: list[RenderableType] = [] if alone else [head]
    if run.scheduler_error:
        parts.append(Text(f"The scheduler was not asked: {run.scheduler_error}", style="yellow"))
    shown = [answer for answer in found if alone or not quiet(answer)]
    parts += [_block(answer, alone=alone) for answer in shown]
    return Group(*parts)


def _block(answer: Answer, *, alone: bool) -> Text:
    stage = answer.stage
    text = Text(no_wrap=True, overflow="ignore")
    text.append(f"{stage.name}  ").append_text(coloured(stage.status))
    text.append(f"  {short_job(stage.job_id)}" if stage.job_id else "")
    text.append(f"  attempt {stage.attempts}" if stage.attempts else "")
    for title, line in _lines(answer, alone=alone):
        text.append(f"\n  {title + ':' if title else '':<9}{line}".rstrip())
    return text


def _lines(answer: Answer, *, alone: bool) -> Iterator[tuple[str, str]]:
    """What is said of a stage: a title and a line each, the title where it is a new one."""
    stage, told = answer.stage, answer.stage.told
    if answer.made_by:
        yield "reused", f"finished in run {answer.made_by}, with the same key"
    elif told.reason:
        yield "why", told.reason
    for line in told.more.splitlines():
        yield "", line
    if answer.scheduler:
        yield "sacct", answer.scheduler
    if answer.waits_for:
        yield "waits", names([f"{name} ({status})" for name, status in answer.waits_for.items()])
    if stage.status is Status.RUNNING and progress_text(stage.progress):
        yield "does", progress_text(stage.progress)
    yield from _what_was_new(answer, alone=alone)
    if alone:
        for n, attempt in enumerate(answer.attempts, start=1):
            yield f"try {n}", _attempt(attempt)
    if stage.excluded:
        yield "without", ", ".join(stage.excluded)
    if stage.lost_seconds >= 1:
        yield "lost", f"{duration(stage.lost_seconds)} of work was done again"
    if told.evidence:
        yield "see", told.evidence
    if told.next:
        yield "next", told.next


def _what_was_new(answer: Answer, *, alone: bool) -> Iterator[tuple[str, str]]:
    """Why the result of the newest earlier run of the recipe did not do."""
    differs = answer.differs
    if differs is None:
        return
    found = [str(field) for field in differs.fields]
    found += [f"input {slot} comes from another one" for slot in differs.inputs]
    found += [f"code of {file} differs" for file in differs.code]
    found += [differs.unknown] if differs.unknown else []
    if not alone:
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        yield "new", f"other than in run {differs.run}: {'; '.join(found[:2])}{more}"
        return
    yield "new", f"other than in run {differs.run}:"
    for line in found[:_MOST_FIELDS]:
        yield "", line
    if len(found) > _MOST_FIELDS:
        yield "", f"and {len(found) - _MOST_FIELDS} more, which `why --json` lists"


def _attempt(attempt: PastAttempt) -> str:
    when = clock(attempt.started_at) if attempt.started_at else "not begun"
    words = [attempt.id, f"{when}"]
    words += [f"job {attempt.job_id}"] if attempt.job_id else []
    words += [f"on {attempt.host}"] if attempt.host else []
    words += [attempt.ended or "runs"]
    decision = attempt.decision
    if decision is not None and decision.policy and decision.action != "finished":
        words.append(f"[{decision}]")
    return "  ".join(words)
