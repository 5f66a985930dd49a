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
    """Ratios of steps that log to steps that do not, medians over the turns.

    `longer` is by the clock, `busier` by the processor time of the rank's own thread, which a load
    on the machine leaves alone. `line_seconds` is the median of all lines; `outbox` its processor
    time for each second of logging.
    """

    longer: float
    busier: float
    line_seconds: float
    outbox: float


def compare(folder: Path, uri: str, step: Step, turns: int, steps: int) -> Cost:
    """Blocks of steps that log in turns with blocks that do not; either goes first by turns."""
    stage = make_pipeline(folder / "store", "bench", uri, ["probe"]).stages["probe"]
    stage.start("s001r000", time.time())
    running = outbox.start(stage.path, 1)
    time.sleep(15)  # it imports MLflow, which a job's start pays for and no step does
    pid, lines, spent, passed = running.process.pid, list[float](), 0.0, 0.0
    longer, busier = [], []
    for turn in range(turns):
        found: dict[bool, tuple[float, float]] = {}
        for logs in (True, False) if turn % 2 else (False, True):
            running.process.send_signal(signal.SIGCONT if logs else signal.SIGSTOP)
            before, began = processor_seconds(pid), time.perf_counter()
            found[logs] = block(stage, step, steps, len(lines), lines if logs else None)
            if logs:
                spent += processor_seconds(pid) - before
                passed += time.perf_counter() - began
        longer.append(found[True][0] / found[False][0])
        busier.append(found[True][1] / found[False][1])
    running.process.kill()
    running.process.wait()
    return Cost(
        longer=statistics.median(longer),
        busier=statistics.median(busier),
        line_seconds=statistics.median(lines),
        outbox=spent / passed,
    )


def block(
    stage: Stage, step: Step, steps: int, first: int, lines: list[float] | None
) -> tuple[float, float]:
    """Median seconds of a step by the clock and of the thread; those of its lines are added."""
    clock, thread = [], []
    for number in range(first, first + steps):
        began, began_thread = time.perf_counter(), time.thread_time()
        step()
        if lines is not None:
            lines.append(log(stage, number))
        clock.append(time.perf_counter() - began)
        thread.append(time.thread_time() - began_thread)
    return statistics.median(clock), statistics.median(thread)


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
    with server.running(uri, folder, port=server.free_port()) as one:
        yield one.url


def measure(folder: Path, small: bool) -> list[tuple[str, list[Line]]]:
    """One line for each state of the server, and one for a line by itself."""
    step, turns, steps = Step(), 2 if small else 15, 5 if small else 10
    states = {
        "healthy": healthy(folder / "mlflow"),
        "dead": nullcontext(NOWHERE),
        "hanging": hanging(),
    }
    rows, written = [], []
    for name, state in states.items():
        with state as uri:
            cost = compare(folder / name, uri, step, turns, steps)
        detail = f"{turns} turns of {steps} steps; outbox {100 * cost.outbox:.1f} % of a core"
        for what, share in (("longer", cost.longer), ("more processor time", cost.busier)):
            name_of = f"{what} by logging, server {name}"
            rows.append(at_most(name_of, 100 * (share - 1), MOST_PERCENT, "%", detail))
        written.append(cost.line_seconds)
    alone = statistics.median(written)
    share = 100 * alone / STEP_SECONDS
    rows.append(at_most("of a 50 ms step, writing its line", share, MOST_PERCENT, "%"))
    rows.append(Line(what="a line of ten metrics", figure=1e6 * alone, unit="µs"))
    return [("Ten metrics a step of 50 ms", rows)]


if __name__ == "__main__":
    benchmark(__doc__ or "", measure, "logging_cost")
