"""Which rank is slower than the others, time and again; pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

SLOWER = 1.3  # times the median
_WINDOWS = 3  # in a row: one disturbance is no straggler


class Stragglers:
    """Names ranks that were slow in several windows in a row, each once."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """`hosts` are those of the ranks, in their order."""
        self._hosts = list(hosts)
        self._slow = [0] * len(hosts)
        self._named: set[int] = set()

    def look(self, own: Sequence[float], step_seconds: float | None = None) -> list[str]:
        """What there is to say after another window.

        Args:
            own: seconds each rank needed without waiting for others.
            step_seconds: of the same window, where `own` is only a part of what a rank does: what
                it has in excess of the others is measured by it then.
        """
        usual = median_low(own)
        allowed = usual + (SLOWER - 1) * (step_seconds or usual)
        said = []
        for rank, seconds in enumerate(own):
            self._slow[rank] = self._slow[rank] + 1 if seconds > allowed else 0
            if self._slow[rank] >= _WINDOWS and rank not in self._named:
                self._named.add(rank)
                said.append(self._say(rank, seconds, usual))
        return said

    def _say(self, rank: int, seconds: float, usual: float) -> str:
        here = self._hosts[rank]
        others = [r for r, host in enumerate(self._hosts) if host == here and r != rank]
        beside = f" (ranks {', '.join(map(str, others))} run there too)" if others else ""
        return (
            f"rank {rank} on {here}{beside} is slow: it needs {seconds / max(usual, 1e-9):.1f} "
            f"times as long as the others by itself, for {_WINDOWS} windows of log_every steps, "
            "and all wait for it. Look there for other processes (top), clocks and temperature "
            "(nvidia-smi -q -d PERFORMANCE), a slow disk; to go on without the node, resubmit with "
            f"resources.exclude including {here}"
        )
