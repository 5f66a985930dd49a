"""The stop flag of a rank: SIGTERM and SIGUSR2 set it, every loop polls it."""

from __future__ import annotations

import signal
import time
from types import FrameType

# SLURM sends TERM on preemption, requeue and cancel; USR2 is what our script asks for ahead of the
# time limit (`--signal`), and what sites with `send_user_signal` send on preemption.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class StopFlag:
    """Remembers the first stop signal. Its handler does nothing else: a save belongs to the loop,
    where all ranks agree on it; inside a handler it would wait for peers that know of nothing.

    Attributes:
        signal_name: the first signal that came, such as `SIGTERM`; None before.
        at: when it came, in unix seconds; None before.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.at: float | None = None

    def install(self) -> None:
        """Take the stop signals over; call it before heavy imports, in the main thread."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal_name is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name
            self.at = time.time()


def ignore_stop_signals() -> None:
    """For child processes of a rank (data workers, shippers): SLURM signals every process of a
    step, and a worker that dies of it takes its parent down before the parent could save.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
