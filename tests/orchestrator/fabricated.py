"""A run whose files are written by hand, so that every state of a stage can be laid out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.contract import (
    ArrayRequest,
    JobHandle,
    JobRequest,
    JobState,
    Phase,
    SchedulerError,
)
from orchestrator.store import StageDir, Store, Submission

KINDS = {"pretrain": "pretrain", "probe": "probe", "report": "report"}
UPSTREAM: dict[str, tuple[str, ...]] = {
    "pretrain": (),
    "probe": ("pretrain",),
    "report": ("probe",),
}


def handle(job_id: str) -> JobHandle:
    """A job of the fake scheduler."""
    return JobHandle(executor="fake", cluster="test", job_id=job_id, submitted_at=1.0)


@dataclass
class FakeExecutor:
    """Answers `query` and `find` from tables and counts how often it is asked."""

    phases: Mapping[str, Phase] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    starts: Mapping[str, float] = field(default_factory=dict)
    found: Mapping[str, JobHandle] = field(default_factory=dict)
    down: bool = False
    name: str = "fake"
    queries: list[Sequence[JobHandle]] = field(default_factory=list)

    def query(self, handles: Sequence[JobHandle]) -> dict[JobHandle, JobState]:
        self.queries.append(handles)
        if self.down:
            raise SchedulerError("squeue: exit code 1: Unable to contact slurm controller")
        return {
            one: JobState(
                phase=self.phases.get(one.job_id, Phase.GONE),
                reason=self.reasons.get(one.job_id, ""),
                start_at=self.starts.get(one.job_id),
            )
            for one in handles
        }

    def find(self, name: str, task: int | None = None) -> JobHandle | None:
        if self.down:
            raise SchedulerError("squeue: exit code 1: Unable to contact slurm controller")
        return self.found.get(name if task is None else f"{name}_{task}")

    def submit(self, request: JobRequest) -> JobHandle:
        raise SchedulerError("not in this test")

    def submit_array(self, array: ArrayRequest) -> list[JobHandle]:
        raise SchedulerError("not in this test")

    def array_limit(self) -> int:
        return 1001

    def render(self, request: JobRequest | ArrayRequest) -> str:
        job = request if isinstance(request, JobRequest) else request.tasks[0]
        return f"#!/bin/bash\n# {job.name}\n"

    def cancel(self, handles: Sequence[JobHandle]) -> None:
        self.cancelled = list(handles)

    def wait(
        self, handles: Sequence[JobHandle], on_tick: Any = None, timeout: float | None = None
    ) -> dict[JobHandle, JobState]:
        states = self.query(handles)
        if on_tick is not None:
            on_tick(states)
        return states


class FabricatedRun:
    """A run of three stages in a chain, pretrain -> probe -> report, with nothing done yet."""

    def __init__(self, root: Path, run_id: str = "demo-0123abcd") -> None:
        self.store = Store(root)
        self.run_id = run_id
        folder = fsio.make_dir(self.store.run_dir(run_id))
        fsio.write_json(
            folder / "run.json",
            {
                "run_id": run_id,
                "recipe": "demo",
                "argv": ["submit", "recipes/demo.yaml", "seed=1"],
                "created_at": 1000.0,
                "user": "ann",
                "host": "login1",
                "executor": "fake",
            },
        )
        entries = [
            {
                "name": name,
                "kind": kind,
                "key": self.key(name),
                "stage": f"{kind}-{self.key(name)[:12]}",
                "inputs": {"encoder": [f"{up}.encoder" for up in UPSTREAM[name]]},
                "upstream": list(UPSTREAM[name]),
                "action": "run",
            }
            for name, kind in KINDS.items()
        ]
        fsio.write_json(folder / "plan.json", {"run_id": run_id, "stages": entries})

    @staticmethod
    def key(name: str) -> str:
        return fsio.sha256_text(name)

    def stage(self, name: str) -> StageDir:
        return self.store.stage_dir(KINDS[name], self.key(name))

    def submitted(self, name: str, n: int = 1, job_id: str | None = None) -> str:
        """Write stage.json, claim and submission; returns the job id."""
        stage = self.stage(name)
        job = job_id or f"{len(name)}{n}"
        self.claimed(name, n)
        stage.record_submission(
            Submission(
                n=n,
                run_id=self.run_id,
                stage=name,
                job_name=f"{name}-s{n}",
                handle=handle(job),
                dependencies=(),
                resources={},
                tracking=None,
                code=None,
            )
        )
        return job

    def claimed(self, name: str, n: int = 1, task: int | None = None) -> None:
        stage = self.stage(name)
        fsio.make_dir(stage.logs)
        config = {"seed": 0, "micro_batch": 16, "optimizer": {"lr": 0.01}}
        value = {"key": self.key(name), "kind": KINDS[name], "name": name, "config": config}
        fsio.write_json(stage.stage_file, value)
        assert stage.claim(n, f"{name}-s{n}", {"run_id": self.run_id, "task": task})

    def attempt(self, name: str, id: str = "s001r000", **parts: Mapping[str, Any]) -> Path:
        """Write an attempt: `start`, `end`, `exit`, `failure_rank<r>` by name."""
        folder = fsio.make_dir(self.stage(name).attempts / id)
        for part, value in parts.items():
            fsio.write_json(folder / f"{part.replace('_', '-')}.json", value)
        return folder

    def started(self, name: str, id: str = "s001r000", **parts: Mapping[str, Any]) -> Path:
        start = {"job_id": "1", "host": "n14", "restart": 0, "started_at": 5.0}
        return self.attempt(name, id, start=start, **parts)

    def make_part(self, name: str, whole: str) -> None:
        """From now on one stage does a share of another one's work."""
        file = self.store.run_dir(self.run_id) / "plan.json"
        plan = fsio.read_json(file)
        for entry in plan["stages"]:
            if entry["name"] == name:
                entry["part_of"] = whole
        fsio.write_json(file, plan)

    def succeeded(self, name: str) -> None:
        result = {"key": self.key(name), "kind": KINDS[name], "metrics": {"top1": 0.5}}
        fsio.write_json(self.stage(name).result_file, result)

    def cancelled(self, name: str) -> None:
        who = {"user": "bob", "host": "login2", "at": time.time()}
        fsio.write_json(self.stage(name).cancel_file, who)


PREEMPTED = {
    "outcome": "preempted",
    "exit_code": 75,
    "cause": "preempted",
    "message": "",
    "step": 480,
}
FAILED = {
    "outcome": "failed",
    "exit_code": 70,
    "cause": "user_code",
    "message": "KeyError: 'label'\nsecond line",
    "step": 3,
}


def failure(rank: int, cause: str, message: str, at: float) -> dict[str, Any]:
    """Content of failure-rank<r>.json."""
    return {
        "rank": rank,
        "host": f"n{rank}",
        "exit_code": 70,
        "cause": cause,
        "message": message,
        "traceback": "",
        "at": at,
    }
