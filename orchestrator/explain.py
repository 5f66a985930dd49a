"""Why a stage stands as it does: one line of cause, one of evidence, one command to run next."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.contract import ExitCode, JobState
from orchestrator.logs import find_logs
from orchestrator.record import Attempt, StageRecord
from orchestrator.store import Store, default_store

_CAUSES = {
    "configuration": "the configuration cannot run",
    "input": "an input is missing or damaged",
    "user_code": "error in the stage's code",
    "out_of_memory": "out of memory",
    "out_of_host_memory": "out of host memory",
    "diverged": "the loss is not finite",
    "hang": "a rank stopped making progress",
    "communication": "a rank lost its peers",
}
_EXIT_CODES = {
    ExitCode.CONFIGURATION: "configuration",
    ExitCode.INPUT: "input",
    ExitCode.USER_CODE: "user_code",
    ExitCode.OUT_OF_MEMORY: "out_of_memory",
    ExitCode.DIVERGED: "diverged",
    ExitCode.HANG: "hang",
    ExitCode.COMMUNICATION: "communication",
}
_SIGNALS = {129: "SIGHUP", 130: "SIGINT", 134: "SIGABRT", 137: "SIGKILL", 139: "SIGSEGV"}
_SIGNALS |= {143: "SIGTERM"}
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
        elsewhere = str(store.root) if store.root != default_store() else None
        return Commands(run_id=run_id, submit_words=words, store=elsewhere)

    def status(self) -> str:
        """Look at the run."""
        return self._line("status", self.run_id)

    def cancel(self) -> str:
        """Stop the run."""
        return self._line("cancel", self.run_id)

    def ui(self) -> str:
        """Show the MLflow UI."""
        return self._line("ui")

    def resume(self, stage: str | None = None) -> str:
        """Continue the run, or one stage of it."""
        return self._line("resume", self.run_id, *(["--stage", stage] if stage else []))

    def logs(self, stage: str, rank: int) -> str:
        """Show what one rank wrote."""
        return self._line("logs", f"{self.run_id}:{stage}", "--rank", str(rank))

    def submit(self, *overrides: str) -> str:
        """Submit the recipe again, changed."""
        return self._line(*self.submit_words, *overrides)

    def _line(self, *words: str) -> str:
        store = ["--store", self.store] if self.store else []
        return shlex.join(["orchestrate", *words, *store])


@dataclass(frozen=True, kw_only=True)
class Told:
    """Three lines for a person; `evidence` and `next` are empty where nothing is wrong."""

    reason: str = ""
    evidence: str = ""
    next: str = ""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What ended an attempt for good, and where: the fields of the record that tells it best."""

    cause: str
    message: str
    host: str = ""
    rank: int | None = None

    def __str__(self) -> str:
        place = f" on {self.host}" if self.host else ""
        place += f" rank {self.rank}" if self.rank is not None else ""
        words = _CAUSES.get(self.cause, self.cause)
        message = _printable(self.message.strip().partition("\n")[0])
        if self.cause == "hang" and self.rank is not None:
            return message  # a watchdog's, which names rank and host
        return f"{words}{place}: {message}" if message else f"{words}{place}"


def failure_of(attempt: Attempt) -> Failure:
    """The record that names the cause: the first rank that failed by itself, not for lost peers."""
    ranks = sorted(
        attempt["failures"], key=lambda one: (one["cause"] == "communication", one["at"])
    )
    start, end, ended = attempt["start"] or {}, attempt["end"] or {}, attempt["exit"] or {}
    if ranks and (vanished := _vanished(attempt)) is not None:
        words = _exit_words(ended.get("exit_code"))
        return Failure(cause=words, message="it left no record; others lost it", rank=vanished)
    if ranks:
        first = ranks[0]
        return Failure(
            cause=first["cause"], message=first["message"], host=first["host"], rank=first["rank"]
        )
    if end.get("outcome") == "failed":
        return Failure(
            cause=end["cause"], message=end["message"], host=start.get("host", ""), rank=0
        )
    code, reason = ended.get("exit_code"), str(ended.get("reason") or "")
    host = str(start.get("host", ""))
    if code in _EXIT_CODES:
        return Failure(cause=_EXIT_CODES[code], message=reason, host=host)
    return Failure(cause=_exit_words(code), message=reason, host=host)


def _vanished(attempt: Attempt) -> int | None:
    """The rank that all others lost, where it is the only one without a record of its own.

    Its watchdog writes one where it outlives the rank, which SLURM does not always allow.
    """
    records = attempt["failures"]
    ranks = set(range(int((attempt["start"] or {}).get("world_size", 0))))
    silent = ranks - {record["rank"] for record in records}
    lost = all(record["cause"] == "communication" for record in records)
    killed = int((attempt["exit"] or {}).get("job_exit_code") or 0) > 128
    return silent.pop() if lost and killed and len(silent) == 1 else None


def ending(attempt: Attempt) -> str:
    """How an attempt ended, in a few words, for the history of a stage that goes on."""
    end, start, ended = attempt["end"] or {}, attempt["start"] or {}, attempt["exit"] or {}
    host = f" on {start['host']}" if start.get("host") else ""
    why = f" ({ended['reason']})" if ended.get("reason") else ""
    if end.get("outcome") == "preempted":
        return f"stopped{host}, saved at step {end['step']}{why}"
    if end.get("outcome") == "failed" or attempt["failures"]:
        return str(failure_of(attempt))
    if ended:
        return f"{_exit_words(ended.get('exit_code'))}{host}{why}"
    return f"killed{host} without a record"


def remedy(failure: Failure, record: StageRecord, commands: Commands) -> str:
    """The one command to run next, by the kind of failure."""
    stage, config = str(record.plan["name"]), record.config
    spec = f"stages.{stage.partition('/')[0]}"
    micro_batch = config.get("micro_batch")
    if failure.cause == "out_of_memory" and isinstance(micro_batch, int) and micro_batch > 1:
        return commands.submit(f"{spec}.micro_batch={micro_batch // 2}")
    if failure.cause == "out_of_host_memory" and (change := _more_memory(record)):
        return commands.submit(f"++{spec}.{change}")
    rate = (config.get("optimizer") or {}).get("lr")
    if failure.cause == "diverged" and isinstance(rate, int | float):
        return commands.submit(f"{spec}.optimizer.lr={rate / 2:g}")
    if failure.cause in ("hang", "communication", "killed", "input"):
        return commands.resume(_resumed(record))
    return commands.logs(stage, failure.rank or 0)


def _more_memory(record: StageRecord) -> str | None:
    """What to change for a stage that needs more of the host's memory; None if nothing is known."""
    asked = (record.submission.resources if record.submission else {}).get("mem_gb")
    workers = record.config.get("workers")
    if asked:
        return f"resources.mem_gb={2 * asked:g}"
    return f"workers={workers // 2}" if isinstance(workers, int) and workers > 1 else None


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
        return Told(reason=_cancelled(record.cancel), next=commands.resume(_resumed(record)))
    if status == "lost":
        return _lost(record, commands)
    return Told(reason=_going_on(status, record, state, commands))


def explain_blocked(name: str, status: str, upstream: Told) -> Told:
    """Why a stage cannot start: what became of the upstream stage `name`, or of that one's own."""
    reason = upstream.reason if status == "blocked" else f"{name} {_BECAME[status]}"
    return Told(reason=reason, evidence=upstream.evidence, next=upstream.next)


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
        evidence=_evidence(record, failure.rank or 0),
        next=remedy(failure, record, commands),
    )


def _lost(record: StageRecord, commands: Commands) -> Told:
    attempt, submission = record.current, record.submission
    if attempt is not None:
        reason = f"{ending(attempt)}; nothing will start it again by itself"
    elif submission is not None and submission.handle is None:
        reason = "the scheduler refused the job"
    else:
        reason = "the job is gone and never started"
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
    if status == "running" and len(record.attempts) > 1:
        words.append(f"{ending(record.attempts[-2])}, then started again")
    if status in ("waiting", "requeued") and state is not None and state.reason:
        words.append(f"scheduler: {state.reason}")
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
    """Who cancelled a stage, where and when (local time)."""
    at = datetime.datetime.fromtimestamp(float(record["at"])).astimezone()
    return f"by {record['user']} on {record['host']} at {at:%Y-%m-%d %H:%M}"


def _printable(text: str) -> str:
    """Text that cannot steer a terminal; it may come from a file name or a library's message."""
    return "".join(char for char in text if char.isprintable())


def _exit_words(code: int | None) -> str:
    if code is None:
        return "ended without an exit code"
    signal = _SIGNALS.get(code)
    return f"killed by {signal} (exit code {code})" if signal else f"exit code {code}"
