"""The only module that knows where things lie in the store; reads, writes and claims them."""

from __future__ import annotations

import getpass
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster import fsio, progress
from cluster.contract import JobHandle
from cluster.successor import successors

SCHEMA_VERSION = 1
_SUBMISSION = re.compile(r"submission-(\d+)\.json")
_ATTEMPT = re.compile(r"s(\d+)r(\d+)")
_INTENT = re.compile(r"submission-(\d+)\.intent\.json")


def attempt_number(name: str) -> int:
    """Which attempt of its submission `s001r1000` is: 1000; -1 of a name of another form."""
    return _in_order(Path(name))[1]


def _in_order(attempt: Path) -> tuple[int, int, str]:
    """Names have three digits of each number, or more: they do not sort by their letters."""
    match = _ATTEMPT.fullmatch(attempt.name)
    return (int(match[1]), int(match[2]), "") if match else (-1, -1, attempt.name)


def default_store() -> Path:
    """`$ORCHESTRATE_STORE`, else `store:` of the user's configuration file, else `./runs`."""
    named = os.environ.get("ORCHESTRATE_STORE")
    if named:
        return Path(named).expanduser().absolute()
    base = Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser()
    config = base / "orchestrate" / "config.yaml"
    if config.is_file():
        import yaml

        value = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("store")
        if value:
            return Path(value).expanduser().absolute()
    return Path("runs").absolute()


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One hand-over of a stage to an executor, as recorded behind the intent.

    `handle` is the job that carries it now, or will when the one before it fails.
    """

    n: int
    run_id: str
    stage: str
    job_name: str
    handle: JobHandle | None
    dependencies: tuple[str, ...]
    resources: Mapping[str, Any]
    tracking: Mapping[str, Any] | None
    code: str | None


class StageDir:
    """One stage's folder: `<store>/stages/<kind>-<key12>`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stage_file = path / "stage.json"
        self.result_file = path / "result.json"
        self.cancel_file = path / "cancel.json"
        self.progress_file = path / "progress.json"
        self.metrics_file = path / "metrics.jsonl"
        self.tracking_file = path / "tracking.json"
        self.attempts = path / "attempts"
        self.logs = path / "logs"
        self.checkpoints = path / "checkpoints"
        self.outputs = path / "outputs"
        self.scratch = path / "scratch"
        self.cache = path.parent.parent / "cache"

    def stage(self) -> dict[str, Any] | None:
        """What to do, or None where nothing was submitted yet."""
        return fsio.read_json_or_none(self.stage_file)

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Say what to do; only for whoever has claimed the next submission.

        What is not in the key, such as workers and the parts that share the work, may have changed.
        """
        value = {"schema_version": SCHEMA_VERSION, **spec}
        if value != self.stage():
            fsio.write_json(self.stage_file, value)

    def result(self) -> dict[str, Any] | None:
        """What came out; its existence, with this stage's key, is success."""
        stage, result = self.stage(), fsio.read_json_or_none(self.result_file)
        if stage is None or result is None or result.get("key") != stage.get("key"):
            return None
        return result

    def cancelled(self) -> dict[str, Any] | None:
        """Who cancelled the stage and when; a new submission clears it."""
        return fsio.read_json_or_none(self.cancel_file)

    def committed_step(self) -> int:
        """How far its committed work goes; the job checks if that is sound."""
        return progress.committed_step(self.path)

    def has_committed(self) -> bool:
        """Whether another attempt has anything to go on from."""
        return progress.has_committed(self.path)

    def progress(self) -> dict[str, Any] | None:
        """The newest progress report of rank 0."""
        return fsio.read_json_or_none(self.progress_file)

    def latest_submission(self) -> Submission | None:
        """The newest submission that reached an executor."""
        return self.submission(max(self._numbers(_SUBMISSION), default=0))

    def submission(self, n: int) -> Submission | None:
        """Submission number `n`, if it was recorded."""
        raw = fsio.read_json_or_none(self.path / f"submission-{n}.json")
        if raw is None:
            return None
        handle = raw["handle"]
        return Submission(
            n=raw["n"],
            run_id=raw["run_id"],
            stage=raw["stage"],
            job_name=raw["job_name"],
            handle=self._newest(n, JobHandle(**handle)) if handle else None,
            dependencies=tuple(raw["dependencies"]),
            resources=raw["resources"],
            tracking=raw["tracking"],
            code=raw["code"],
        )

    def jobs(self, n: int) -> dict[int, str]:
        """The jobs of submission `n`, oldest first, by the number of their first attempt."""
        raw = fsio.read_json_or_none(self.path / f"submission-{n}.json") or {}
        first = {0: str(raw["handle"]["job_id"])} if raw.get("handle") else {}
        later = {s.number: s.job_id for s in successors(self.path, n) if not s.taken_back}
        return {**first, **later}

    def _newest(self, n: int, first: JobHandle) -> JobHandle:
        """The last of a submission's jobs that was not taken back, with the one before it."""
        newest = first
        for one in successors(self.path, n):
            if not one.taken_back:
                before = replace(newest, before=None)
                newest = replace(
                    first,
                    job_id=one.job_id,
                    submitted_at=one.submitted_at,
                    margin_seconds=one.margin_seconds,
                    array_size=0,
                    before=before,
                )
        return newest

    def intent(self, n: int) -> dict[str, Any] | None:
        """The claim of submission `n`, if there is one."""
        return fsio.read_json_or_none(self.path / f"submission-{n}.intent.json")

    def latest_intent(self) -> dict[str, Any] | None:
        """The newest claim, whether or not a job came of it."""
        return self.intent(max(self._numbers(_INTENT), default=0))

    def claim(self, n: int, job_name: str, details: Mapping[str, Any]) -> bool:
        """Claim submission `n`; False when another submitter was first.

        `details` are what the job needs of its submission (run id, resources, tracking, code): they
        lie in the claim, because the job may start before its handle has been recorded.
        """
        fsio.make_dir(self.path)
        owner = {
            "schema_version": SCHEMA_VERSION,
            "n": n,
            "job_name": job_name,
            "user": getpass.getuser(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "at": time.time(),
        }
        intent = self.path / f"submission-{n}.intent.json"
        return fsio.create_json(intent, {**details, **owner})

    def next_number(self) -> int:
        """The number the next submission takes."""
        return max([*self._numbers(_INTENT), *self._numbers(_SUBMISSION)], default=0) + 1

    def record_submission(self, submission: Submission) -> None:
        """Write what was handed over; the claim made this process its only writer."""
        value = {"schema_version": SCHEMA_VERSION, **asdict(submission)}
        fsio.write_json(self.path / f"submission-{submission.n}.json", value)

    def attempt_records(self) -> list[dict[str, Any]]:
        """All attempts, oldest first: `id`, and what start, end, exit and failure files say."""
        records = []
        if not self.attempts.is_dir():
            return []
        for folder in sorted(self.attempts.iterdir(), key=_in_order):
            record: dict[str, Any] = {"id": folder.name}
            for part in ("start", "end", "exit"):
                record[part] = fsio.read_json_or_none(folder / f"{part}.json")
            record["failures"] = [
                fsio.read_json(path) for path in sorted(folder.glob("failure-rank*.json"))
            ]
            records.append(record)
        return records

    def _numbers(self, pattern: re.Pattern[str]) -> list[int]:
        if not self.path.is_dir():
            return []
        matches = (pattern.fullmatch(entry.name) for entry in self.path.iterdir())
        return [int(match.group(1)) for match in matches if match]


class Store:
    """The root on the shared file system: content-addressed stages, runs that view them, code."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages = root / "stages"
        self.runs = root / "runs"
        self.code = root / "code"
        self.arrays = root / "arrays"

    def stage_dir(self, kind: str, key: str) -> StageDir:
        """The folder of a stage with this identity, existing or not."""
        return StageDir(self.stages / f"{kind}-{key[:12]}")

    def array_dir(self, name: str) -> Path:
        """The folder of a job array: its script and links to the logs of its tasks."""
        return self.arrays / name

    def run_dir(self, run_id: str) -> Path:
        """The folder of a run."""
        return self.runs / run_id

    def run_ids(self) -> list[str]:
        """All runs, oldest first by their recorded time of first submission."""
        if not self.runs.is_dir():
            return []
        found = []
        for folder in self.runs.iterdir():
            try:
                run = fsio.read_json_or_none(folder / "run.json")
            except fsio.DamagedFile:  # it is still a run: whoever asks for it is told
                run = {"created_at": folder.stat().st_mtime}
            if run is not None:
                found.append((run["created_at"], folder.name))
        return [name for _, name in sorted(found)]

    def read_run(self, run_id: str) -> dict[str, Any]:
        """run.json of a run. Raises FileNotFoundError."""
        return fsio.read_json(self.run_dir(run_id) / "run.json")

    def read_plan(self, run_id: str) -> dict[str, Any]:
        """plan.json of a run: its stages in order, with name, kind, key and inputs."""
        return fsio.read_json(self.run_dir(run_id) / "plan.json")

    def resolve_run(self, text: str) -> list[str]:
        """Runs a person may mean by `text`: an exact id, `latest`, or a part of an id."""
        ids = self.run_ids()
        if text in ids:
            return [text]
        if text == "latest":
            return ids[-1:]
        return [run_id for run_id in ids if text in run_id]

    def iter_stage_dirs(self) -> Iterator[StageDir]:
        """All stage folders of the store."""
        if self.stages.is_dir():
            for folder in sorted(self.stages.iterdir()):
                if (folder / "stage.json").exists():
                    yield StageDir(folder)
