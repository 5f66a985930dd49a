"""Why a job waits, in words: SLURM's reasons, and when the job is expected to start; pure."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Mapping

NEVER = "DependencyNeverSatisfied"

# Reasons of slurm.h (22.05 to 25.05), as squeue spells them. Those of limits follow a pattern.
_WORDS: Mapping[str, str] = {
    "Priority": "other jobs come first",
    "Resources": "waits for free nodes",
    "Dependency": "waits for the jobs before it",
    NEVER: "a job it waits for did not succeed",
    "BeginTime": "may not start yet",
    "Cleaning": "its last attempt is being cleaned up",
    "JobHeldUser": "held by a person; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator, or because it could not be started: ask them",
    "JobHoldMaxRequeue": "could not be started too often and is held: ask an administrator",
    "JobArrayTaskLimit": "as many parts run as may at once",
    "Licenses": "waits for a license",
    "NodeDown": "a node it needs is down",
    "ReqNodeNotAvail": "a node it needs is down, drained or reserved",
    "Reservation": "waits for its reservation to begin",
    "ReservationDeleted": "its reservation was deleted",
    "BadConstraints": "no node has what it asks for",
    "PartitionDown": "its partition takes no jobs to its nodes now",
    "PartitionInactive": "its partition is switched off",
    "PartitionTimeLimit": "asks for more time than its partition allows",
    "PartitionNodeLimit": "asks for more nodes than its partition allows, or than are up",
    "PartitionConfig": "asks for what its partition does not allow",
    "AccountNotAllowed": "its account may not use the partition",
    "QOSNotAllowed": "its QOS may not use the partition",
    "InvalidAccount": "its account is unknown",
    "InvalidQOS": "its QOS is unknown",
    "FrontEndDown": "the front end of its partition is down",
    "Prolog": "its nodes are being prepared",
}
# What slurmctld writes instead of a word where it gave a job up: launch_failed_requeued_held,
# job_requeued_in_held_state, JobHoldMaxRequeue. Only an administrator can release such a job.
_GIVEN_UP = re.compile(r"\w*requeued\w*_held\w*|JobHoldMaxRequeue")
_FOREVER = frozenset({"PartitionTimeLimit", "BadConstraints", NEVER})
_WRONG_OWNERS = {
    "InvalidAccount": "account",
    "AccountNotAllowed": "account",
    "InvalidQOS": "qos",
    "QOSNotAllowed": "qos",
}
_LIMIT = re.compile(r"(?P<of>QOS|Assoc)(?P<group>Grp)?\w+")
_OWNERS = {"QOS": "the QOS", "Assoc": "your account"}


def why_pending(reason: str, start_at: float | None = None, now: float | None = None) -> str:
    """What a waiting job waits for; SLURM's own word follows in brackets.

    Args:
        reason: as squeue prints it, such as `Resources` or `ReqNodeNotAvail,_UnavailableNodes:n1`.
        start_at: when the scheduler expects or allows the start, in unix seconds.
        now: the present, in unix seconds.
    """
    code, rest = _split(reason)
    if code == "BeginTime" and start_at is not None:
        return f"starts at the earliest at {clock(start_at, now)} (BeginTime)"
    words = _WORDS.get(code) or _of_a_limit(code)
    if words is None and _GIVEN_UP.fullmatch(code):
        return f"could not be started and is held ({code}{rest})"
    if words is None:
        return f"scheduler: {reason}" + _expected(start_at, now)
    return f"{words} ({code}{rest})" + _expected(start_at, now)


def hopeless(reason: str) -> bool:
    """Whether a job with this reason will never start as it is.

    PartitionNodeLimit is none: it also stands for nodes that are down and come back.
    """
    code, _ = _split(reason)
    for_ever = code in _FOREVER or code in _WRONG_OWNERS
    return for_ever or _asks_too_much(code) or bool(_GIVEN_UP.fullmatch(code))


def what_to_change(reason: str) -> tuple[tuple[str, ...], str]:
    """What must be different for a hopeless job to start.

    Returns:
        Options of `resume`, and the key of `cluster.resources` where only a new submission helps;
        both empty where the same job may start, or it cannot be told.
    """
    code, _ = _split(reason)
    if code in _WRONG_OWNERS:
        return (), _WRONG_OWNERS[code]
    too_much = _asks_too_much(code)
    if code == "PartitionTimeLimit" or (too_much and "Wall" in code):
        return ("--hours", "HOURS"), ""
    if too_much and "Mem" in code:
        return ("--mem-gb", "GB"), ""
    if too_much:
        return ("--nodes", "NODES"), ""
    return (("--partition", "NAME"), "") if code == "BadConstraints" else ((), "")


def _asks_too_much(code: str) -> bool:
    return "PerJob" in code and bool(_LIMIT.match(code))


def clock(at: float, now: float | None = None) -> str:
    """A moment as a person reads it: 14:20, or with the date where that is another day."""
    today = datetime.datetime.fromtimestamp(time.time() if now is None else now).astimezone()
    then = datetime.datetime.fromtimestamp(at).astimezone()
    return f"{then:%H:%M}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M}"


def _split(reason: str) -> tuple[str, str]:
    """The reason's own word, and what SLURM adds, such as names of nodes."""
    match = re.match(r"\w*?(?=[,:\s]|$)", reason)
    code = match[0] if match else reason
    return code, reason[len(code) :].replace("_", " ").rstrip()


def _of_a_limit(code: str) -> str | None:
    """QOSMaxJobsPerUserLimit, AssocGrpGRES and the like."""
    match = _LIMIT.fullmatch(code)
    if match is None:
        return None
    owner = _OWNERS[match["of"]]
    if "PerJob" in code:
        return f"asks for more than {owner} allows one job"
    if match["group"]:
        return f"what {owner} may use for all its users together is in use"
    if "PerUser" in code or "Jobs" in code:
        return f"you have as much running as {owner} allows"
    return f"a limit of {owner} is reached"


def _expected(start_at: float | None, now: float | None) -> str:
    present = time.time() if now is None else now
    if start_at is None or start_at <= present:
        return ""
    return f", expected to start at {clock(start_at, now)}"
