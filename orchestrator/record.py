"""What the files of one stage say, read once; the ground on which its status is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.contract import JobHandle, JobState, Phase
from orchestrator.store import StageDir, Store, Submission, attempt_number

Attempt = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage of a run: its line of plan.json and the content of its folder.

    `claim` is the newest intent to submit, `submission` the newest one that was recorded, `adopted`
    the job that the scheduler knows of a claim without a record.
    """

    plan: Mapping[str, Any]
    folder: StageDir
    config: Mapping[str, Any]
    result: Mapping[str, Any] | None
    cancel: Mapping[str, Any] | None
    progress: Mapping[str, Any] | None
    submission: Submission | None
    claim: Mapping[str, Any] | None
    jobs: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    adopted: JobHandle | None = None

    @property
    def claimed(self) -> bool:
        """Whether somebody took the next submission and has not recorded what came of it."""
        return self.claim is not None and (
            self.submission is None or int(self.claim["n"]) > self.submission.n
        )

    @property
    def handle(self) -> JobHandle | None:
        """The job whose state matters; none once there is a result."""
        if self.result is not None:
            return None
        if self.claimed:
            return self.adopted
        return self.submission.handle if self.submission else None

    def job_id(self, state: JobState | None) -> str | None:
        """The job to show: the newest, or while a successor only waits for it, the one at work."""
        n = self.submission.n if self.submission else 0
        jobs, now = self.folder.jobs(n), self.current
        if now is None or (state is not None and state.phase is Phase.PENDING):
            return self.jobs[-1] if self.jobs else None
        begun = [job for number, job in jobs.items() if number <= attempt_number(str(now["id"]))]
        return begun[-1] if begun else None

    @property
    def current(self) -> Attempt | None:
        """The newest attempt of the newest submission; those of older ones no longer count."""
        mine = self._of_newest()
        return mine[-1] if mine else None

    @property
    def before(self) -> Attempt | None:
        """The attempt that the current one goes on from, if that is of the same submission."""
        mine = self._of_newest()
        return mine[-2] if len(mine) > 1 else None

    def _of_newest(self) -> list[Attempt]:
        newest = self.claim if self.claimed else None
        n = int(newest["n"]) if newest else self.submission.n if self.submission else 0
        return [one for one in self.attempts if str(one["id"]).startswith(f"s{n:03d}r")]


def read_records(run_id: str, store: Store) -> list[StageRecord]:
    """All stages of a run in the order of its plan. Raises FileNotFoundError: no such run."""
    entries = store.read_plan(run_id)["stages"]
    return [_read(entry, store.stage_dir(entry["kind"], entry["key"])) for entry in entries]


def stage_folder(run_id: str, name: str, store: Store) -> StageDir:
    """Folder of a stage that the run's plan names. Raises KeyError: it names none such."""
    entries = {entry["name"]: entry for entry in store.read_plan(run_id)["stages"]}
    return store.stage_dir(entries[name]["kind"], entries[name]["key"])


def _read(entry: Mapping[str, Any], folder: StageDir) -> StageRecord:
    return StageRecord(
        plan=entry,
        folder=folder,
        config=(folder.stage() or {}).get("config", {}),
        result=folder.result(),
        cancel=folder.cancelled(),
        progress=folder.progress(),
        submission=folder.latest_submission(),
        claim=folder.latest_intent(),
        jobs=folder_jobs(folder),
        attempts=tuple(folder.attempt_records()),
    )


def folder_jobs(folder: StageDir) -> tuple[str, ...]:
    """Ids of all jobs the stage ever had, in the order of submission."""
    newest = folder.latest_submission()
    numbers = range(1, newest.n + 1) if newest else ()
    return tuple(job for n in numbers for job in folder.jobs(n).values())
