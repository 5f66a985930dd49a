"""What a stage raises becomes the kind of failure that decides on retries."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import fsio
from cluster.contract import ExitCode
from cluster.ranks import rank_environment
from orchestrator.attempt import Attempt, leave_if_overtaken, overtaken_by, record_start
from orchestrator.outcome import classify
from orchestrator.store import StageDir
from recipes.contract import (
    ConfigurationError,
    DivergedError,
    InputError,
    Preempted,
    StageError,
)
from recipes.contract import OutOfMemoryError as StageOutOfMemoryError


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


class DistBackendError(RuntimeError):
    """Named as torch names it."""


class DeviceError(StageError):
    """Named as the engine names it."""

    exit_code = ExitCode.COMMUNICATION


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (ConfigurationError("x"), ExitCode.CONFIGURATION, "configuration"),
        (InputError("x"), ExitCode.INPUT, "input"),
        (DivergedError("x"), ExitCode.DIVERGED, "diverged"),
        (MemoryError(), ExitCode.OUT_OF_MEMORY, "out_of_host_memory"),
        (OutOfMemoryError("CUDA out of memory"), ExitCode.OUT_OF_MEMORY, "out_of_memory"),
        (DistBackendError("timeout"), ExitCode.COMMUNICATION, "communication"),
        (RuntimeError("Connection closed by peer [::1]"), ExitCode.COMMUNICATION, "communication"),
        (OSError("[Errno 98] Address already in use"), ExitCode.COMMUNICATION, "communication"),
        (RuntimeError("shapes differ"), ExitCode.USER_CODE, "user_code"),
        (KeyError("label"), ExitCode.USER_CODE, "user_code"),
    ],
)
def test_each_error_has_its_cause(error: BaseException, code: int, cause: str) -> None:
    outcome = classify(error, 3)
    assert (outcome.exit_code, outcome.cause, outcome.outcome) == (code, cause, "failed")


# As the libraries print them: taken from their sources and from reports of users.
GONE = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:598] Connection closed by peer [10.1.3.1]:28",
    "[pair.cc:535] Read error [10.1.3.122]:42916: Connection reset by peer",
    "[unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete",
    "[Rank 0]: Ranks 1 failed to pass monitoredBarrier in 10000 ms",
    "[pair.cc:157] Application timeout caused pair closure",
    "NCCL error in: ProcessGroupNCCL.cpp:1333, unhandled system error (run with NCCL_DEBUG=INFO"
    " for details), NCCL version 2.18.6\nncclSystemError: System call (e.g. socket, malloc) or"
    " external library call failed or device error. \nLast error:\nsocketStartConnect: Connect to"
    " 192.168.19.14<52822> failed : No route to host",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"
    " prematurely.",
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9, OpType=ALLREDUCE)",
    "The client socket has timed out after 300000ms while trying to connect to (n1, 29500).",
]
BROKEN = [
    "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "NCCL error in: x.cpp:1, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function"
    " failed.\nLast error:\nCuda failure 'uncorrectable ECC error encountered'",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
    "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
    "CUDA error: unknown error",
]
OF_THE_CODE = [
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: invalid configuration argument",
    "cuDNN error: CUDNN_STATUS_BAD_PARAM",
]


@pytest.mark.parametrize(
    ("text", "code", "cause"),
    [
        *((text, ExitCode.COMMUNICATION, "communication") for text in GONE),
        *((text, ExitCode.COMMUNICATION, "device") for text in BROKEN),
        *((text, ExitCode.USER_CODE, "user_code") for text in OF_THE_CODE),
        ("CUDA error: out of memory", ExitCode.OUT_OF_MEMORY, "out_of_memory"),
    ],
)
def test_what_libraries_say_tells_peers_devices_and_code_apart(
    text: str, code: int, cause: str
) -> None:
    outcome = classify(RuntimeError(text), 3)
    assert (outcome.exit_code, outcome.cause) == (code, cause)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ESHUTDOWN, errno.ETIMEDOUT])
def test_a_file_server_that_is_away_is_nobodys_fault(number: int) -> None:
    outcome = classify(OSError(number, "gone", "/store/x"), 3)
    assert (outcome.exit_code, outcome.cause) == (ExitCode.COMMUNICATION, "communication")
    assert classify(OSError(errno.ENOSPC, "full", "/store/x"), 3).cause == "user_code"


def test_memory_of_the_host_is_told_from_that_of_a_gpu() -> None:
    host = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    for cause in (MemoryError(), OSError(errno.ENOMEM, "no memory"), RuntimeError(host)):
        for error in (cause, caused(StageOutOfMemoryError("advice"), cause)):
            outcome = classify(error, 3)
            assert (outcome.exit_code, outcome.cause) == (71, "out_of_host_memory")
    of_gpu = caused(StageOutOfMemoryError("advice"), OutOfMemoryError("CUDA out of memory"))
    assert classify(of_gpu, 3).cause == "out_of_memory"


def test_a_gpu_that_was_promised_and_is_absent_is_the_nodes_fault() -> None:
    outcome = classify(DeviceError("rank 0 needs CUDA device 0 and sees 0"), 0)
    assert (outcome.exit_code, outcome.cause) == (ExitCode.COMMUNICATION, "device")


def test_a_preempted_stage_keeps_its_committed_step() -> None:
    outcome = classify(Preempted(41), 0)
    assert (outcome.outcome, outcome.exit_code, outcome.step) == ("preempted", 75, 41)


def test_an_error_without_text_still_has_a_message() -> None:
    assert classify(ValueError(), 0).message == "ValueError: ValueError"


def test_what_follows_from_a_process_killed_for_memory_is_called_so() -> None:
    for error in (RuntimeError("worker 3 was ended by SIGKILL"), OSError("broken pipe")):
        outcome = classify(error, 3, oom_killed=True)
        assert (outcome.exit_code, outcome.cause) == (71, "out_of_host_memory")
        assert "resources.mem_gb" in outcome.message and str(error) in outcome.message
    assert classify(DivergedError("x"), 3, oom_killed=True).cause == "diverged"
    assert classify(OutOfMemoryError("CUDA"), 3, oom_killed=True).cause == "out_of_memory"


def test_who_was_overtaken_leaves_before_it_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = StageDir(tmp_path / "pretrain-0123456789ab")
    stage.claim(1, "a-name", {})
    ranks = rank_environment({})
    early = Attempt(stage=stage, submission=1, restart=999, ranks=ranks, resources={}, tracking={})
    fsio.make_dir(early.folder)
    record_start(early)
    assert overtaken_by(early) is None
    fsio.make_dir(replace(early, restart=1000).folder)
    record_start(replace(early, restart=1000))
    assert overtaken_by(early) == "attempt s001r1000"
    assert overtaken_by(replace(early, restart=1000)) is None
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    leave_if_overtaken(early)
    assert codes == [76]
    stage.claim(2, "a-name", {})
    assert overtaken_by(replace(early, restart=1000)) == "submission 2"
