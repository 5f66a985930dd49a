"""Sends a signal to ranks of one job on this node: what a drill does where `scancel` cannot.

It is started by its path, with whatever Python the node has: only the standard library is used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_ENTRY = "orchestrator.entry"


@dataclass(frozen=True)
class Process:
    """A process of this user: its parent, its words, and the environment it was started with."""

    pid: int
    parent: int
    words: tuple[str, ...]
    environment: Mapping[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Find, strike, print the pids as JSON; 1 where there was nobody."""
    parser = argparse.ArgumentParser()
    parser.add_argument("signal", choices=("KILL", "STOP", "TERM", "USR2"))
    parser.add_argument("--having", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--word", default="", help="one word of the command line")
    parser.add_argument("--only", action="store_true", help="the ranks, not what they started")
    options = parser.parse_args(argv)
    wanted = dict(text.split("=", 1) for text in options.having)
    found = [one for one in processes() if matches(one, wanted, options.word)]
    chosen = ranks(found) if options.only else found
    number = signal.Signals[f"SIG{options.signal}"]
    if number is signal.SIGKILL:
        # Nobody is to see another one die and write it down: a node that is lost says nothing.
        strike(chosen, signal.SIGSTOP)
    struck = strike(chosen, number)
    print(json.dumps({"pids": struck}))
    return 0 if struck else 1


def processes() -> list[Process]:
    """All processes whose environment this user may read."""
    found = []
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
            pairs = (folder / "environ").read_text(errors="replace").split("\0")
            environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            process = Process(int(folder.name), int(stat[1]), tuple(words), environment)
            if stat[0] != "Z":
                found.append(process)
    return found


def matches(process: Process, wanted: Mapping[str, str], word: str) -> bool:
    """Whether it belongs to a rank of the job, and neither to its batch script nor to this step."""
    environment = process.environment
    step, mine = environment.get("SLURM_STEP_ID"), os.environ.get("SLURM_STEP_ID")
    of_rank = (
        "RANK" in environment if "SLURM_JOB_ID" not in environment else step not in (None, mine)
    )
    known = all(environment.get(name) == value for name, value in wanted.items())
    asked_for = not word or word in process.words
    return known and of_rank and asked_for and process.pid != os.getpid()


def ranks(found: Sequence[Process]) -> list[Process]:
    """The ranks themselves: the topmost of our entry's processes, below any wrapper."""
    entries = [one for one in found if _ENTRY in one.words] or list(found)
    pids = {one.pid for one in entries}
    return [one for one in entries if one.parent not in pids]


def strike(found: Sequence[Process], number: signal.Signals) -> list[int]:
    """Signal all; those that were still there."""
    struck = []
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, number)
            struck.append(one.pid)
    return struck


if __name__ == "__main__":
    sys.exit(main())
