"""One attempt on the node as a rank sees it, and the records it leaves of its beginning and end."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.contract import ExitCode
from cluster.heartbeat import Heart
from cluster.ranks import RankEnv
from orchestrator.outcome import Outcome
from orchestrator.store import SCHEMA_VERSION, StageDir
from recipes.contract import StageError


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of one submission on the node, as this rank sees it.

    `heart` is how its watchdog knows that this rank lives; `oom_kills` how many processes the
    kernel had killed here for want of memory when it began.
    """

    stage: StageDir
    submission: int
    restart: int
    ranks: RankEnv
    resources: Mapping[str, Any]
    tracking: Mapping[str, Any] | None
    heart: Heart | None = None
    oom_kills: int = 0

    @property
    def id(self) -> str:
        """Sorts by submission, then by restart."""
        return f"s{self.submission:03d}r{self.restart:03d}"

    @property
    def folder(self) -> Path:
        """Where this attempt's records lie."""
        return self.stage.attempts / self.id

    @property
    def main(self) -> bool:
        """Whether this is rank 0, the only writer of results."""
        return self.ranks.rank == 0


def overtaken_by(attempt: Attempt) -> str | None:
    """What works on the stage in place of this attempt by now, if anything does.

    The scheduler may have given up a node whose ranks are alive, and begun again elsewhere.
    """
    newest = (attempt.stage.latest_intent() or {}).get("n", 0)
    if newest > attempt.submission:
        return f"submission {newest}"
    begun = (path.parent.name for path in attempt.stage.attempts.glob("*/start.json"))
    own = f"s{attempt.submission:03d}r"
    restarts = (name.removeprefix(own) for name in begun if name.startswith(own))
    later = [int(number) for number in restarts if number.isdecimal()]
    last = max(later, default=0)
    return f"attempt {own}{last:03d}" if last > attempt.restart else None


def leave_if_overtaken(attempt: Attempt) -> None:
    """End this process at once where another attempt has begun: nothing more must be committed.

    Called by rank 0 before it commits; its job ends with it, and no record of the end is written.
    """
    other = overtaken_by(attempt)
    if other is not None:
        print(f"orchestrate: {other} works on {attempt.stage.path.name} now; leaving", flush=True)
        os._exit(ExitCode.SUPERSEDED)


def record_start(attempt: Attempt) -> None:
    """Say where and when the attempt began; for rank 0."""
    fsio.write_json(
        attempt.folder / "start.json",
        {
            "schema_version": SCHEMA_VERSION,
            "job_id": os.environ.get("SLURM_JOB_ID", ""),
            "hosts": os.environ.get("SLURM_JOB_NODELIST", socket.gethostname()),
            "restart": attempt.restart,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "world_size": attempt.ranks.world_size,
            "started_at": time.time(),
        },
    )


def record_end(attempt: Attempt, outcome: Outcome, error: BaseException | None = None) -> None:
    """Write how the attempt ended; where that cannot be, the exit code still says it."""
    try:
        if error is not None:
            _record_failure(attempt, outcome, error)
        if attempt.main:
            end = {"schema_version": SCHEMA_VERSION, **asdict(outcome), "finished_at": time.time()}
            fsio.write_json(attempt.folder / "end.json", end)
    except OSError as problem:
        print(f"orchestrate: no record in {attempt.folder}: {problem}", file=sys.stderr, flush=True)


def _record_failure(attempt: Attempt, outcome: Outcome, error: BaseException) -> None:
    if outcome.outcome != "failed":
        return
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, StageError):  # those say what to do; where they were raised is noise
        print(text, file=sys.stderr, flush=True)
    fsio.write_json(
        attempt.folder / f"failure-rank{attempt.ranks.rank}.json",
        {
            "schema_version": SCHEMA_VERSION,
            "rank": attempt.ranks.rank,
            "host": socket.gethostname(),
            "exit_code": outcome.exit_code,
            "cause": outcome.cause,
            "message": outcome.message,
            "traceback": text,
            "at": time.time(),
        },
    )


def print_outcome(attempt: Attempt, outcome: Outcome) -> None:
    """One line for the log of the rank."""
    who = f"{attempt.stage.path.name} attempt {attempt.id} rank {attempt.ranks.rank}"
    message = f": {outcome.message}" if outcome.message else ""
    print(f"orchestrate: {who} {outcome.outcome}{message}", flush=True)
