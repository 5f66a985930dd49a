"""How an attempt ended: exceptions to causes and exit codes, and the success record."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster import fsio, memory
from cluster.contract import ExitCode
from orchestrator.store import SCHEMA_VERSION, StageDir
from recipes.contract import Artifact, InputError, Preempted, StageError, StageResult

_CAUSES = {
    ExitCode.CONFIGURATION: "configuration",
    ExitCode.INPUT: "input",
    ExitCode.USER_CODE: "user_code",
    ExitCode.OUT_OF_MEMORY: "out_of_memory",
    ExitCode.DIVERGED: "diverged",
    ExitCode.HANG: "hang",
    ExitCode.COMMUNICATION: "communication",
}
_PEER_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "connectfullmesh failed",
    "broken pipe",
    "eaddrinuse",
    "address already in use",
    "nccl error",
    "socket timeout",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attempt ended on one rank; the fields of end.json."""

    outcome: Literal["succeeded", "preempted", "failed"]
    exit_code: int
    cause: str
    message: str
    step: int

    @staticmethod
    def succeeded(steps: int) -> Outcome:
        """The stage has its result."""
        return Outcome(outcome="succeeded", exit_code=0, cause="", message="", step=steps)


def classify(error: BaseException, step: int, *, oom_killed: bool = False) -> Outcome:
    """Map what a stage raised to the kind of failure that decides on retries.

    `oom_killed` says that the kernel killed a process of this node's ranks for want of memory: what
    looks like a lost peer or a worker that ended is a consequence.
    """
    if isinstance(error, Preempted):
        return Outcome(
            outcome="preempted",
            exit_code=ExitCode.PREEMPTED,
            cause="preempted",
            message=str(error),
            step=error.step,
        )
    code = _exit_code(error)
    message = str(error) or type(error).__name__
    if not isinstance(error, StageError):
        message = f"{type(error).__name__}: {message}"
    cause = _CAUSES[code]
    if oom_killed and code in (ExitCode.USER_CODE, ExitCode.COMMUNICATION):
        code, cause = ExitCode.OUT_OF_MEMORY, "out_of_host_memory"
        message = f"{memory.killed_message()} ({message})"
    elif isinstance(error, MemoryError):
        cause = "out_of_host_memory"
    return Outcome(outcome="failed", exit_code=code, cause=cause, message=message, step=step)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, StageError):
        return error.exit_code
    names = {cls.__name__ for cls in type(error).__mro__}
    text = str(error).lower()
    if "ValidationError" in names:
        return ExitCode.CONFIGURATION
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return ExitCode.OUT_OF_MEMORY
    if "DistError" in names or "DistBackendError" in names:
        return ExitCode.COMMUNICATION
    if isinstance(error, RuntimeError | OSError) and any(mark in text for mark in _PEER_LOST):
        return ExitCode.COMMUNICATION
    return ExitCode.USER_CODE


def write_result(
    stage: StageDir,
    spec: Mapping[str, Any],
    inputs: Mapping[str, tuple[Artifact, ...]],
    result: StageResult,
    attempt: str,
) -> None:
    """Write outputs/manifest.json, then result.json: the existence of the latter is success.

    Raises:
        InputError: an output the stage names does not lie below its folder.
    """
    artifacts = {}
    for name, output in result.outputs.items():
        path = output.path.resolve()
        if not path.is_relative_to(stage.path.resolve()) or not path.is_file():
            raise InputError(f"output {name!r}: {output.path} is not a file below {stage.path}")
        artifacts[name] = {
            "kind": output.kind,
            "path": str(path.relative_to(stage.path.resolve())),
            "sha256": fsio.sha256_file(path),
            "bytes": path.stat().st_size,
            "meta": dict(output.meta),
        }
    fsio.write_json(stage.outputs / "manifest.json", _manifest(stage.outputs, result.listed_apart))
    fsio.write_json(
        stage.result_file,
        {
            "schema_version": SCHEMA_VERSION,
            "key": spec["key"],
            "kind": spec["kind"],
            "artifacts": artifacts,
            "metrics": dict(result.metrics),
            "summary": dict(result.summary),
            "steps": result.steps,
            "attempt": attempt,
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "inputs": {
                slot: [
                    {"ref": artifact.ref, "key": _key(spec, slot, n), "sha256": artifact.sha256}
                    for n, artifact in enumerate(artifacts_of_slot)
                ]
                for slot, artifacts_of_slot in inputs.items()
            },
        },
    )


def _key(spec: Mapping[str, Any], slot: str, index: int) -> str | None:
    key = spec["inputs"][slot][index].get("key")
    return str(key) if key else None


def _manifest(outputs: Path, listed_apart: frozenset[str]) -> dict[str, Any]:
    """Size and digest of every file, without the folders that an output of the stage lists."""
    files = {}
    for path in sorted(outputs.rglob("*")):
        relative = path.relative_to(outputs)
        if relative.parts[0] in listed_apart:
            continue
        if path.is_file() and path.name != "manifest.json":
            name = str(relative)
            files[name] = {"bytes": path.stat().st_size, "sha256": fsio.sha256_file(path)}
    return {"schema_version": SCHEMA_VERSION, "files": files}
