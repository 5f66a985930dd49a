"""The cells of the matrix: what a cluster is like, and what hits the pretraining; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

_JOBS_OF_A_CELL = 20
MODES = ("REQUEUE", "CANCEL")
FAULTS = (
    "scontrol requeue",
    "preempting job",
    "scancel -s",
    "time limit",
    "SIGKILL of a rank",
    "slurmd killed",
    "node set down",
    "slurmctld restarted",
)
EXTRA_FAULTS = ("preempted twice", "preempted in finetuning", "scancel")
# Where a successor, not a requeue, follows upon each attempt.
CARRIED_FAULTS = ("preempting job", "SIGKILL of a rank", "time limit", "node set down", "scancel")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cluster and one fault.

    Attributes:
        mode: `PreemptMode`, of the cluster and its partition.
        user_signal: `preempt_send_user_signal` and a grace time of 10 s, or neither.
        accounting: slurmdbd with a database, or none.
        fault: one of `FAULTS`, or of those in `faults.py` that belong to no cell of the matrix.
        transport: of the next attempt: `auto`, or one that the recipe insists on.
    """

    mode: str
    user_signal: bool
    accounting: bool
    fault: str
    transport: str = "auto"

    @property
    def name(self) -> str:
        """Readable, and the key under which a finished cell is kept."""
        signal = "signal" if self.user_signal else "no signal"
        books = "accounting" if self.accounting else "no accounting"
        parts = [self.fault, self.mode, signal, books]
        return ", ".join(parts + [self.transport] * (self.transport != "auto"))

    @property
    def settings(self) -> dict[str, Any]:
        """Of the private cluster; a node more than a job needs: one may be lost for good."""
        return {
            "num_nodes": 3,
            "gpus": 0,
            "preempt_mode": self.mode,
            "user_signal": self.user_signal,
            "grace_seconds": 10 if self.user_signal else 0,
            "accounting": self.accounting,
            "first_job_id": 100 + _JOBS_OF_A_CELL * [*all_cells(), *extra_cells()].index(self),
        }


def all_cells() -> list[Cell]:
    """The whole matrix, faults outermost."""
    choices = product(FAULTS, MODES, (False, True), (False, True))
    return [
        Cell(fault=fault, mode=mode, user_signal=signal, accounting=accounting)
        for fault, mode, signal, accounting in choices
    ]


# Sixteen are the fewest that can hold all pairs, as a fault must meet both values of the others:
# each fault comes with one choice of them and with its opposite, and the choices differ.
_PAIRWISE = (
    ("scontrol requeue", "REQUEUE", False, False),
    ("scontrol requeue", "CANCEL", True, True),
    ("preempting job", "REQUEUE", True, False),
    ("preempting job", "CANCEL", False, True),
    ("scancel -s", "REQUEUE", False, True),
    ("scancel -s", "CANCEL", True, False),
    ("time limit", "REQUEUE", True, True),
    ("time limit", "CANCEL", False, False),
    ("SIGKILL of a rank", "REQUEUE", True, True),
    ("SIGKILL of a rank", "CANCEL", False, False),
    ("slurmd killed", "REQUEUE", False, True),
    ("slurmd killed", "CANCEL", True, False),
    ("node set down", "REQUEUE", True, False),
    ("node set down", "CANCEL", False, True),
    ("slurmctld restarted", "REQUEUE", False, False),
    ("slurmctld restarted", "CANCEL", True, True),
)
PAIRWISE = tuple(
    Cell(fault=fault, mode=mode, user_signal=signal, accounting=accounting)
    for fault, mode, signal, accounting in _PAIRWISE
)


def extra_cells() -> list[Cell]:
    """What is judged beside the matrix on the plainest cluster: other faults, and successors."""
    beside = [(fault, mode, "auto") for fault in EXTRA_FAULTS for mode in MODES]
    carried = [(fault, "CANCEL", "successor") for fault in CARRIED_FAULTS]
    return [
        Cell(fault=fault, mode=mode, user_signal=False, accounting=False, transport=transport)
        for fault, mode, transport in [*beside, *carried]
    ]


def pairs(cell: Cell) -> Iterator[frozenset[tuple[str, Any]]]:
    """All pairs of values that this cell brings together."""
    values = [(name, value) for name, value in asdict(cell).items() if name != "transport"]
    for i, first in enumerate(values):
        for second in values[i + 1 :]:
            yield frozenset({first, second})
