"""Why a stage stands as it does: one line of cause, one of evidence, one command to run next."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.contract import JobState, Phase
from orchestrator.endings import Failure, ending, failure_of, printable
from orchestrator.logs import find_logs
from orchestrator.pending import hopeless, what_to_change, why_pending
from orchestrator.record import StageRecord
from orchestrator.store import Store, default_store

_BECAME = {"failed": "failed", "cancelled": "was cancelled", "lost": "ended before it was done"}


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Command lines that fit a run: with its full id, and its store where it is not the default.

    `submit_words` are `submit`, the recipe and the overrides, as run.json keeps them.
    """

    run_id: str
    submit_words: tuple[str, ...] = ()
    store: str | None = None

    @staticmethod
    def of(run_id: str, store: Store) -> Commands:
        """The commands for a run of a store. Raises FileNotFoundError: no such run."""
        words = tuple(store.read_run(run_id).get("argv", ()))
        return Commands(run_id=run_id, submit_words=words, store=elsewhere(str(store.root)))

    def status(self) -> str:
        """Look at the run."""
        return self._line("status", self.run_id)

    def cancel(self, stage: str | None = None) -> str:
        """Stop the run, or a stage and what depends on it."""
        return self._line("cancel", f"{self.run_id}:{stage}" if stage else self.run_id)

    def ui(self) -> str:
        """Show the MLflow UI."""
        return self._line("ui")

    def resume(self, stage: str | None = None, *changes: str) -> str:
        """Continue the run, or one stage of it, with changes such as `--hours 48`."""
        only = ["--stage", stage] if stage else []
        return self._line("resume", self.run_id, *only, *changes)

    def retry(self, stage: str, *options: str) -> str:
        """Try a stage again."""
        return self._line("retry", f"{self.run_id}:{stage}", *options)

    def why(self, stage: str | None = None) -> str:
        """Explain a run, or one stage of it."""
        return self._line("why", f"{self.run_id}:{stage}" if stage else self.run_id)

    def logs(self, stage: str, rank: int) -> str:
        """Show what one rank wrote."""
        return self._line("logs", f"{self.run_id}:{stage}", "--rank", str(rank))

    def submit(self, *overrides: str) -> str:
        """Submit the recipe again, changed."""
        return self._line(*self.submit_words, *overrides)

    def _line(self, *words: str) -> str:
        store = ["--store", self.store] if self.store else []
        return shlex.join(["orchestrate", *words, *store])


def elsewhere(root: str) -> str | None:
    """What to say after `--store`; None for the store that is the default."""
    return root if root != str(default_store()) else None


@dataclass(frozen=True, kw_only=True)
class Told:
    """Three lines for a person; `evidence` and `next` are empty where nothing is wrong.

    `more` are the lines of an error behind its first, which is in `reason`.
    """

    reason: str = ""
    more: str = ""
    evidence: str = ""
    next: str = ""


def remedy(failure: Failure, record: StageRecord, commands: Commands) -> str:
    """The one command to run next, by the kind of failure."""
    stage, config = str(record.plan["name"]), record.config
    spec = f"stages.{stage.partition('/')[0]}"
    micro_batch = config.get("micro_batch")
    if failure.cause == "out_of_memory" and isinstance(micro_batch, int) and micro_batch > 1:
        return commands.submit(f"{spec}.micro_batch={micro_batch // 2}")
    if failure.cause == "out_of_host_memory":
        return _with_more_memory(record, commands, spec) or commands.logs(stage, failure.rank or 0)
    rate = (config.get("optimizer") or {}).get("lr")
    if failure.cause == "diverged" and isinstance(rate, int | float):
        return commands.submit(f"{spec}.optimizer.lr={rate / 2:g}")
    if failure.cause == "time_limit" and (hours := _asked(record).get("hours")):
        return commands.resume(_resumed(record), "--hours", f"{2 * hours:g}")
    if failure.cause in ("hang", "communication", "killed", "input", "node_failure", "device"):
        return commands.resume(_resumed(record))
    return commands.logs(stage, failure.rank or 0)


def _with_more_memory(record: StageRecord, commands: Commands, spec: str) -> str | None:
    """A command for a stage that needs more of the host's memory; None if nothing is known."""
    asked = _asked(record).get("mem_gb")
    workers = record.config.get("workers")
    if asked:
        return commands.resume(_resumed(record), "--mem-gb", f"{2 * asked:g}")
    if isinstance(workers, int) and workers > 1:
        return commands.submit(f"++{spec}.workers={workers // 2}")
    return None


def _asked(record: StageRecord) -> Mapping[str, Any]:
    """The resources its newest submission asked for."""
    return record.submission.resources if record.submission else {}


def explain(
    status: str,
    record: StageRecord,
    state: JobState | None,
    commands: Commands,
) -> Told:
    """Cause, evidence and next command of one stage by itself, given its status."""
    if status == "failed":
        return _failed(record, commands)
    if status == "blocked":
        return Told(reason="a job it depends on did not succeed", next=commands.resume())
    if status == "cancelled" and record.cancel is not None:
        return Told(reason=_cancelled(record.cancel), next=commands.resume())
    if status in ("lost", "cancelled"):  # by scancel, which leaves no record of who
        return _lost(record, state, commands)
    words = _going_on(status, record, state, commands)
    if status == "waiting" and state is not None and hopeless(state.reason):
        return Told(reason=words, next=_another_way(state.reason, record, commands))
    return Told(reason=words)


def _another_way(reason: str, record: StageRecord, commands: Commands) -> str:
    """The command for a job that will never start as it is.

    It goes first, with its dependents, which would never start either.
    """
    changes, key = what_to_change(reason)
    if key:
        again = commands.submit(f"cluster.resources.{key}=NAME")
    elif changes:
        again = commands.resume(_resumed(record), *changes)
    else:
        again = commands.resume()
    return f"{commands.cancel(str(record.plan['name']))} && {again}"


def explain_blocked(name: str, status: str, upstream: Told) -> Told:
    """Why a stage cannot start: what became of the upstream stage `name`, or of that one's own."""
    reason = upstream.reason if status == "blocked" else f"{name} {_BECAME[status]}"
    return Told(reason=reason, more=upstream.more, evidence=upstream.evidence, next=upstream.next)


def _resumed(record: StageRecord) -> str:
    """The stage to resume: of a part the whole, which waits for the part as well."""
    return str(record.plan.get("part_of") or record.plan["name"])


def _failed(record: StageRecord, commands: Commands) -> Told:
    attempt = record.current
    if attempt is None:  # cannot be: without an attempt nothing has failed
        return Told()
    failure = failure_of(attempt)
    gave_up = (attempt["exit"] or {}).get("reason") or ""
    reason = str(failure)
    if failure.cause in ("hang", "communication", "killed") and gave_up not in reason:
        reason += f" ({gave_up})"
    return Told(
        reason=reason,
        more=failure.more,
        evidence=_evidence(record, failure.rank or 0),
        next=remedy(failure, record, commands),
    )


def _lost(record: StageRecord, state: JobState | None, commands: Commands) -> Told:
    attempt, submission = record.current, record.submission
    if attempt is not None:
        reason = f"{ending(attempt)}; nothing will start it again by itself"
    elif submission is not None and submission.handle is None:
        reason = "the scheduler refused the job"
    else:
        reason = "the job is gone and never started"
    told = attempt is not None and attempt["exit"]
    if not told and state is not None and state.phase is Phase.GONE and state.reason.isupper():
        reason += f"; scheduler: {state.reason}"  # it still remembers, for MinJobAge
    again = commands.resume(_resumed(record))
    return Told(reason=reason, evidence=_evidence(record, 0), next=again)


def _going_on(status: str, record: StageRecord, state: JobState | None, commands: Commands) -> str:
    """One line on a stage that is not in trouble: whose result it is, what it waits for or did."""
    submission = record.submission
    if status == "succeeded":
        made_by = submission.run_id if submission else commands.run_id
        return f"reused from run {made_by}" if made_by != commands.run_id else ""
    if status == "planned":
        return f"being submitted {_claimant(record.claim)}" if record.claimed else ""
    words = ["being cancelled"] if record.cancel is not None else []
    if status == "requeued" and record.current is not None:
        words.append(ending(record.current))
    if status == "running" and (before := record.before) is not None:
        words.append(f"{ending(before)}, then started again")
    # What its dependency waits for has a place of its own.
    in_line = state is not None and state.reason in ("Dependency", "queued")
    named = in_line and record.plan["upstream"]
    if status in ("waiting", "requeued") and state is not None and state.reason and not named:
        words.append(why_pending(state.reason, state.start_at))
    return "; ".join(words)


def _evidence(record: StageRecord, rank: int) -> str:
    """The file to open: the rank's log, else the record of the attempt, else the stage's folder."""
    logs = find_logs(record.folder.logs, rank=rank, jobs=record.jobs)
    if logs:
        return str(logs[-1].path)
    attempt = record.current
    return str(record.folder.attempts / str(attempt["id"]) if attempt else record.folder.path)


def _claimant(claim: Mapping[str, Any] | None) -> str:
    return f"by {claim['user']} on {claim['host']}" if claim else ""


def _cancelled(record: Mapping[str, Any]) -> str:
    """Who cancelled a stage, where and when (local time), and why where that was recorded."""
    at = datetime.datetime.fromtimestamp(float(record["at"])).astimezone()
    why = f": {printable(str(record['reason']))}" if record.get("reason") else ""
    return f"by {record['user']} on {record['host']} at {at:%Y-%m-%d %H:%M}{why}"
