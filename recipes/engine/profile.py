"""A trace of chosen optimizer steps of rank 0, for people who look for lost time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recipes.engine.config import ProfileConfig

_ROWS = 30


class Profile:
    """Writes a trace for Perfetto or chrome://tracing and a table of the dearest operations.

    They lie below `folder`, whose files are recorded with the stage. Profiling costs time in the
    chosen steps; what lies before and after them is as fast as ever.
    """

    def __init__(self, config: ProfileConfig | None, folder: Path, device: torch.device) -> None:
        """`config` None: nothing is ever traced."""
        self._config, self._folder, self._device = config, folder, device
        self._running: Any = None
        self._first = 0

    def begin_step(self, step: int) -> None:
        """Optimizer step `step` (from 1) begins.

        A training that is resumed between the chosen steps traces those that are left.
        """
        config = self._config
        if config is None or self._running is not None or not config.first <= step <= config.last:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._first = step
        self._running = torch.profiler.profile(
            activities=activities, record_shapes=True, profile_memory=True
        )
        self._running.start()

    def end_step(self, step: int, *, last: bool) -> None:
        """It has ended; `last` means that no other follows in this process."""
        if self._running is None or self._config is None:
            return
        if not last and step < self._config.last:
            return
        running, self._running = self._running, None
        running.stop()
        self._write(running, f"trace-steps-{self._first}-{step}")

    def _write(self, running: Any, name: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self._folder / f".{name}.partial.json.gz"
        running.export_chrome_trace(str(partial))
        partial.replace(self._folder / f"{name}.json.gz")
        order = "self_cpu_time_total" if self._device.type == "cpu" else "self_device_time_total"
        table = running.key_averages().table(sort_by=order, row_limit=_ROWS)
        (self._folder / f"{name}.txt").write_text(table, encoding="utf-8")
