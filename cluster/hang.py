"""Pure: how long a rank may be silent, and which one the others wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.heartbeat import Pulse

DEFAULT_SECONDS = 60.0
_WARM_UP_STEPS = 5  # slower than the rest: caches fill, workers start, kernels are chosen
_KEPT_STEPS = 101
_BUSY = 0.5  # share of a core above which a silent rank is taken to compute
_DOING = {
    "idle": "not training",
    "data": "waiting for data",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "agree": "waiting for the other ranks",
    "optimize": "in the optimizer",
    "save": "saving a checkpoint",
    "evaluate": "evaluating",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds without a sign of life after which a rank hangs, all multiples of one number.

    `usual` is the least, and `ceiling` the most that is granted on the ground of learned step
    times. A save may wait for storage (it gives a sign with every few MB written) and an evaluation
    for one long video (a sign with every batch). The first step may compile the model. All are less
    than what a collective waits, whose error does not say for whom.
    """

    usual: float
    ceiling: float
    save: float
    evaluate: float
    first_step: float

    @staticmethod
    def of(seconds: float = DEFAULT_SECONDS) -> Limits:
        """60 makes it 1, 5, 9, 9 and 20 minutes."""
        return Limits(
            usual=seconds,
            ceiling=5 * seconds,
            save=9 * seconds,
            evaluate=9 * seconds,
            first_step=20 * seconds,
        )


class StepTimes:
    """Learns from what is seen of the beats how long a step takes; looking once a second will do.

    Attributes:
        longest: seconds of the longest step seen, without the first ones and those in which a
            checkpoint was saved or the model evaluated.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._known: deque[float] = deque(maxlen=_KEPT_STEPS)
        self._done = 0
        self._since: tuple[int, float] | None = None
        self._unusual = False

    @property
    def usual(self) -> float | None:
        """Median seconds of a step; None before enough were seen."""
        return sorted(self._known)[len(self._known) // 2] if self._known else None

    def observe(self, pulse: Pulse) -> None:
        """Take note of what a rank does now."""
        if self._since is None:
            self._since = (pulse.step, pulse.at)
        step, at = self._since
        steps = pulse.step - step
        if steps > 0:
            self._done += steps
            if self._done > _WARM_UP_STEPS and not self._unusual:
                seconds = (pulse.at - at) / steps
                self._known.append(seconds)
                self.longest = max(self.longest, seconds)
            self._since, self._unusual = (pulse.step, pulse.at), False
        self._unusual |= pulse.phase in ("save", "evaluate", "idle")


def limit(pulse: Pulse, times: StepTimes, limits: Limits) -> float:
    """Seconds that a rank may be silent where it is now.

    min(ceiling, max(usual, 3 x median step)), never below 1.5 x the longest step; the ceiling
    before a step time is known; more for a save, an evaluation and the first step.
    """
    learned = limits.ceiling if times.usual is None else 3 * times.usual
    granted = max(min(limits.ceiling, max(limits.usual, learned)), 1.5 * times.longest)
    if pulse.phase in ("save", "evaluate"):
        granted = max(granted, getattr(limits, pulse.phase))
    return granted if pulse.started else max(granted, limits.first_step)


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What the watchdog of one rank says of it: the content of `hang-rank<k>.json`.

    Attributes:
        beats: how many the rank has made; 0 where it has not come to its first.
        silent_seconds: since its last sign of life; 0 before the first.
        hangs: whether that is longer than `limit_seconds`.
        state: letter of the process state in /proc: R runs, S sleeps, D waits for a disk or a file
            server, T is stopped; empty where it cannot be read.
        waits_in: the kernel's function it sleeps in; empty where it cannot be read.
        cpu_share: share of a core used of late; 0.9 is a busy loop, 0 waits for something.
        children: data workers and others below it, with pid, name, state, waits_in.
    """

    rank: int
    host: str
    pid: int
    phase: str
    step: int
    beats: int
    silent_seconds: float
    limit_seconds: float
    hangs: bool
    state: str = ""
    waits_in: str = ""
    cpu_share: float = 0.0
    children: tuple[dict[str, Any], ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Who hangs, and that in one line."""

    rank: int
    host: str
    message: str


def verdict(states: Sequence[RankState], world_size: int, *, waited: bool) -> Verdict | None:
    """The rank all others wait for; None as long as that may be a slow one, or is not clear.

    It is the one with the fewest beats, if it hangs by its own limit: who waits for a peer that
    saves or evaluates does not make it hang. Among equals it is the one that is stopped, else that
    waits for data, else that computes.

    Args:
        states: of the ranks whose watchdogs have spoken.
        world_size: how many there should be.
        waited: the others were given their time to speak.
    """
    if not any(state.hangs for state in states):
        return None
    missing = sorted(set(range(world_size)) - {state.rank for state in states})
    if missing:
        if not waited:
            return None
        message = f"rank {missing[0]} and its watchdog are silent, while the others wait for it"
        return Verdict(rank=missing[0], host="", message=message)
    fewest = min(state.beats for state in states)
    behind = sorted((state for state in states if state.beats == fewest), key=_least_likely)
    culprit = behind[0]
    if not culprit.hangs and culprit.beats:
        return None
    alike = [state for state in behind if _least_likely(state)[:3] == _least_likely(culprit)[:3]]
    everybody = len(alike) == world_size > 1
    who = f"all {world_size} ranks hang at the same place, rank" if everybody else "rank"
    hangs = "among them" if everybody else "hangs"
    return Verdict(
        rank=culprit.rank,
        host=culprit.host,
        message=f"{who} {culprit.rank} on {culprit.host} {hangs}: {_doing(culprit)}",
    )


def _least_likely(state: RankState) -> tuple[bool, bool, bool, int]:
    return (
        state.state != "T",
        state.phase != "data",
        state.cpu_share < _BUSY,
        state.rank,
    )


def _doing(state: RankState) -> str:
    if not state.beats:
        return "it has not begun to train, while others wait for it"
    seconds = f"for {state.silent_seconds:.0f} s"
    what = f"{_DOING[state.phase]} {seconds}"
    if state.state == "T":
        what = f"stopped by a signal {seconds}, before that {_DOING[state.phase]}"
    elif state.state == "D":
        what += f", in the kernel ({state.waits_in or 'a disk or file server'})"
    return f"step {state.step}, {what}"
