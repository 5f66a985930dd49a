"""Times how long commands take to answer: median wall-clock seconds over several fresh processes.

    python benchmarks/cli_start.py            # what ships
    python benchmarks/cli_start.py -n 20 plan recipes/dpc_k400.yaml cluster=local

Each command runs once before it is timed, so that byte code and the page cache are warm, as they
are for everybody but the first user of the day. `python -c pass` is timed beside them. `cpu` is
the median processor time, which other users of the machine disturb less.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
COMMANDS = (
    ("--help",),
    ("submit", "--help"),
    ("list", "recipes"),
    ("plan", "recipes/quickstart.yaml"),
    ("plan", "recipes/dpc_k400.yaml", "cluster=local"),
    ("validate", "recipes/dpc_k400.yaml"),
)


def main() -> None:
    """Print a table of medians and extremes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--repeats", type=int, default=10)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="one command instead")
    options = parser.parse_args()
    commands = (tuple(options.command),) if options.command else COMMANDS
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()},")
    print(f"load {os.getloadavg()[0]:.1f}, {options.repeats} runs each\n")
    print(f"{'command':<56} {'median':>7} {'min':>7} {'max':>7} {'cpu':>7}   seconds")
    with tempfile.TemporaryDirectory() as store:
        measure("python -c pass", [sys.executable, "-c", "pass"], store, options.repeats)
        for words in commands:
            argv = [sys.executable, "-m", "orchestrator.cli", *words]
            measure(" ".join(("orchestrate", *words)), argv, store, options.repeats)


def measure(label: str, argv: list[str], store: str, repeats: int) -> None:
    """Run a command `repeats` times in fresh processes and print one line."""
    environment = {**os.environ, "ORCHESTRATE_STORE": store}
    seconds, processor = [], []
    for _ in range(repeats + 1):
        began, spent = time.perf_counter(), processor_seconds()
        done = subprocess.run(argv, cwd=REPOSITORY, env=environment, capture_output=True)
        seconds.append(time.perf_counter() - began)
        processor.append(processor_seconds() - spent)
        if done.returncode != 0:
            print(f"{label:<56} exit code {done.returncode}: {done.stderr.decode().strip()[:200]}")
            return
    timed, cpu = seconds[1:], statistics.median(processor[1:])
    extremes = f"{min(timed):7.3f} {max(timed):7.3f}"
    print(f"{label:<56} {statistics.median(timed):7.3f} {extremes} {cpu:7.3f}")


def processor_seconds() -> float:
    """User and system time of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
