"""What a stage raises becomes the kind of failure that decides on retries."""

from __future__ import annotations

import pytest

from cluster.contract import ExitCode
from orchestrator.outcome import classify
from recipes.contract import ConfigurationError, DivergedError, InputError, Preempted


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


class DistBackendError(RuntimeError):
    """Named as torch names it."""


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
