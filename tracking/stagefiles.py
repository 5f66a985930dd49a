"""Reads what a stage left on disk, as far as tracking needs it; writes nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import fsio
from tracking.points import attempt_order

_STEP = re.compile(r"step_(\d+)")
_SUBMISSION = re.compile(r"submission-(\d+)(\.intent)?\.json")
# Not tried again: configuration, input, user code, out of memory, divergence.
FINAL_EXIT_CODES = frozenset({65, 66, 70, 71, 72})


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a stage reports to; the `tracking` block of a submission.

    `offline` means that compute nodes never connect and only `sync` delivers; every encoder becomes
    a version of `registered_model`; with `system_metrics` the outbox notes how busy its node is.
    """

    uri: str
    experiment: str
    run_id: str
    run_name: str
    stage: str
    run_dir: Path
    code_version: str = ""
    offline: bool = False
    registered_model: str = ""
    system_metrics: bool = False

    @property
    def store_root(self) -> Path:
        """The store that the run lies in."""
        return self.run_dir.parent.parent


@dataclass(frozen=True, kw_only=True)
class State:
    """What a stage is doing, in the words `status` uses; `final`: it will not go on by itself."""

    name: str
    reason: str = ""
    final: bool = False


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """One input of a stage that another stage made, with what that stage's folder says now."""

    slot: str
    ref: str
    artifact: str
    kind: str
    folder: Path
    record: Mapping[str, Any]
    tracking: Mapping[str, Any]

    def model_id(self, uri: str) -> str | None:
        """The logged model of this artifact on that server, once it was delivered."""
        if self.tracking.get("uri") != uri:
            return None
        found = self.tracking.get("models", {}).get(self.artifact)
        return str(found) if found else None

    def mlflow_run_id(self, uri: str) -> str | None:
        """The MLflow run of the stage that made it, on that server."""
        found = self.tracking.get("mlflow_run_id") if self.tracking.get("uri") == uri else None
        return str(found) if found else None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a stage; the parts are the contents of its files."""

    id: str
    start: Mapping[str, Any] = field(default_factory=dict)
    end: Mapping[str, Any] = field(default_factory=dict)
    exit: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[Mapping[str, Any], ...] = ()


def _read(path: Path) -> dict[str, Any]:
    return fsio.read_json_or_none(path) or {}


@dataclass(frozen=True)
class StageFiles:
    """One stage's folder."""

    path: Path

    def stage(self) -> dict[str, Any]:
        """stage.json, empty where nothing was submitted."""
        return _read(self.path / "stage.json")

    def newest_submission(self) -> int:
        """Number of the newest submission or claim; 0 where there is none."""
        matches = (_SUBMISSION.fullmatch(path.name) for path in self.path.glob("submission-*"))
        return max((int(match[1]) for match in matches if match), default=0)

    def submission(self, number: int | None = None) -> dict[str, Any]:
        """A submission's record or, before that is written, its claim; by default the newest."""
        number = self.newest_submission() if number is None else number
        name = f"submission-{number}"
        return _read(self.path / f"{name}.json") or _read(self.path / f"{name}.intent.json")

    def target(self, number: int | None = None, uri: str | None = None) -> Target | None:
        """Where that submission reports to, or None where it is not tracked.

        Args:
            number: the submission, the newest without one.
            uri: a server to use where the submission names none.
        """
        block = self.submission(number).get("tracking")
        uri = (block or {}).get("uri") or uri
        if not block or not uri:
            return None
        owner = self._owner() or block
        return Target(
            uri=uri,
            experiment=owner["experiment"],
            run_id=owner["run_id"],
            run_name=owner.get("run_name") or owner["run_id"],
            stage=owner["stage"],
            run_dir=Path(owner["store_run_dir"]),
            code_version=block.get("code_version") or "",
            offline=block.get("mode") == "offline",
            registered_model=block.get("registered_model") or "",
            system_metrics=bool(block.get("system_metrics")),
        )

    def _owner(self) -> Mapping[str, Any] | None:
        """The `tracking` block of the run that started the stage first, whose child it is.

        Whoever delivers, and whenever, then makes the stage a child of the same run.
        """
        for attempt in self.attempts():
            block = self.submission(attempt_order(attempt.id)[0]).get("tracking")
            if block and Path(block["store_run_dir"]).is_dir():
                return dict(block)
        return None

    def result(self) -> dict[str, Any] | None:
        """result.json if it belongs to this stage's key: success."""
        result = fsio.read_json_or_none(self.path / "result.json")
        if result is None or result.get("key") != self.stage().get("key"):
            return None
        return result

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first."""
        folders = (self.path / "attempts").glob("s*r*")
        return [
            Attempt(
                id=folder.name,
                start=_read(folder / "start.json"),
                end=_read(folder / "end.json"),
                exit=_read(folder / "exit.json"),
                failures=tuple(_read(path) for path in sorted(folder.glob("failure-rank*.json"))),
            )
            for folder in sorted(folders, key=lambda folder: attempt_order(folder.name))
        ]

    def last_moment(self) -> float | None:
        """Unix time of the last sign of life: an end, a start or a progress report."""
        moments = [_read(self.path / "progress.json").get("updated_at")]
        for attempt in self.attempts():
            parts = (attempt.start.get("started_at"), attempt.end.get("finished_at"))
            moments.extend([*parts, attempt.exit.get("finished_at")])
        return max((float(moment) for moment in moments if moment), default=None)

    def committed_step(self) -> float:
        """Step of the newest complete checkpoint: -1 before it, infinite where none is kept."""
        steps = [
            int(match[1])
            for path in self.path.glob("checkpoints/step_*/manifest.json")
            if (match := _STEP.fullmatch(path.parent.name))
        ]
        if not steps and "checkpoint" not in self.stage().get("config", {}):
            return math.inf
        return max(steps, default=-1)

    def upstream(self) -> Iterator[Upstream]:
        """The inputs that other stages made."""
        for slot, inputs in self.stage().get("inputs", {}).items():
            for item in inputs:
                if "stage" not in item:
                    continue
                folder = self.path.parent / item["stage"]
                result = StageFiles(folder).result() or {}
                yield Upstream(
                    slot=slot,
                    ref=item["ref"],
                    artifact=item["artifact"],
                    kind=item["kind"],
                    folder=folder,
                    record=result.get("artifacts", {}).get(item["artifact"], {}),
                    tracking=_read(folder / "tracking.json"),
                )

    def fetched_models(self) -> list[str]:
        """Logged models among the inputs that were fetched from MLflow as files."""
        entries = (one for many in self.stage().get("inputs", {}).values() for one in many)
        return [str(one["model_id"]) for one in entries if one.get("model_id")]

    def figures(self) -> list[Path]:
        """Pictures and tables for people, in order of name."""
        outputs = self.path / "outputs"
        found = [path for path in (outputs / "figures").rglob("*") if path.is_file()]
        for suffix in ("md", "csv", "html", "svg", "png"):
            found.extend(outputs.glob(f"*.{suffix}"))
        return sorted(found)

    def job_files(self) -> list[Path]:
        """Scripts of the jobs and what rank 0 of each has printed, in order of name."""
        logs = self.path / "logs"
        patterns = ("*.sh", "*_0_log.out", "*_log.err")
        return sorted({path for pattern in patterns for path in logs.glob(pattern)})

    def state(self) -> State:
        """What the files alone say; the scheduler may know better of a job that vanished."""
        if self.result() is not None:
            return State(name="succeeded", final=True)
        attempts = self.attempts()
        cancelled = fsio.read_json_or_none(self.path / "cancel.json")
        last = attempts[-1] if attempts else Attempt(id="")
        if cancelled is not None and (last.end or last.exit or not last.start):
            return State(name="cancelled", reason=f"by {cancelled.get('user', '?')}", final=True)
        newest = self.newest_submission()
        if not attempts or attempt_order(last.id)[0] < newest:
            return State(name="waiting" if newest else "planned")
        return _state_of(last)


def _state_of(last: Attempt) -> State:
    """The state that the newest attempt's files tell."""
    reason = _reason(last)
    decision = last.exit.get("decision")
    if decision == "stop":
        return State(name="failed", reason=reason, final=True)
    if decision == "requeue" or last.end.get("outcome") == "preempted":
        return State(name="requeued", reason=reason)
    if last.end.get("outcome") == "failed":
        final = last.end.get("exit_code") in FINAL_EXIT_CODES
        return State(name="failed" if final else "requeued", reason=reason, final=final)
    return State(name="running")


def _reason(attempt: Attempt) -> str:
    parts = [attempt.end.get("cause"), attempt.end.get("message") or attempt.exit.get("reason")]
    if not any(parts) and attempt.failures:
        parts = [attempt.failures[0].get("cause"), attempt.failures[0].get("message")]
    return ": ".join(str(part) for part in parts if part)
