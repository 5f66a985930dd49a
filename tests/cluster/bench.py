"""Submits the tiny stage of `tests/cluster/stage.py` through an executor and reads what it left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster import fsio
from cluster.contract import (
    ArrayRequest,
    Executor,
    JobHandle,
    JobRequest,
    JobState,
    Phase,
    Resources,
)

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = sys.executable


@dataclass
class Job:
    """One submitted stage and its folder."""

    stage: Path
    handle: JobHandle

    def attempts(self) -> list[str]:
        return sorted(p.name for p in (self.stage / "attempts").glob("s*r*"))

    def rank(self, restart: int, rank: int, submission: int = 1) -> dict[str, Any]:
        name = f"s{submission:03d}r{restart:03d}/rank{rank}.json"
        return fsio.read_json(self.stage / "attempts" / name)

    def ended(self, restart: int, submission: int = 1) -> dict[str, Any]:
        """What the epilogue recorded of an attempt; empty where it was killed before."""
        name = f"s{submission:03d}r{restart:03d}/exit.json"
        return fsio.read_json_or_none(self.stage / "attempts" / name) or {}

    def started(self, restart: int, ranks: int) -> bool:
        folder = self.stage / "attempts" / f"s001r{restart:03d}"
        return len(list(folder.glob("rank*.json"))) == ranks

    def log(self, rank: int = 0) -> str:
        files = sorted((self.stage / "logs").glob(f"*_{rank}_log.out"))
        return "\n".join(path.read_text() for path in files)

    def result(self) -> dict[str, Any] | None:
        return fsio.read_json_or_none(self.stage / "result.json")

    def committed(self) -> list[int]:
        return sorted(
            int(p.parent.name[5:]) for p in self.stage.glob("checkpoints/*/manifest.json")
        )


@dataclass
class Bench:
    """An executor and a folder that its jobs can see."""

    executor: Executor
    root: Path
    prefix: str
    handles: list[JobHandle] = field(default_factory=list)

    def request(
        self,
        name: str,
        *arguments: str,
        after: tuple[Job, ...] = (),
        env: Mapping[str, str] | None = None,
        resources: Resources | None = None,
    ) -> JobRequest:
        stage = fsio.make_dir(self.root / name)
        fsio.write_json(stage / "stage.json", {"key": "k" * 64, "kind": "test"})
        target = (str(stage), "--submission", "1")
        return JobRequest(
            name=f"{self.prefix}.{name}",
            argv=(PYTHON, "-m", "tests.cluster.stage", *arguments),
            epilogue=(PYTHON, "-m", "cluster.epilogue"),
            target=target,
            resources=resources or Resources(),
            log_dir=stage / "logs",
            env={"PYTHONPATH": str(REPOSITORY), **(env or {})},
            after=tuple(job.handle for job in after),
            comment="a test",
        )

    def submit(self, name: str, *arguments: str, **options: Any) -> Job:
        return self.submit_request(self.request(name, *arguments, **options))

    def submit_request(self, request: JobRequest) -> Job:
        handle = self.executor.submit(request)
        self.handles.append(handle)
        return Job(stage=request.log_dir.parent, handle=handle)

    def array_request(
        self, name: str, numbers: Sequence[int], *arguments: str, **options: Any
    ) -> ArrayRequest:
        tasks = [
            replace(
                self.request(f"{name}-{number}", *arguments, **options),
                name=f"{self.prefix}.{name}",
                task=number,
            )
            for number in numbers
        ]
        folder = self.root / f"array-{name}-{os.urandom(3).hex()}"
        return ArrayRequest(folder=folder, tasks=tuple(tasks))

    def submit_array(
        self, name: str, numbers: Sequence[int], *arguments: str, **options: Any
    ) -> list[Job]:
        array = self.array_request(name, numbers, *arguments, **options)
        handles = self.executor.submit_array(array)
        self.handles += handles
        stages = [task.log_dir.parent for task in array.tasks]
        return [Job(stage=s, handle=h) for s, h in zip(stages, handles, strict=True)]

    def wait(self, *jobs: Job, seconds: float = 60) -> list[JobState]:
        states = self.executor.wait([job.handle for job in jobs], timeout=seconds)
        return [states[job.handle] for job in jobs]

    def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Let the jobs go on until the condition holds. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.executor.wait(self.handles, timeout=0.05)
            if time.monotonic() > deadline:
                states = self.executor.query(self.handles)
                raise TimeoutError(f"not within {seconds} s: {states}")

    def gone(self, job: Job) -> bool:
        return self.executor.query([job.handle])[job.handle].phase is Phase.GONE
