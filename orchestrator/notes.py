"""What a running stage writes about itself, which must never end it."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from cluster import fsio
from orchestrator.store import StageDir

_KEPT_LINES = 10_000  # of metrics, while they cannot be written


class Notes:
    """Metrics and progress of a stage, by rank 0.

    A full disk or a file server that is away is said once; training goes on, and metrics wait in
    memory for the next line that can be written.
    """

    def __init__(self, stage: StageDir) -> None:
        self._stage = stage
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_KEPT_LINES)
        self._complaints: set[str] = set()

    def metrics(self, line: dict[str, Any]) -> None:
        """Append a line, behind those that could not be written before."""
        self._waiting.append(line)
        try:
            while self._waiting:
                fsio.append_json_line(self._stage.metrics_file, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._complain("metrics wait in memory", error)

    def progress(self, value: dict[str, Any]) -> None:
        """Replace what is known of the progress."""
        try:
            fsio.write_json(self._stage.progress_file, value)
        except OSError as error:
            self._complain("progress is not shown", error)

    def _complain(self, what: str, error: OSError) -> None:
        text = f"orchestrate: {what}: {error.strerror} ({self._stage.path})"
        if text not in self._complaints:
            self._complaints.add(text)
            print(text, file=sys.stderr, flush=True)
