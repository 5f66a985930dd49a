"""How attempts ended, in words: the failure that was the cause, the end, what was decided on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.causes import CAUSES, RULES, cause_of_code
from orchestrator.record import Attempt

_SIGNALS = {129: "SIGHUP", 130: "SIGINT", 134: "SIGABRT", 137: "SIGKILL", 139: "SIGSEGV"}
_SIGNALS |= {143: "SIGTERM"}
_STOPPED = {
    "preempted": "preempted or requeued",
    "time_limit": "stopped at its time limit",
    "node_failure": "lost with a node",
}
_POLICIES = {
    "free": "tried again, however often",
    "counted": "tried again while it gets on",
    "stop": "not tried again",
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What ended an attempt for good, and where: the fields of the record that tells it best."""

    cause: str
    message: str
    host: str = ""
    rank: int | None = None

    def __str__(self) -> str:
        place = f" on {self.host}" if self.host else ""
        place += f" rank {self.rank}" if self.rank is not None else ""
        words = next((RULES[one].words for one in CAUSES if one == self.cause), self.cause)
        message = printable(self.message.strip().partition("\n")[0])
        if self.cause == "hang" and self.rank is not None:
            return message  # a watchdog's, which names rank and host
        return f"{words}{place}: {message}" if message not in ("", words) else f"{words}{place}"

    @property
    def more(self) -> str:
        """The lines of the message behind the first, which `str` leaves out."""
        lines = self.message.strip().splitlines()[1:]
        return "\n".join(printable(line.rstrip()) for line in lines)


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What was decided at the end of an attempt, as its exit.json says.

    Attributes:
        attempt: its id.
        action: finished, requeue or stop.
        cause: one of the causes of cluster.causes; empty in records of older versions.
        policy: free, counted or stop; empty in records of older versions.
        reason: in words.
        exclude: nodes that the next attempt must not get.
        mem_gb: memory a node that the next attempt asks for; None leaves it.
    """

    attempt: str
    action: str
    cause: str = ""
    policy: str = ""
    reason: str = ""
    exclude: tuple[str, ...] = ()
    mem_gb: float | None = None

    def __str__(self) -> str:
        """In words, such as `tried again, however often (preempted); without n07`."""
        words = _POLICIES.get(self.policy, self.policy)
        if self.action == "stop" and self.policy != "stop":
            words = f"{words}, but stopped" if words else "stopped"
        text = f"{words} ({self.reason})" if self.reason else words
        text += f"; without {', '.join(self.exclude)}" if self.exclude else ""
        return text + (f"; with {self.mem_gb:g} GB a node" if self.mem_gb else "")


def decided(attempt: Attempt | None) -> Decided | None:
    """What was decided at the end of an attempt; None while it runs or without a record."""
    ended = (attempt or {}).get("exit")
    if attempt is None or not ended:
        return None
    mem_gb = ended.get("mem_gb")
    return Decided(
        attempt=str(attempt["id"]),
        action=str(ended.get("decision") or ""),
        cause=str(ended.get("cause") or ""),
        policy=str(ended.get("policy") or ""),
        reason=printable(str(ended.get("reason") or "")),
        exclude=tuple(printable(str(node)) for node in ended.get("exclude") or ()),
        mem_gb=None if mem_gb is None else float(mem_gb),
    )


def excluded_nodes(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """Nodes that the ends of these attempts ruled out, in the order in which it happened."""
    nodes = (node for attempt in attempts for node in (attempt["exit"] or {}).get("exclude") or ())
    return tuple(dict.fromkeys(str(node) for node in nodes))


def failure_of(attempt: Attempt) -> Failure:
    """The record that names the cause: the first rank that failed by itself, not for lost peers."""
    ranks = sorted(
        attempt["failures"], key=lambda one: (one["cause"] == "communication", one["at"])
    )
    start, end, ended = attempt["start"] or {}, attempt["end"] or {}, attempt["exit"] or {}
    if ranks and (vanished := _vanished(attempt)) is not None:
        words = _exit_words(ended.get("exit_code"))
        return Failure(cause=words, message="it left no record; others lost it", rank=vanished)
    if ranks:
        first = ranks[0]
        return Failure(
            cause=first["cause"], message=first["message"], host=first["host"], rank=first["rank"]
        )
    if end.get("outcome") == "failed":
        return Failure(
            cause=end["cause"], message=end["message"], host=start.get("host", ""), rank=0
        )
    code, reason = ended.get("exit_code"), str(ended.get("reason") or "")
    host = str(start.get("host", ""))
    if ended.get("cause") in ("time_limit", "node_failure"):
        return Failure(cause=str(ended["cause"]), message=reason, host=host)
    told = "unknown" if code is None else cause_of_code(int(code))
    words = _exit_words(code) if told in ("unknown", "killed") else told
    return Failure(cause=words, message=reason, host=host)


def _vanished(attempt: Attempt) -> int | None:
    """The rank that all others lost, where it is the only one without a record of its own.

    Its watchdog writes one where it outlives the rank, which SLURM does not always allow.
    """
    records = attempt["failures"]
    ranks = set(range(int((attempt["start"] or {}).get("world_size", 0))))
    silent = ranks - {record["rank"] for record in records}
    lost = all(record["cause"] == "communication" for record in records)
    killed = int((attempt["exit"] or {}).get("job_exit_code") or 0) > 128
    return silent.pop() if lost and killed and len(silent) == 1 else None


def ending(attempt: Attempt) -> str:
    """How an attempt ended, in a few words, for the history of a stage that goes on."""
    end, start, ended = attempt["end"] or {}, attempt["start"] or {}, attempt["exit"] or {}
    host = f" on {start['host']}" if start.get("host") else ""
    cause, why = _known_cause(ended)
    if end.get("outcome") == "preempted":
        return f"{cause or 'stopped'}{host}, saved at step {end['step']}{why}"
    if end.get("outcome") == "failed" or attempt["failures"]:
        return str(failure_of(attempt))
    if ended:
        return f"{cause or _exit_words(ended.get('exit_code'))}{host}{why}"
    return f"killed{host} without a record"


def _known_cause(ended: Mapping[str, Any]) -> tuple[str, str]:
    """The word for the cause, and the reason in brackets where it says more than the word."""
    cause, reason = str(ended.get("cause") or ""), str(ended.get("reason") or "")
    word = _STOPPED.get(cause, "")
    says_more = reason and cause != "preempted"
    return word, f" ({printable(reason)})" if says_more else ""


def printable(text: str) -> str:
    """Text that cannot steer a terminal; it may come from a file name or a library's message."""
    return "".join(char for char in text if char.isprintable())


def _exit_words(code: int | None) -> str:
    if code is None:
        return "ended without an exit code"
    signal = _SIGNALS.get(code)
    return f"killed by {signal} (exit code {code})" if signal else f"exit code {code}"
