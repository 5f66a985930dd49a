"""The whole matrix, hours if need be: `make matrix`, or `python -m tests.matrix.run`.

Each finished cell is one line of the results file, so that a second call goes on where the first
was stopped; a cell that failed runs again. The table goes to `docs/matrix.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.matrix.cells import FAULTS, MODES, PAIRWISE, Cell, all_cells, extra_cells
from tests.matrix.pipeline import Verdict, make_reference, run_cell
from tests.slurm_cluster import REPOSITORY, missing_for_accounting, missing_programs

# Most of a cell is waiting, for SLURM and between slow steps: more than one fit into a processor.
CELLS_AT_ONCE = 3

Line = dict[str, Any]


def run_cells(
    cells: Sequence[Cell], folder: Path, finished: Callable[[Verdict], None], at_once: int
) -> None:
    """Run the cells side by side, each on a cluster of its own; all share one reference."""
    reference = make_reference(folder)
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        futures = [pool.submit(run_cell, cell, reference, folder) for cell in cells]
        for future in as_completed(futures):
            finished(future.result())


def read_lines(path: Path) -> dict[str, Line]:
    """The newest line of each cell, by its name."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    return {Cell(**line["cell"]).name: line for line in lines}


def as_line(verdict: Verdict, code: str) -> str:
    """What is kept of a cell: the verdict, when, of which code, how busy the machine was."""
    now = time.strftime("%Y-%m-%d %H:%M")
    value = {**asdict(verdict), "at": now, "code": code, "load": round(os.getloadavg()[1], 1)}
    return json.dumps(value, sort_keys=True)


# -- the page ----------------------------------------------------------------------------------

_HEAD = """\
# What happens to a pipeline when its pretraining is hit

Written by `make matrix`; do not edit. Each cell is a pipeline of four stages (pretraining on two
nodes with two ranks each, then probe, finetuning and retrieval) on a private SLURM 22.05 of its own
with three nodes, whose pretraining is hit in the middle. Nobody does anything then. It has failed
unless all stages succeed, with the metrics of the undisturbed run and the same weights bit by bit,
no job and no process is left, no stage succeeded twice and no step before the last checkpoint was
computed again.

The number is what was lost, in seconds: from the last step whose work was kept to the first one
behind it, thus work done again, the wait in the queue and the start, which is most of it, because
cells share two cores. In brackets the attempts, where there were more than two. A requeued job
waits 6 s here (`cred_expire=5`; 121 s with SLURM's default). *Signal* is a grace time of 10 s with
`preempt_send_user_signal`, *accounting* is slurmdbd.
"""
_NOTES = """
- `scancel -s` sends USR2, with accounting TERM, to the ranks. A plain `scancel` is a user's own
  cancel: the stage ends, what waits for it is cancelled, nothing stays pending (last table).
- *time limit* has a warning of 20 s, which SLURM sends up to 30 s early; how many minutes it has
  follows from what the undisturbed run took to start.
- *slurmd killed* and *node set down* hit the node of the batch script, with accounting the other
  one. The ranks of a killed slurmd live on until SLURM notices: `SlurmdTimeout` is 20 s here.
- *slurmctld restarted*: gone for three seconds; the ranks do not notice.
"""


def page(lines: dict[str, Line]) -> str:
    """The table of the matrix and of the cells beside it, as Markdown."""
    known = [lines[cell.name] for cell in all_cells() if cell.name in lines]
    return "\n".join(
        [
            _HEAD,
            f"{len(known)} of {len(all_cells())} cells, {_ok(known)} ok. {_when(lines.values())}",
            "",
            *_table(lines),
            _NOTES,
            "Beside the matrix:",
            "",
            "| fault | cluster | lost |",
            "|---|---|---|",
            *_rows_beside(lines),
            "",
        ]
    )


def _ok(lines: Iterable[Line]) -> int:
    return sum(not line["problems"] for line in lines)


def _when(lines: Iterable[Line]) -> str:
    known = list(lines)
    if not known:
        return ""
    times = sorted(line["at"] for line in known)
    loads = sorted(line["load"] for line in known if "load" in line) or ["unknown"]
    return (
        f"Run from {times[0]} to {times[-1]}, with a load of {loads[0]} to {loads[-1]} on"
        f" {os.cpu_count()} processors."
    )


def _table(lines: dict[str, Line]) -> Iterator[str]:
    columns = [
        (mode, signal, books)
        for mode in MODES
        for signal in (False, True)
        for books in (False, True)
    ]
    yield "| fault | " + " | ".join(_column(*column) for column in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for fault in FAULTS:
        cells = [
            Cell(fault=fault, mode=mode, user_signal=signal, accounting=books)
            for mode, signal, books in columns
        ]
        yield f"| {fault} | " + " | ".join(_told(lines.get(cell.name)) for cell in cells) + " |"


def _column(mode: str, signal: bool, books: bool) -> str:
    words = [mode, *["signal"] * signal, *["accounting"] * books]
    return "<br>".join(words)


def _rows_beside(lines: dict[str, Line]) -> Iterator[str]:
    for cell in extra_cells():
        cluster = cell.name.removeprefix(f"{cell.fault}, ")
        yield f"| {cell.fault} | {cluster} | {_told(lines.get(cell.name))} |"


def _told(line: Line | None) -> str:
    if line is None:
        return "–"
    if line["problems"]:
        return "**failed**"
    attempts = f" ({line['attempts']})" if line["attempts"] > 2 else ""
    return f"{line['lost_seconds']:.0f}{attempts}"


# -- command -----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not finished yet, print and write the table; 1 if a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix.run", description=__doc__)
    default = REPOSITORY / "benchmarks" / "results" / "matrix.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    parser.add_argument("--page", type=Path, default=REPOSITORY / "docs" / "matrix.md")
    parser.add_argument("--at-once", type=int, default=CELLS_AT_ONCE)
    parser.add_argument("--pairwise", action="store_true", help="only the cells of the tests")
    parser.add_argument("--only", default="", help="only cells with this in their names")
    parser.add_argument("--keep", type=Path, help="work here and leave the stores")
    options = parser.parse_args(argv)
    if missing := missing_programs() + missing_for_accounting():
        print(f"missing: {', '.join(missing)}; see .ci/apt.sh", file=sys.stderr)
        return 3
    cells = [*PAIRWISE] if options.pairwise else [*all_cells(), *extra_cells()]
    cells = [cell for cell in cells if options.only in cell.name]
    _run_open_cells(cells, options)
    lines = read_lines(options.results)
    text = page(lines)
    options.page.write_text(text, encoding="utf-8")
    print(text)
    return int(any(cell.name not in lines or lines[cell.name]["problems"] for cell in cells))


def _run_open_cells(cells: Sequence[Cell], options: argparse.Namespace) -> None:
    known = read_lines(options.results)
    open_cells = [c for c in cells if c.name not in known or known[c.name]["problems"]]
    print(
        f"{len(cells) - len(open_cells)} cells are finished, {len(open_cells)} to run", flush=True
    )
    if not open_cells:
        return
    describe = ["git", "describe", "--always", "--dirty"]
    code = subprocess.run(describe, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    def finished(verdict: Verdict) -> None:
        with options.results.open("a", encoding="utf-8") as stream:
            stream.write(as_line(verdict, code.stdout.strip()) + "\n")
        told = "; ".join(verdict.problems) or f"ok, lost {verdict.lost_seconds} s"
        print(f"{verdict.cell.name}: {told} ({verdict.seconds:.0f} s)", flush=True)

    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        place = options.keep or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        run_cells(open_cells, place.absolute(), finished, options.at_once)


if __name__ == "__main__":
    os.nice(5)  # it may run for an hour beside people's work
    sys.exit(main())
