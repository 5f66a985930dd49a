"""Pure parsers of squeue and scontrol output; every SLURM job state is mapped to a phase once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.contract import JobState, Phase

# Base states and flags of slurm.h, 22.05 to 25.11, as squeue spells them. A job that is COMPLETING
# is still on its nodes and may yet be requeued, so it is not gone.
PHASES: Mapping[str, Phase] = {
    "PENDING": Phase.PENDING,
    "RUNNING": Phase.RUNNING,
    "SUSPENDED": Phase.RUNNING,
    "COMPLETED": Phase.GONE,
    "CANCELLED": Phase.GONE,
    "FAILED": Phase.GONE,
    "TIMEOUT": Phase.GONE,
    "NODE_FAIL": Phase.GONE,
    "PREEMPTED": Phase.GONE,
    "BOOT_FAIL": Phase.GONE,
    "DEADLINE": Phase.GONE,
    "OUT_OF_MEMORY": Phase.GONE,
    "LAUNCH_FAILED": Phase.GONE,
    "RECONFIG_FAIL": Phase.GONE,
    "COMPLETING": Phase.RUNNING,
    "CONFIGURING": Phase.RUNNING,
    "EXPEDITING": Phase.PENDING,
    "POWER_UP_NODE": Phase.PENDING,
    "REQUEUED": Phase.PENDING,
    "REQUEUE_FED": Phase.PENDING,
    "REQUEUE_HOLD": Phase.PENDING,
    "RESIZING": Phase.RUNNING,
    "RESV_DEL_HOLD": Phase.PENDING,
    "REVOKED": Phase.GONE,
    "SIGNALING": Phase.RUNNING,
    "SPECIAL_EXIT": Phase.PENDING,
    "STAGE_OUT": Phase.RUNNING,
    "STOPPED": Phase.RUNNING,
    "UPDATE_DB": Phase.RUNNING,
}

# The name comes last: of jobs that are not ours it may hold the separator.
SQUEUE_FIELDS = (
    *("JobArrayID", "State", "Reason", "RestartCnt", "SubmitTime", "StartTime", "exit_code"),
    "Name",
)
SQUEUE_FORMAT = ",".join(f"{field}:|" for field in SQUEUE_FIELDS)


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """One line of squeue; `submitted_at` is unix seconds, renewed by SLURM at every requeue.

    `job_id` is `<array>_<task>` for a job of an array.
    """

    job_id: str
    name: str
    submitted_at: float
    state: JobState


def own_job_id(environ: Mapping[str, str]) -> str | None:
    """The id by which SLURM's commands know the job of this process, None outside of SLURM.

    For a job of an array that is `<array>_<task>`: the number in SLURM_JOB_ID is for one of its
    tasks the id of the whole array as well, and what is done to it is done to all.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")


def phase(state: str) -> Phase:
    """The phase of a SLURM state; `CANCELLED by 1000` counts as CANCELLED.

    Raises:
        ValueError: a state this table does not know; guessing could run a job twice.
    """
    word = state.split()[0].rstrip("+") if state.strip() else ""
    try:
        return PHASES[word]
    except KeyError:
        raise ValueError(f"unknown SLURM job state {state!r}") from None


def parse_squeue(text: str) -> list[QueuedJob]:
    """Read `squeue --noheader -O SQUEUE_FORMAT` with SLURM_TIME_FORMAT=%s, SLURM_BITSTR_LEN=0.

    The tasks of an array that still wait stand in one line, which becomes one job for each. squeue
    can print them one by one itself (`--array`), and then leaves out the last of tasks that follow
    each other in equal steps: of 1,3,5,7,9,11,13 it shows six (22.05).

    Raises:
        ValueError: a line that does not have the fields asked for.
    """
    jobs = []
    for line in text.splitlines():
        if not line.strip():
            continue
        values = line.removesuffix("|").split("|", len(SQUEUE_FIELDS) - 1)
        if len(values) != len(SQUEUE_FIELDS):
            raise ValueError(f"squeue printed a line of {len(values)} fields: {line!r}")
        job = _job(dict(zip(SQUEUE_FIELDS, (v.strip() for v in values), strict=True)))
        jobs += [replace(job, job_id=job_id) for job_id in expand_tasks(job.job_id)]
    return jobs


def expand_tasks(job_id: str) -> list[str]:
    """The ids that `7_[0-2,5-9:2%4]` stands for: 7_0, 7_1, 7_2, 7_5, 7_7, 7_9; others are one.

    Raises:
        ValueError: an expression that was cut off or is of another form.
    """
    match = re.fullmatch(r"(\d+)_\[([^%]*)(?:%\d+)?\]", job_id)
    if match is None:
        if not re.fullmatch(r"\d+(_\d+)?", job_id):
            raise ValueError(f"unknown form of a job id: {job_id!r}")
        return [job_id]
    tasks: list[int] = []
    for span in match[2].split(","):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", span)
        if numbers is None:
            raise ValueError(f"unknown form of array tasks: {job_id!r}")
        low, high, step = numbers.groups()
        tasks += range(int(low), int(high or low) + 1, int(step or 1))
    return [f"{match[1]}_{task}" for task in tasks]


def _job(row: Mapping[str, str]) -> QueuedJob:
    now = phase(row["State"])
    state = row["State"].split()[0]
    # The reason says why a job waits; of one that ended, the state itself does.
    waits = row["Reason"] if row["Reason"] not in ("None", "") else state
    reason = waits if now is Phase.PENDING else state
    return QueuedJob(
        job_id=row["JobArrayID"],
        name=row["Name"],
        submitted_at=float(row["SubmitTime"]),
        state=JobState(
            phase=now,
            reason=reason,
            restarts=int(row["RestartCnt"] or 0),
            start_at=float(row["StartTime"]) if row["StartTime"].isdecimal() else None,
            exit_code=_exit_code(row["exit_code"]) if now is Phase.GONE else None,
        ),
    )


def _exit_code(text: str) -> int | None:
    """A raw wait status (768 is exit 3, 9 is SIGKILL) or `code:signal`; 128 + n for a signal."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match is None:
        return None
    if match.group(2) is not None:
        code, signal = int(match.group(1)), int(match.group(2))
    else:
        code, signal = int(text) >> 8, int(text) & 127
    return 128 + signal if signal else code


def parse_scontrol_job(text: str) -> dict[str, str]:
    """Read `scontrol -o show job ID`: `Key=Value` words, values with blanks included."""
    found: dict[str, str] = {}
    word = r"[A-Z][A-Za-z_/:]*"
    for key, value in re.findall(rf"(?:^|\s)({word})=(.*?)(?=\s+{word}=|$)", text.strip()):
        # The first wins: a comment, which comes late, cannot pretend to be a state.
        found.setdefault(key, value.strip())
    return found


def parse_scontrol_config(text: str) -> dict[str, str]:
    """Read `scontrol show config`: `Key = Value` lines; others are passed over."""
    values = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip():
            values[key.strip()] = value.strip()
    return values


_DEPENDENCY = re.compile(r"([a-z]+):(\d+(?:_(?:\d+|\*))?)[^,?]*")


@dataclass(frozen=True, kw_only=True)
class Dependent:
    """A pending job and what it waits for: kinds such as `afterany` and ids such as 7, 7_3, 7_*.

    `folder` is where it will start; ours start in the store.
    """

    job_id: str
    on: tuple[tuple[str, str], ...]
    folder: str = ""

    @property
    def name(self) -> str:
        """The id that scontrol takes: of an array that of all its tasks that wait."""
        return self.job_id.partition("_[")[0]

    def waits_for(self, job_id: str, kind: str | None = None) -> bool:
        """Whether it waits for the job, or for all tasks of the array that the job is of."""
        ids = {job_id, f"{job_id.partition('_')[0]}_*"}
        return any(on in ids and kind in (None, how) for how, on in self.on)

    def and_after(self, job_id: str) -> str:
        """Its dependency as scontrol takes it, with the end of another job added."""
        terms = [f"{how}:{on.removesuffix('_*')}" for how, on in self.on]
        return ",".join([*terms, f"afterany:{job_id.partition('_')[0]}"])

    def with_success_of(self, job_id: str, instead_of: str) -> str:
        """Its dependency with the success of one job in place of that of another."""
        new = {("afterok", instead_of): ("afterok", job_id.partition("_")[0])}
        terms = (new.get(term, term) for term in self.on)
        return ",".join(f"{how}:{on.removesuffix('_*')}" for how, on in terms)


def parse_dependents(text: str) -> list[Dependent]:
    """Read `squeue --noheader -O "JobArrayID:|,Dependency:|,WorkDir:|"`: jobs that wait for others.

    A dependency is printed as `afterok:7_*(unfulfilled),afterany:9(unfulfilled)`; alternatives,
    joined by `?`, and `singleton` are no conjunction of jobs and left out.
    """
    found = []
    for line in text.splitlines():
        job_id, dependency, folder = (*line.removesuffix("|").split("|", 2), "", "")[:3]
        terms = _DEPENDENCY.findall(dependency)
        if terms and "?" not in dependency and "singleton" not in dependency:
            found.append(Dependent(job_id=job_id.strip(), on=tuple(terms), folder=folder.strip()))
    return found


def parse_job_fields(text: str) -> dict[str, str] | None:
    """Read one line of `squeue -O "State:|,Reason:|,RestartCnt:|,PreemptTime:|"` under the names
    of `scontrol show job`; None where there is none."""
    values = [value.strip() for value in text.strip().split("|")]
    if len(values) < 4:
        return None
    return dict(zip(("JobState", "Reason", "Restarts", "PreemptTime"), values, strict=False))
