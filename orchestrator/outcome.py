"""How an attempt ended: exceptions to causes and exit codes, and the success record."""

from __future__ import annotations

import datetime
import errno
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
# How PyTorch, Gloo, NCCL and the kernel say that a peer or the way to it is gone; in small letters.
_PEER_LOST = (
    "connection closed by peer",
    "connection closed by remote peer",
    "connection reset by peer",
    "connection refused",
    "connection timed out",
    "connectfullmesh failed",
    "broken pipe",
    "eaddrinuse",
    "address already in use",
    "no route to host",
    "network is unreachable",
    "socket timeout",
    "the client socket has timed out",
    "application timeout caused pair closure",
    "timed out waiting",
    "failed to pass monitoredbarrier",
    "nccl error",
    "nccl communicator was aborted",
    "ncclsystemerror",
    "ncclremoteerror",
    "ncclinternalerror",
    "collective operation timeout",
)
# What CUDA and its driver say of a device that is broken, gone or never was there; see the errors
# of cudaError_t. An illegal address or an assertion on the device is the code's fault.
_DEVICE_LOST = (
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "nvlink error was detected",
    "no cuda-capable device is detected",
    "cuda-capable device(s) is/are busy or unavailable",
    "all cuda-capable devices are busy or unavailable",
    "no cuda gpus are available",
    "found no nvidia driver",
    "invalid device ordinal",
    "system not yet initialized",
    "system has unsupported display driver",
    "hardware stack error",
    "gpu is lost",
    "fallen off the bus",
    "unable to determine the device handle",
    "cuda error: unknown error",
    "cuda failure 'unknown error'",
)
# A file server that is away, or a network that is: another attempt may find it back.
_OUT_OF_REACH = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EREMOTEIO,
        errno.ENOLINK,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    }
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attempt ended on one rank; the fields of end.json. Causes as in cluster.causes."""

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
    cause = _cause(error, code)
    if oom_killed and code in (ExitCode.USER_CODE, ExitCode.COMMUNICATION):
        code, cause = ExitCode.OUT_OF_MEMORY, "out_of_host_memory"
        message = f"{memory.killed_message()} ({message})"
    return Outcome(outcome="failed", exit_code=code, cause=cause, message=message, step=step)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, StageError):
        return error.exit_code
    names, text = _names(error), str(error).lower()
    if "ValidationError" in names:
        return ExitCode.CONFIGURATION
    if _of_the_host(error) or "OutOfMemoryError" in names or "cuda error: out of memory" in text:
        return ExitCode.OUT_OF_MEMORY
    if names & {"DistError", "DistBackendError"}:
        return ExitCode.COMMUNICATION
    if isinstance(error, OSError) and error.errno in _OUT_OF_REACH:
        return ExitCode.COMMUNICATION
    marks = (*_PEER_LOST, *_DEVICE_LOST)
    if isinstance(error, RuntimeError | OSError) and any(mark in text for mark in marks):
        return ExitCode.COMMUNICATION
    return ExitCode.USER_CODE


def _cause(error: BaseException, code: int) -> str:
    """The cause in the words of the table, finer than the exit code."""
    text = str(error).lower()
    if code == ExitCode.COMMUNICATION and (
        "DeviceError" in _names(error) or any(mark in text for mark in _DEVICE_LOST)
    ):
        return "device"
    if code == ExitCode.OUT_OF_MEMORY and any(map(_of_the_host, (error, error.__cause__))):
        return "out_of_host_memory"
    return _CAUSES[code]


def _of_the_host(error: BaseException | None) -> bool:
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or no_memory or "DefaultCPUAllocator" in str(error)


def _names(error: BaseException) -> set[str]:
    """Names of the error's classes: PyTorch's are known by them, without importing it."""
    return {cls.__name__ for cls in type(error).__mro__}


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
