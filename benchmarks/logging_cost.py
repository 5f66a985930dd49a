"""What logging costs a training step: ten metrics a step, with an outbox and a server in any state.

    python benchmarks/logging_cost.py --out benchmarks/results

A step is 50 ms of arithmetic on one core. Blocks of steps that log while the outbox works take
turns with blocks that log nothing while it is stopped (SIGSTOP), so that whatever disturbs the
machine disturbs both. The server, where there is one, runs on this machine as well and takes its
share of the processor; a cluster's does not.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data_videos import Line, at_most, benchmark

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import fsio
from tests.tracking.fabricate import Stage, make_pipeline
from tracking import outbox, server

STEP_SECONDS = 0.050
METRICS = {f"train/metric_{number}": 0.5 / (number + 1) for number in range(10)}
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens
MOST_PERCENT = 1.0


class Step:
    """Arithmetic that takes about 50 ms on one core of this machine."""

    def __init__(self) -> None:
        self._values = np.random.default_rng(0).standard_normal(200_000)
        self._rounds = 1
        while self() < STEP_SECONDS:
            self._rounds += 1

    def __call__(self) -> float:
        """Seconds that it took."""
        began = time.perf_counter()
        for _ in range(self._rounds):
            np.sin(self._values).sum()
        return time.perf_counter() - began


def log(stage: Stage, step: int) -> float:
    """Seconds for a line of metrics.jsonl, written as rank 0 does (orchestrator/entry.py)."""
    began = time.perf_counter()
    line = {"step": step, "time": time.time(), "attempt": "s001r000"}
    fsio.append_json_line(stage.path / "metrics.jsonl", {**line, "metrics": METRICS})
    return time.perf_counter() - began


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Medians: of the rounds for `longer`, a ratio of steps; of all lines for the seconds of one.

    `outbox` is the processor time of the outbox for each second of logging.
    """

    longer: float
    line_seconds: float
    outbox: float


def compare(folder: Path, uri: str, step: Step, rounds: int, steps: int) -> Cost:
    """Blocks of steps that log in turns with blocks that do not."""
    stage = make_pipeline(folder / "store", "bench", uri, ["probe"]).stages["probe"]
    stage.start("s001r000", time.time())
    running = outbox.start(stage.path, 1)
    time.sleep(15)  # it imports MLflow, which a job's start pays for and no step does
    ratios, lines, spent, passed = [], [], 0.0, 0.0
    number = 0
    for _ in range(rounds):
        logged, began, before = [], time.perf_counter(), processor_seconds(running.process.pid)
        for _ in range(steps):
            seconds, number = step(), number + 1
            lines.append(log(stage, number))
            logged.append(seconds + lines[-1])
        spent += processor_seconds(running.process.pid) - before
        passed += time.perf_counter() - began
        running.process.send_signal(signal.SIGSTOP)
        bare = [step() for _ in range(steps)]
        running.process.send_signal(signal.SIGCONT)
        ratios.append(statistics.median(logged) / statistics.median(bare))
    running.process.kill()
    running.process.wait()
    return Cost(
        longer=statistics.median(ratios),
        line_seconds=statistics.median(lines),
        outbox=spent / passed,
    )


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def hanging() -> Iterator[str]:
    """A server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def healthy(folder: Path) -> Iterator[str]:
    """A real MLflow server."""
    uri = server.default_uri(fsio.make_dir(folder))
    with server.running(uri, port=server.free_port()) as one:
        yield one.url


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """One line for each state of the server, and one for a line by itself."""
    step, rounds, steps = Step(), 2 if small else 15, 5 if small else 10
    states = {
        "healthy": healthy(folder / "mlflow"),
        "dead": nullcontext(NOWHERE),
        "hanging": hanging(),
    }
    rows, written = [], []
    for name, state in states.items():
        with state as uri:
            cost = compare(folder / name, uri, step, rounds, steps)
        detail = f"{rounds} turns of {steps} steps; outbox {100 * cost.outbox:.1f} % of a core"
        longer = 100 * (cost.longer - 1)
        what = f"longer by logging, server {name}"
        rows.append(at_most(what, longer, MOST_PERCENT, "%", detail))
        written.append(cost.line_seconds)
    alone = statistics.median(written)
    share = 100 * alone / STEP_SECONDS
    rows.append(at_most("of a 50 ms step, writing its line", share, MOST_PERCENT, "%"))
    rows.append(Line(what="a line of ten metrics", figure=1e6 * alone, unit="µs"))
    return [("Ten metrics a step of 50 ms", rows)]


if __name__ == "__main__":
    benchmark(__doc__ or "", measure, "logging_cost")
