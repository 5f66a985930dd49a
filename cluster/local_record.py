"""What a local executor tells other processes of its user: one small file a job, gone with it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import fsio
from cluster.contract import JobHandle, JobState, Phase, SchedulerError

_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process for good: boot id, pid and start time; a pid alone is used again."""

    boot: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"{self.boot}-{self.pid}-{self.started}"

    @staticmethod
    def parse(text: str) -> Owner | None:
        """Read what `str` wrote; None for anything else."""
        parts = text.split("-")
        if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
            return None
        return Owner(boot=parts[0], pid=int(parts[1]), started=int(parts[2]))

    def alive(self) -> bool:
        """Whether this very process still lives on this machine."""
        return self.boot == boot_id() and start_time(self.pid) == self.started


def boot_id() -> str:
    """First eight characters of the kernel's boot id; where there is none, of the host name."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    return fsio.sha256_text(socket.gethostname())[:8]


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is no such process.

    Without /proc it is 0 for every living process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _start_time_without_proc(pid)
    return None if fields[0] in "ZX" else int(fields[19])


def _start_time_without_proc(pid: int) -> int | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return 0
    return 0


def this_process() -> Owner:
    """The owner that this process is."""
    return Owner(boot=boot_id(), pid=os.getpid(), started=start_time(os.getpid()) or 0)


def records_folder() -> Path:
    """Where the local executors of this user on this machine keep their records.

    Raises:
        SchedulerError: the folder belongs to somebody else or others may write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"orchestrate-{os.geteuid()}"
    fsio.make_dir(folder)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SchedulerError(
            f"{folder} is not a private folder of {getpass.getuser()}: remove it, or set TMPDIR"
        )
    return folder


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job of one executor process, as others see it."""

    job_id: str
    name: str
    submitted_at: float
    state: JobState

    @property
    def handle(self) -> JobHandle:
        """The job's name for good."""
        return JobHandle(
            executor="local",
            cluster=socket.gethostname(),
            job_id=self.job_id,
            submitted_at=self.submitted_at,
        )


class OwnRecords:
    """The records this process keeps; it is their only writer."""

    def __init__(self) -> None:
        self._owner = this_process()
        self._folder = records_folder() / str(self._owner)
        _sweep(self._folder.parent)

    def create(self, name: str) -> JobRecord:
        """A record for a new job, with the next free number of this process."""
        fsio.make_dir(self._folder)
        n = 1
        while True:
            record = JobRecord(
                job_id=f"{self._owner}.{n}",
                name=name,
                submitted_at=time.time(),
                state=JobState(phase=Phase.PENDING, reason="queued"),
            )
            if fsio.create_json(self._path(record.job_id), _to_json(record)):
                return record
            n += 1

    def update(self, record: JobRecord) -> None:
        """Replace a job's record."""
        fsio.write_json(self._path(record.job_id), _to_json(record))

    def cancel_wanted(self, job_id: str) -> bool:
        """Whether another process has asked to cancel the job."""
        return self._path(job_id).with_suffix(".cancel").exists()

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{job_id.rpartition('.')[2]}.json"


def read(job_id: str) -> JobRecord | None:
    """The record of a job of any process of this user; None where that process is gone."""
    owner = Owner.parse(job_id.rpartition(".")[0])
    if owner is None or not owner.alive():
        return None
    raw = fsio.read_json_or_none(
        records_folder() / str(owner) / f"{job_id.rpartition('.')[2]}.json"
    )
    if raw is None:
        return None
    return JobRecord(
        job_id=raw["job_id"],
        name=raw["name"],
        submitted_at=raw["submitted_at"],
        state=JobState(**{**raw["state"], "phase": Phase(raw["state"]["phase"])}),
    )


def ask_to_cancel(job_id: str) -> None:
    """Leave a mark that the owner of the job sees within a second."""
    folder = records_folder() / job_id.rpartition(".")[0]
    if folder.is_dir():
        mark = folder / f"{job_id.rpartition('.')[2]}.cancel"
        fsio.create_json(mark, {"pid": os.getpid(), "at": time.time()})


def iterate() -> Iterator[JobRecord]:
    """Records of all living executor processes of this user on this machine."""
    for folder in sorted(records_folder().iterdir()):
        for path in sorted(folder.glob("*.json")):
            record = read(f"{folder.name}.{path.stem}")
            if record is not None:
                yield record


def _to_json(record: JobRecord) -> dict[str, object]:
    state = record.state
    return {
        "schema_version": _SCHEMA_VERSION,
        "job_id": record.job_id,
        "name": record.name,
        "submitted_at": record.submitted_at,
        "state": {
            "phase": state.phase.value,
            "reason": state.reason,
            "restarts": state.restarts,
            "exit_code": state.exit_code,
        },
    }


def _sweep(root: Path) -> None:
    """Remove what ended processes left."""
    for folder in root.iterdir():
        owner = Owner.parse(folder.name)
        if owner is not None and not owner.alive():
            shutil.rmtree(folder, ignore_errors=True)
