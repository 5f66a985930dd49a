"""Why an attempt ended, and the one table of what is done about each cause; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from cluster.contract import ExitCode

Retry = Literal["free", "counted", "stop"]
Cause = Literal[
    "preempted",
    "time_limit",
    "node_failure",
    "device",
    "hang",
    "communication",
    "out_of_memory",
    "out_of_host_memory",
    "diverged",
    "configuration",
    "input",
    "user_code",
    "killed",
    "cancelled",
    "superseded",
    "unknown",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)
# What people and newer submissions say is not up for another decision.
FINAL: frozenset[Cause] = frozenset({"cancelled", "superseded"})


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is done about a cause.

    Attributes:
        retry: `free` tries again whenever it comes, `counted` as long as there is progress in
            steps, `stop` never.
        exclude_node: the node it is due to, where one can be named, is not used again in this run.
        more_memory: another attempt gets more of the host's memory, and there is none without.
        words: the cause, as people read it.
    """

    retry: Retry
    words: str
    exclude_node: bool = False
    more_memory: bool = False


# Out of host memory is tried again with more, where the recipe asked for an amount: that was an
# estimate, and a stage that ran for hours is worth another wait. Of a GPU's memory no job can ask
# for more, and the same batch needs the same again.
RULES: Mapping[Cause, Rule] = {
    "preempted": Rule(retry="free", words="preempted"),
    "time_limit": Rule(retry="counted", words="asked to stop ahead of the time limit"),
    "node_failure": Rule(retry="free", words="a node failed", exclude_node=True),
    "device": Rule(retry="counted", words="a GPU is missing or broken", exclude_node=True),
    "hang": Rule(retry="counted", words="a rank made no progress", exclude_node=True),
    "communication": Rule(
        retry="counted", words="a rank lost its peers, its device or its files", exclude_node=True
    ),
    "out_of_memory": Rule(retry="stop", words="out of memory"),
    "out_of_host_memory": Rule(retry="counted", words="out of host memory", more_memory=True),
    "diverged": Rule(retry="stop", words="the loss is not finite"),
    "configuration": Rule(retry="stop", words="the configuration cannot run"),
    "input": Rule(retry="stop", words="an input is missing or damaged"),
    "user_code": Rule(retry="stop", words="the stage's code raised an error"),
    "killed": Rule(retry="counted", words="a rank was killed"),
    "cancelled": Rule(retry="stop", words="cancelled"),
    "superseded": Rule(retry="stop", words="a newer submission owns the stage"),
    "unknown": Rule(retry="stop", words="ended for an unknown reason"),
}

_BY_CODE: Mapping[int, Cause] = {
    ExitCode.CONFIGURATION: "configuration",
    ExitCode.INPUT: "input",
    ExitCode.USER_CODE: "user_code",
    ExitCode.OUT_OF_MEMORY: "out_of_memory",
    ExitCode.DIVERGED: "diverged",
    ExitCode.HANG: "hang",
    ExitCode.COMMUNICATION: "communication",
    ExitCode.PREEMPTED: "time_limit",
    ExitCode.SUPERSEDED: "superseded",
    ExitCode.CANCELLED: "cancelled",
}
FIRST_SIGNAL_CODE = 128  # a shell reports death by signal n as 128 + n
_SLURM_OUT_OF_MEMORY = 128 + 125  # SIG_OOM of slurm_protocol_defs.h: state OUT_OF_MEMORY, 0:125


def rules_of(policy: Mapping[str, Any]) -> dict[Cause, Rule]:
    """The table with what a stage's policy says otherwise: `{"causes": {"hang": {"retry": ...}}}`.

    What the policy leaves out, or gives as None, stays; causes this version does not know are
    passed over, because a job that ends must always come to a decision.
    """
    causes = policy.get("causes") or {}
    rules = dict(RULES)
    for cause in CAUSES:
        said = {
            name: value for name, value in (causes.get(cause) or {}).items() if value is not None
        }
        if said and cause not in FINAL:
            rules[cause] = replace(RULES[cause], **said)
    return rules


@dataclass(frozen=True, kw_only=True)
class RankFailure:
    """What one rank, or its watchdog, recorded of its failure; `at` is unix seconds."""

    rank: int
    exit_code: int
    cause: str
    at: float
    host: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Root:
    """What all else follows from: exit code, cause, and the record of it if there is one."""

    exit_code: int
    cause: Cause
    failure: RankFailure | None = None


def root_cause(
    exit_code: int, failures: Sequence[RankFailure], *, agreed: bool = False, ranks: int = 0
) -> Root:
    """The cause to decide on: of the first rank that failed by itself, not for want of a peer.

    Without such a record the job's own code stands: a rank killed by a signal leaves none, and the
    others' lost connections are its consequence. Where all had agreed to stop, the first to leave
    makes srun end the others, some of which die of it on their way out: that is no crash. Where all
    of the ranks told that they lost their peers, none was killed by anything but that.
    """
    consequences = {"communication", "killed"} if agreed else {"communication"}
    causes = [failure for failure in failures if failure.cause not in consequences]
    if causes:
        first = min(causes, key=lambda failure: failure.at)
        return Root(exit_code=first.exit_code, cause=_cause_of(first), failure=first)
    if agreed and exit_code != ExitCode.SUCCESS:
        return Root(exit_code=ExitCode.PREEMPTED, cause="time_limit")
    if exit_code == _SLURM_OUT_OF_MEMORY:
        return Root(exit_code=ExitCode.OUT_OF_MEMORY, cause="out_of_host_memory")
    all_told = 0 < ranks <= len({failure.rank for failure in failures})
    if failures and (exit_code < FIRST_SIGNAL_CODE or all_told):
        return Root(exit_code=ExitCode.COMMUNICATION, cause="communication")
    return Root(exit_code=exit_code, cause=cause_of_code(exit_code))


def cause_of_code(exit_code: int) -> Cause:
    """The cause that an exit code alone tells."""
    if exit_code > FIRST_SIGNAL_CODE:
        return "killed"
    return _BY_CODE.get(exit_code, "unknown")


def _cause_of(failure: RankFailure) -> Cause:
    known = next((cause for cause in CAUSES if cause == failure.cause), None)
    return known or cause_of_code(failure.exit_code)
