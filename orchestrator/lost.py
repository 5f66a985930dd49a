"""How much work of a stage had to be done again: what came after the last commit of an attempt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.record import Attempt

# A line as fsio.append_json_line writes it, keys sorted. No JSON parser: there are many lines.
_LINE = re.compile(
    rb'\{"attempt": "(?P<attempt>\w+)",.* "step": (?P<step>\d+), "time": (?P<time>[\d.]+)\}\s*'
)


@dataclass(frozen=True, kw_only=True)
class _Killed:
    """An attempt that ended without a commit of its own: its last known moment and what it left."""

    id: str
    started_at: float
    ended_at: float | None
    step: int | None


def lost_seconds(
    metrics: Path, attempts: Sequence[Attempt], *, alive: bool, finished: bool
) -> float:
    """Seconds of work that attempts had done since their last commit when they were ended.

    That work is done a second time by the attempt that follows. An attempt that was asked to stop
    and saved loses nothing; of one that was killed counts the time from the newest metrics at or
    below the committed step (from its start, where there is none) to the record of its end, or to
    its last metrics where its node took the record with it. Waiting for a hang to be noticed
    counts; waiting in the queue does not. It is as exact as metrics are frequent (`log_every`).

    Args:
        metrics: the stage's metrics.jsonl; it need not exist.
        attempts: all of the stage, oldest first.
        alive: whether the last of them still runs.
        finished: whether the stage has its result, by the last of them.
    """
    over = attempts[:-1] if alive or finished else attempts
    killed = tuple(one for one in map(_killed, over) if one is not None)
    if not killed:
        return 0.0
    ids = tuple(str(attempt["id"]) for attempt in attempts)
    return _lost(metrics, killed, ids)


def _killed(attempt: Attempt) -> _Killed | None:
    """The attempt, unless it ended by saving or never began."""
    start, end, ended = (attempt[part] or {} for part in ("start", "end", "exit"))
    if not start.get("started_at") or end.get("outcome") in ("preempted", "succeeded"):
        return None
    moments = [end.get("finished_at"), ended.get("finished_at")]
    known = [float(moment) for moment in moments if moment]
    return _Killed(
        id=str(attempt["id"]),
        started_at=float(start["started_at"]),
        ended_at=min(known, default=None),
        step=int(ended["step"]) if "step" in ended else None,
    )


@lru_cache(maxsize=256)
def _lost(metrics: Path, killed: tuple[_Killed, ...], ids: tuple[str, ...]) -> float:
    """What has ended stays as it is, so a display that is drawn again reads the file once."""
    lines = _read(metrics, frozenset(ids))
    return sum(_lost_by(one, lines, ids[ids.index(one.id) + 1 :]) for one in killed)


def _lost_by(one: _Killed, lines: Mapping[str, Any], later: Sequence[str]) -> float:
    mine = lines.get(one.id, [])
    ended = one.ended_at or max((time for _, time in mine), default=one.started_at)
    kept = one.step
    if kept is None:  # no record of its end: the next attempt went on below its first metrics
        firsts = [min(step for step, _ in lines[name]) for name in later if lines.get(name)]
        kept = firsts[0] - 1 if firsts else None
    committed = [time for step, time in mine if kept is not None and step <= kept]
    return max(0.0, ended - max(committed, default=one.started_at))


def _read(metrics: Path, ids: frozenset[str]) -> dict[str, list[tuple[int, float]]]:
    """Step and time of every line, by attempt."""
    found: dict[str, list[tuple[int, float]]] = {}
    if not metrics.is_file():
        return found
    with metrics.open("rb") as stream:
        for line in stream:
            match = _LINE.fullmatch(line)
            if match and (name := match["attempt"].decode()) in ids:
                found.setdefault(name, []).append((int(match["step"]), float(match["time"])))
    return found
