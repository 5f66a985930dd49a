"""What accounting remembers of jobs, one row an attempt; to explain only, never in the hot path.

`sacct -D` has a row for each start of a job that was requeued. Accounting may be off, lag by
seconds, and hang for 45 s where its database does (measured): it is asked with a short limit of its
own, and not to know is an answer.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.contract import JobHandle

SECONDS = 5.0
FIELDS = (
    "JobID",
    "State",
    "Reason",
    "NodeList",
    "ExitCode",
    "Submit",
    "Start",
    "End",
)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a job as accounting recorded it; times are unix seconds, None where unknown.

    Attributes:
        state: as sacct spells it: REQUEUED, PREEMPTED, NODE_FAIL, TIMEOUT, `CANCELLED by 0`, ...
        reason: why it waited last, empty where nothing is known.
        nodes: as SLURM abbreviates names, empty where it never started.
        exit_code: of the batch script, 128 + n for a signal; None until it has ended.
    """

    job_id: str
    state: str
    reason: str
    nodes: str
    exit_code: int | None
    submitted_at: float
    started_at: float | None
    ended_at: float | None


@dataclass(frozen=True, kw_only=True)
class History:
    """Attempts of each job, oldest first; `unknown` says why there are none of any."""

    attempts: Mapping[JobHandle, Sequence[Attempt]]
    unknown: str = ""


def read_history(handles: Sequence[JobHandle], *, seconds: float = SECONDS) -> History:
    """Ask accounting once for all jobs.

    Args:
        handles: jobs of SLURM.
        seconds: how long to wait for it.
    """
    if not handles:
        return History(attempts={})
    ids = ",".join(sorted({handle.job_id for handle in handles}))
    # Named jobs are looked for whenever they were, as long as no state is asked for.
    words = ["--duplicates", "--allocations", "--noheader", "--parsable2", f"--jobs={ids}"]
    command = ["sacct", *words, f"--format={','.join(FIELDS)}"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SACCT_", "SLURM_TIME"))}
    environment = {**kept, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return History(attempts={}, unknown=f"sacct: no answer within {seconds:g} s")
    except OSError as error:
        return History(attempts={}, unknown=f"sacct: {error.strerror}")
    if done.returncode != 0:
        return History(attempts={}, unknown=f"sacct: {done.stderr.strip().partition(chr(10))[0]}")
    rows = parse_sacct(done.stdout)
    return History(attempts={handle: _of(handle, rows) for handle in handles})


def _of(handle: JobHandle, rows: Sequence[Attempt]) -> list[Attempt]:
    """The rows of this job and not of another one that once had its number.

    A requeue renews the time of submission, so only the first row has that of the handle; what
    follows belongs to it until a job of the number was submitted that was no requeue.
    """
    same = [row for row in rows if row.job_id == handle.job_id]
    same.sort(key=lambda row: row.submitted_at)
    begin = handle.submitted_at - handle.margin_seconds - 1.0
    found: list[Attempt] = []
    for row in same:
        if row.submitted_at < begin:
            continue
        near = row.submitted_at <= handle.submitted_at + handle.margin_seconds + 1.0
        if not found and not near:
            break
        if found and not goes_on(found[-1]):
            break
        found.append(row)
    return found


def goes_on(attempt: Attempt) -> bool:
    """Whether the next row of the same number is this job again."""
    return attempt.state.split()[0].rstrip("+") in ("REQUEUED", "PREEMPTED", "NODE_FAIL")


def parse_sacct(text: str) -> list[Attempt]:
    """Read `sacct --duplicates --allocations --noheader --parsable2` with `FIELDS`, times as %s.

    Raises:
        ValueError: a line that does not have the fields asked for.
    """
    found = []
    for line in text.splitlines():
        if not line.strip():
            continue
        values = line.split("|")
        if len(values) != len(FIELDS):
            raise ValueError(f"sacct printed a line of {len(values)} fields: {line!r}")
        row = dict(zip(FIELDS, values, strict=True))
        ended = _time(row["End"])
        found.append(
            Attempt(
                job_id=row["JobID"],
                state=row["State"],
                reason="" if row["Reason"] in ("None", "") else row["Reason"],
                nodes="" if row["NodeList"] == "None assigned" else row["NodeList"],
                exit_code=None if ended is None else _exit_code(row["ExitCode"]),
                submitted_at=_time(row["Submit"]) or 0.0,
                started_at=_time(row["Start"]),
                ended_at=ended,
            )
        )
    return found


def _time(text: str) -> float | None:
    """Unix seconds; `Unknown` and `None` are not known."""
    return float(text) if re.fullmatch(r"\d+", text) else None


def _exit_code(text: str) -> int | None:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        return None
    code, signal = int(match[1]), int(match[2])
    return 128 + signal if signal else code
