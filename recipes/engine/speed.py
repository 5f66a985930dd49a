"""Where a training's time goes: the phases of its steps, rates, memory, time left."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch

# `communication` is what a rank waits for the others in: the loop's own collectives and the
# reduction of gradients behind the backward pass. Reduction that overlaps with the backward pass
# (ZeRO 2 and 3) and the gathering of weights (ZeRO 3) are part of the phase they hide in.
Phase = Literal[
    "data",
    "transfer",
    "forward",
    "backward",
    "communication",
    "optimizer",
    "logging",
    "checkpoint",
    "evaluation",
    "idle",
]
# What a training step consists of; the rest happens between steps, and not behind each.
_STEP: tuple[Phase, ...] = (
    "data",
    "transfer",
    "forward",
    "backward",
    "communication",
    "optimizer",
    "logging",
)

_SMOOTHING = 0.9
_REPORT_SECONDS = 1.0
_REPORT_SHARE = 0.005  # of the time, for reports; a slow file system gets them more rarely
_LONGEST_PAUSE = 60.0


class Clock:
    """Adds up the seconds a rank spends in each phase; it is in exactly one at any time.

    On CUDA the host only gives orders, so events are put between them and read when the device has
    passed them, without waiting. A phase then lasts from when the device was done with the one
    before to when it is done with this one: a device that has nothing to do while the host waits
    for data spends that time in `data`.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[Phase, float] = {}
        self._phase: Phase = "idle"
        self._began = time.perf_counter()
        self._marks: deque[tuple[Phase, torch.cuda.Event]] = deque()
        self._spare: list[torch.cuda.Event] = []

    def enter(self, phase: Phase) -> Phase:
        """The phase before has ended and this one begins; returns the one before."""
        before = self._phase
        if self._cuda:
            self._mark(phase)
        else:
            now = time.perf_counter()
            self._add(before, now - self._began)
            self._began = now
        self._phase = phase
        return before

    def take(self) -> dict[Phase, float]:
        """Seconds of each phase since this was last called."""
        self.enter(self._phase)
        taken, self._seconds = self._seconds, {}
        return taken

    def _add(self, phase: Phase, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def _mark(self, phase: Phase) -> None:
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((phase, event))
        while len(self._marks) > 1 and self._marks[1][1].query():  # type: ignore[no-untyped-call]
            (passed, began), (_, ended) = self._marks.popleft(), self._marks[0]
            self._add(passed, began.elapsed_time(ended) / 1000)
            self._spare.append(began)


class Speed:
    """Rates of a training, from the clock of one rank.

    Rank 0's figures stand for all: the ranks wait for each other in every step.
    """

    def __init__(self, clips_per_step: int, world_size: int, clock: Clock) -> None:
        self._clips_per_step, self._world_size = clips_per_step, world_size
        self._clock = clock
        self._step_seconds: float | None = None
        self._began = self._reported = time.monotonic()
        self._pause = _REPORT_SECONDS
        self._steps = 0
        self._started = False
        self.window: dict[Phase, float] = {}
        self.window_steps = 0

    def begin_step(self) -> None:
        """A step begins: what lay between, such as a save, does not count as training."""
        self._began = time.monotonic()

    def end_step(self) -> None:
        """A step ended. The first one, with its start-up cost, is left out of everything."""
        seconds = time.monotonic() - self._began
        if not self._started:
            self._started = True
            self._clock.take()
            return
        self._steps += 1
        before = self._step_seconds
        smooth = seconds if before is None else _SMOOTHING * before + (1 - _SMOOTHING) * seconds
        self._step_seconds = smooth

    def close_window(self) -> None:
        """What was measured since the last call is what `window` and `split` tell from now on."""
        self.window, self.window_steps = self._clock.take(), self._steps
        self._steps = 0

    def split(self) -> dict[str, float]:
        """Of the last window: clips a second, and the seconds of a step with all its parts.

        Empty where no whole step but the first lay in it.
        """
        total = sum(self.window.get(phase, 0.0) for phase in _STEP)
        if not self.window_steps or total <= 0:
            return {}
        waited = self.window.get("data", 0.0)
        rate = self._clips_per_step * self.window_steps / total
        named = {f"{phase}_seconds": self._mean(phase) for phase in _STEP if phase != "data"}
        values = {
            "clips_per_second": rate,
            "clips_per_second_per_device": rate / self._world_size,
            "step_seconds": total / self.window_steps,
            "data_wait_seconds": waited / self.window_steps,
            "data_wait_share": waited / total,
            "compute_seconds": (total - waited) / self.window_steps,
            **named,
            "checkpoint_seconds": self._mean("checkpoint"),
        }
        return {f"speed/{name}": value for name, value in values.items()}

    def _mean(self, phase: Phase) -> float:
        return self.window.get(phase, 0.0) / self.window_steps

    @property
    def clips_per_second(self) -> float | None:
        """Smoothed rate over all ranks."""
        return self._clips_per_step / self._step_seconds if self._step_seconds else None

    @property
    def data_wait_share(self) -> float | None:
        """Share of the last window's time spent waiting for data."""
        return self.split().get("speed/data_wait_share")

    def seconds_left(self, steps: int) -> float | None:
        """Estimated time for that many further steps."""
        return None if self._step_seconds is None else self._step_seconds * steps

    def report_due(self) -> bool:
        """Whether it is time for another report; `reported` says that it was made."""
        return time.monotonic() - self._reported >= self._pause

    def reported(self, seconds: float) -> None:
        """A report was made, which took so long."""
        self._reported = time.monotonic()
        self._pause = min(_LONGEST_PAUSE, max(_REPORT_SECONDS, seconds / _REPORT_SHARE))


def own_seconds(window: Mapping[Phase, float], zero_stage: int) -> float:
    """What a rank needed by itself, without the phases in which it waits for others.

    ZeRO 2 reduces gradients within the backward pass, and ZeRO 3 gathers weights within the forward
    pass too.
    """
    waiting: dict[int, set[Phase]] = {2: {"backward"}, 3: {"backward", "forward"}}
    left_out = {"communication", "optimizer"} | waiting.get(zero_stage, set())
    return sum(window.get(phase, 0.0) for phase in _STEP if phase not in left_out)


def memory(device: torch.device, readers: Iterable[int]) -> dict[str, float]:
    """Peak of the device's memory since the start and what the host's memory holds now, in GB.

    Args:
        device: this rank's.
        readers: processes that read videos for this rank. What they share is counted once, here.
    """
    kilobytes = [_resident(os.getpid(), shared=True)]
    kilobytes += [_resident(pid, shared=False) for pid in readers]
    values = {"speed/memory_host_gb": sum(kilobytes) / 1e6}
    if device.type == "cuda":
        values["speed/memory_device_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return values


def _resident(pid: int, *, shared: bool) -> float:
    """Kilobytes of a process in memory; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0.0
    pages = int(fields[1]) - (0 if shared else int(fields[2]))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e3
