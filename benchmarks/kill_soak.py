"""Trainings killed at random moments, resumed, and compared with one that was left alone.

    python benchmarks/kill_soak.py --kills 50 [--ranks 2] [--seed 0] [--out benchmarks/results]

Real trainings of DPC on ranks of their own, which save in the background every few steps. SIGKILL
hits one rank at a random moment, start and saves included; the others are ended as the end of an
allocation would. Each training goes on from its newest checkpoint until it ends; then the files of
its last checkpoint (weights, optimizer, random states, statistics of every rank) must be equal, bit
by bit, to those of a training that nobody disturbed. Exits 1 if one is not, or cannot resume.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipes.engine import checkpoint
from tests.recipes.engine_worker import be_rank, free_port, run_job

STEPS = 30
CONFIG = {
    "max_steps": STEPS,
    "batch_size": 8,
    "micro_batch": 2,
    "zero_stage": 1,
    "log_every": 7,
    "checkpoint": {"minutes": None, "steps": 3},
}
FINISHED = 0


def start(folder: Path, ranks: int) -> list[int]:
    """Fork the ranks of a training; returns their process ids."""
    job: dict[str, Any] = {"folder": str(folder), "world_size": ranks, "config": CONFIG}
    job["port"] = free_port()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            be_rank(run_job, job, rank)
        children.append(child)
    return children


def wait(children: list[int]) -> list[int]:
    """Exit codes of all ranks, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def kill_after(children: list[int], seconds: float, victim: int) -> bool:
    """Kill one rank, then the others; False where the training had ended before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitid(os.P_PID, children[victim], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.002)
    os.kill(children[victim], signal.SIGKILL)
    time.sleep(0.05)
    for child in children:
        os.kill(child, signal.SIGKILL)
    return True


def digests(folder: Path) -> dict[str, Any]:
    """Of the files of the last checkpoint, which must be that of the last step."""
    newest = checkpoint.newest(folder / "checkpoints")
    if newest is None or newest.step != STEPS:
        return {}
    files: dict[str, Any] = dict(newest.description["files"])
    return files


def soak(place: Path, kills: int, ranks: int, random: Random) -> Counter[str]:
    """Train until so many kills have hit; counts what was seen."""
    seen: Counter[str] = Counter()
    began = time.monotonic()
    codes = wait(start(place / "alone", ranks))
    longest = time.monotonic() - began
    alone = digests(place / "alone")
    if codes != [FINISHED] * ranks or not alone:
        raise SystemExit(f"the undisturbed training ended with {codes}")
    print(f"undisturbed: {longest:.1f} s, {STEPS} steps", flush=True)
    number = 0
    while seen["kills"] < kills:
        number += 1
        folder = place / f"training-{number}"
        longest = _train_under_fire(folder, kills, ranks, longest, random, seen)
        seen["trainings"] += 1
        seen["unequal"] += digests(folder) != alone
    return seen


def _train_under_fire(
    folder: Path, kills: int, ranks: int, longest: float, random: Random, seen: Counter[str]
) -> float:
    """Start a training again and again until it ends; returns how long a whole one takes now."""
    first = True
    while True:
        began = time.monotonic()
        children = start(folder, ranks)
        armed = seen["kills"] < kills
        hit = armed and kill_after(children, random.uniform(0, longest), random.randrange(ranks))
        codes = wait(children)
        if not hit:
            seen["unresumable"] += codes != [FINISHED] * ranks
            return time.monotonic() - began if first else longest
        first = False
        saved = folder / "checkpoints"
        steps = checkpoint.steps(saved)
        seen["kills"] += 1
        seen["kills before anything was saved"] += not steps
        seen["kills inside a save"] += any(saved.glob("*.tmp")) or any(saved.glob("*.deleted"))
        print(f"kill {seen['kills']}: codes {codes}, committed {steps}", flush=True)


def main() -> int:
    """Parse, soak, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    import torch

    from recipes.engine import deepspeed_engine, loop  # noqa: F401  forks have them

    deepspeed_engine.import_deepspeed(torch.device("cpu"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        random = Random(options.seed)  # noqa: S311
        seen = soak(Path(folder), options.kills, options.ranks, random)
    told = ["trainings", "kills before anything was saved", "kills inside a save"]
    lines = [f"# {options.kills} SIGKILLs of trainings on {options.ranks} ranks", ""]
    lines += [f"{time.strftime('%Y-%m-%d')}, {time.monotonic() - began:.0f} s.", ""]
    lines += [f"- {name}: {seen[name]}" for name in ["kills", *told, "unresumable", "unequal"]]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "kill_soak.md").write_text(text, encoding="utf-8")
    return 1 if seen["unresumable"] or seen["unequal"] else 0


if __name__ == "__main__":
    sys.exit(main())
