"""What the watchdogs of one attempt write for each other and for whoever asks what happened."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.contract import ExitCode
from cluster.hang import RankState, Verdict
from cluster.progress import committed_step

_SCHEMA_VERSION = 1
_WAIT_SECONDS = 5.0
_POLL_SECONDS = 0.1


def forget(attempt: Path, rank: int) -> None:
    """Remove what an earlier run of the same attempt, started by hand, left of this rank."""
    names = [f"failure-rank{rank}.json", f"hang-rank{rank}.json", f"stacks-rank{rank}.txt"]
    for name in [*names, *(["hang.json"] if rank == 0 else [])]:
        (attempt / name).unlink(missing_ok=True)


class Records:
    """The folder of an attempt as the watchdog of rank `rank` on `host` writes it.

    `hang-rank<k>.json` is how rank k is while any rank hangs, `hang.json` the verdict,
    `stacks-rank<k>.txt` where the rank was; `failure-rank<k>.json` and `end.json` are the files
    that a rank writes itself where it can.
    """

    def __init__(self, attempt: Path, rank: int, host: str) -> None:
        self._attempt, self._rank, self._host = attempt, rank, host
        self._own = attempt / f"hang-rank{rank}.json"

    def names(self) -> set[str]:
        """All files there now."""
        return {path.name for path in self._attempt.iterdir()}

    def say(self, state: RankState) -> None:
        """Say how the own rank is."""
        fsio.write_json(self._own, {"schema_version": _SCHEMA_VERSION, **asdict(state)})

    def unsay(self) -> None:
        """Nobody hangs any more."""
        self._own.unlink(missing_ok=True)

    def states(self) -> list[RankState]:
        """What all watchdogs say."""
        found = map(fsio.read_json_or_none, sorted(self._attempt.glob("hang-rank*.json")))
        fields = RankState.__dataclass_fields__
        return [
            RankState(**{name: value for name, value in record.items() if name in fields})
            for record in found
            if record is not None
        ]

    def declare(self, found: Verdict) -> None:
        """Say who hangs; the first watchdog to come to a verdict says it for all."""
        message = f"{found.message}; stacks of all ranks in {self._attempt}"
        record = self._failure(found.rank, found.host, ExitCode.HANG, "hang", message)
        if fsio.create_json(self._attempt / "hang.json", {**record, "found_by": self._rank}):
            fsio.write_json(self._attempt / f"failure-rank{found.rank}.json", record)
            print(f"orchestrate: {message}", flush=True)

    def declared(self) -> dict[str, Any]:
        """The verdict. Raises FileNotFoundError: there is none."""
        return fsio.read_json(self._attempt / "hang.json")

    def write_stacks(self, text: str) -> None:
        """Keep where the own rank was."""
        fsio.write_text(self._attempt / f"stacks-rank{self._rank}.txt", text)

    def write_end(self, verdict: dict[str, Any]) -> None:
        """End the attempt in the place of rank 0, which is stopped or out of reach."""
        end = {
            "schema_version": _SCHEMA_VERSION,
            "outcome": "failed",
            "exit_code": ExitCode.HANG,
            "cause": "hang",
            "message": verdict["message"],
            "step": committed_step(self._attempt.parent.parent),
            "finished_at": time.time(),
        }
        fsio.write_json(self._attempt / "end.json", end)

    def wait_for(self, names: set[str]) -> bool:
        """Wait for records of other watchdogs, though not for long; whether they came."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not names <= self.names():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def failed(self, code: int, cause: str, message: str) -> None:
        """Record why the own rank ended, unless it did so itself."""
        record = self._failure(self._rank, self._host, code, cause, message)
        with contextlib.suppress(OSError):
            fsio.create_json(self._attempt / f"failure-rank{self._rank}.json", record)

    def _failure(self, rank: int, host: str, code: int, cause: str, message: str) -> dict[str, Any]:
        return {
            "schema_version": _SCHEMA_VERSION,
            "rank": rank,
            "host": host,
            "exit_code": code,
            "cause": cause,
            "message": message,
            "traceback": "",
            "at": time.time(),
        }
