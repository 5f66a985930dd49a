"""Where a training's time goes: rate, share of waiting for data, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_SMOOTHING = 0.9
_REPORT_SECONDS = 1.0


class Speed:
    """Clocks of one rank; `split` gives the averages since it was last called."""

    def __init__(self, clips_per_step: int) -> None:
        self._clips_per_step = clips_per_step
        self._step_seconds: float | None = None
        self._wait_share = 0.0
        self._began_step = self._reported = time.monotonic()
        self._first = True
        self._steps, self._total, self._waited, self._step_wait = 0, 0.0, 0.0, 0.0

    def begin_step(self) -> None:
        """A step begins: what lay between, such as a save, does not count as training."""
        self._began_step, self._step_wait = time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data."""
        began = time.monotonic()
        yield
        self._step_wait += time.monotonic() - began

    def end_step(self) -> None:
        """A step ended. The first one, with its start-up cost, is not part of the smooth rate."""
        seconds = time.monotonic() - self._began_step
        self._steps, self._total = self._steps + 1, self._total + seconds
        self._waited += self._step_wait
        if self._step_seconds is None or self._first:
            self._first = self._step_seconds is None
            self._step_seconds, self._wait_share = seconds, self._step_wait / max(seconds, 1e-9)
            return
        self._step_seconds = _SMOOTHING * self._step_seconds + (1 - _SMOOTHING) * seconds
        share = self._step_wait / max(seconds, 1e-9)
        self._wait_share = _SMOOTHING * self._wait_share + (1 - _SMOOTHING) * share

    def split(self) -> dict[str, float]:
        """Averages of the steps since the last call: clips a second, step time and its parts."""
        steps, total, waited = max(self._steps, 1), max(self._total, 1e-9), self._waited
        self._steps, self._total, self._waited = 0, 0.0, 0.0
        return {
            "speed/clips_per_second": self._clips_per_step * steps / total,
            "speed/step_seconds": total / steps,
            "speed/data_wait_seconds": waited / steps,
            "speed/compute_seconds": (total - waited) / steps,
            "speed/data_wait_share": waited / total,
        }

    @property
    def clips_per_second(self) -> float | None:
        """Smoothed rate over all ranks."""
        return self._clips_per_step / self._step_seconds if self._step_seconds else None

    @property
    def data_wait_share(self) -> float:
        """Smoothed share of a step's time spent waiting for data."""
        return self._wait_share

    def seconds_left(self, steps: int) -> float | None:
        """Estimated time for that many further steps."""
        return None if self._step_seconds is None else self._step_seconds * steps

    def report_due(self) -> bool:
        """Whether a second has passed since this last said yes."""
        if time.monotonic() - self._reported < _REPORT_SECONDS:
            return False
        self._reported = time.monotonic()
        return True
