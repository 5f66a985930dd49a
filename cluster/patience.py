"""What a SLURM client's failure means, and how long one goes on where the controller is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from cluster.contract import SchedulerError

Found = TypeVar("Found")


class Trouble(StrEnum):
    """Why a client failed."""

    AWAY = "away"  # nobody answered: whether it did what it was asked is not known
    BUSY = "busy"  # it answered that it does not do it now
    REFUSED = "refused"  # it answered that it does not do it


# Texts of slurm_errno.c and of sbatch, 22.05 to 25.11. Clients wait by themselves before they print
# any of them: 9 s without a controller, 120 s where it has no place for another job (measured).
_BUSY = (
    "Rate limit exceeded",
    "temporarily unable to accept job",
    "Resource temporarily unavailable",
    "backup controller in standby mode",
    "is presently disabled",
)
_AWAY = (
    "Unable to contact slurm controller",
    "timed out",
    "no answer within",
    "Connection refused",
    "Connection reset",
    "Zero Bytes",
    "Socket",
    "Message send failure",
    "Message receive failure",
    "Communication connection failure",
    "Communication shutdown failure",
    "socket error",
    "Transport endpoint",
    "shutting down",
)


def trouble_of(error: BaseException) -> Trouble:
    """What the message of a failed client says."""
    text = str(error)
    if any(mark in text for mark in _BUSY):
        return Trouble.BUSY
    return Trouble.AWAY if any(mark in text for mark in _AWAY) else Trouble.REFUSED


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to go on, in seconds of this machine's clock.

    Attributes:
        seconds: until it is given up; a controller that is restarted or fails over is away for
            minutes, and 8 of them still let a person see the end.
        settle_seconds: how long a job that an unanswered sbatch may have made is looked for once
            the controller answers again: it reads what was waiting for it in any order.
        longest_pause_seconds: between two questions; the first pause is a second.
        say: tells the person that waits.
    """

    seconds: float = 480.0
    settle_seconds: float = 10.0
    longest_pause_seconds: float = 15.0
    say: Callable[[str], None] = lambda text: None

    def pauses(self) -> Iterator[float]:
        """Ever longer ones."""
        pause = 1.0
        while True:
            yield min(pause, self.longest_pause_seconds)
            pause *= 2


class UnknownOutcome(SchedulerError):
    """Nobody answered to the end: whether there is a job is not known."""


def answered(ask: Callable[[], Found], patience: Patience) -> Found:
    """Ask a question that changes nothing until it is answered.

    Raises:
        SchedulerError: it was refused, or nobody answered for so long.
    """
    deadline = time.monotonic() + patience.seconds
    told = False
    for pause in patience.pauses():
        try:
            return ask()
        except SchedulerError as error:
            if trouble_of(error) is Trouble.REFUSED or time.monotonic() + pause > deadline:
                raise
            if not told:
                patience.say(_waiting(error, deadline))
                told = True
        time.sleep(pause)
    raise AssertionError("pauses never end")


def insist(
    submit: Callable[[], Found], find: Callable[[], Found | None], name: str, patience: Patience
) -> Found:
    """Submit a job until there is one, never two.

    An sbatch that failed may have submitted, so after each failure the job is looked for by name
    before anything else is done.

    Args:
        submit: one call of sbatch.
        find: asks the queue for the job by its name.
        name: that name, for messages.
        patience: how long to go on.

    Raises:
        SchedulerError: it was refused, or the scheduler had no time for it for so long.
        UnknownOutcome: nobody answered to the end.
    """
    deadline = time.monotonic() + patience.seconds
    told = False
    for pause in patience.pauses():
        try:
            return submit()
        except SchedulerError as error:
            trouble = trouble_of(error)
            if trouble is not Trouble.REFUSED and patience.seconds > 0 and not told:
                patience.say(_waiting(error, deadline))
                told = True
            if trouble is Trouble.BUSY:
                time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            job = _look(find, trouble, name, deadline, patience, error)
            if job is not None:
                return job
            if trouble is Trouble.REFUSED or time.monotonic() + pause > deadline:
                raise
    raise AssertionError("pauses never end")


def _look(
    find: Callable[[], Found | None],
    trouble: Trouble,
    name: str,
    deadline: float,
    patience: Patience,
    error: SchedulerError,
) -> Found | None:
    """The job that a failed sbatch made; None once the scheduler has said that there is none."""
    settled: float | None = None
    for pause in patience.pauses():
        try:
            job = find()
        except SchedulerError as silence:
            if trouble is Trouble.REFUSED and trouble_of(silence) is Trouble.REFUSED:
                return None
            settled = None
        else:
            if job is not None or trouble is not Trouble.AWAY:
                return job
            settled = settled or time.monotonic() + patience.settle_seconds
            if time.monotonic() >= settled:
                return None
        now = time.monotonic()
        if now >= deadline:
            if settled is not None:
                return None
            raise UnknownOutcome(
                f"{error}; whether job {name!r} exists is not known, because squeue does not answer"
                " either: repeat the command later, it looks the job up by name first"
            ) from error
        time.sleep(min(pause, 2.0 if settled else pause))
    return None


def _waiting(error: SchedulerError, deadline: float) -> str:
    minutes = max(1, round((deadline - time.monotonic()) / 60))
    first = str(error).strip().splitlines()[-1]
    return (
        f"the scheduler does not answer or has no time ({first}): trying for up to {minutes} min."
        " Ctrl-C is safe: the same command later goes on from here"
    )
