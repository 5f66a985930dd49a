"""A stage of a few lines for executor tests: counts steps, saves when asked to stop, goes on.

Ranks agree to stop through a file, where real ones use a collective; a file `finish` in the stage
folder makes it the last step. Rank 0 commits
`checkpoints/step_<n>/manifest.json` and writes `result.json` at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from cluster import fsio
from cluster.preemption import StopFlag
from cluster.ranks import rank_environment, restart_count


def main() -> int:
    stop = StopFlag()
    stop.install()
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", type=Path)
    parser.add_argument("--submission", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--step-seconds", type=float, default=0.05)
    parser.add_argument("--save-seconds", type=float, default=0.0)
    parser.add_argument("--exit", default="", help="restart:rank:code, rank * for all")
    parser.add_argument("--record-failure", action="store_true")
    parser.add_argument("--deaf-to", default="", help="a signal to ignore")
    parser.add_argument("--no-result", action="store_true")
    parser.add_argument(
        "--endless-first", action="store_true", help="--steps count from restart 1 on"
    )
    options = parser.parse_args()
    if options.deaf_to:
        signal.signal(getattr(signal, options.deaf_to), signal.SIG_IGN)
    ranks = rank_environment(os.environ)
    restart = restart_count(os.environ)
    attempt = options.stage / "attempts" / f"s{options.submission:03d}r{restart:03d}"
    fsio.make_dir(attempt)
    place = {**ranks.export(), "HOST": os.environ.get("SLURMD_NODENAME", socket.gethostname())}
    seen = {"pid": os.getpid(), "ranks": place, "env": dict(os.environ), "cwd": str(Path.cwd())}
    fsio.write_json(attempt / f"rank{ranks.rank}.json", seen)
    print(f"rank {ranks.rank} of {ranks.world_size} starts, restart {restart}", flush=True)
    code = _scripted_exit(options.exit, restart, ranks.rank)
    if code is not None:
        if options.record_failure:
            failure = {
                "rank": ranks.rank,
                "exit_code": code,
                "cause": "user_code",
                "at": time.time(),
            }
            fsio.write_json(attempt / f"failure-rank{ranks.rank}.json", failure)
        if code == 75:
            _await_all(attempt, ranks.world_size)
        return code
    if options.endless_first:
        options.steps = _committed(options.stage) + options.steps if restart else 10**9
    return _train(options, stop, ranks.rank, attempt)


def _scripted_exit(text: str, restart: int, rank: int) -> int | None:
    if not text:
        return None
    when, who, code = text.split(":")
    mine = who in ("*", str(rank)) and when in ("*", str(restart))
    return int(code) if mine else None


def _train(options: argparse.Namespace, stop: StopFlag, rank: int, attempt: Path) -> int:
    step = _committed(options.stage)
    if (options.stage / "result.json").exists():
        print("the result is there already", flush=True)
        return 0
    while step < options.steps:
        time.sleep(options.step_seconds)
        step += 1
        if (options.stage / "finish").exists():
            break
        agreed = attempt / "stop"
        if stop.requested() and not agreed.exists():
            agreed.touch()
        if agreed.exists():
            time.sleep(options.save_seconds)
            if rank == 0:
                _commit(options.stage, step)
            print(f"rank {rank} saved at step {step} after {stop.signal_name}", flush=True)
            return 75
    if rank == 0 and not options.no_result:
        _commit(options.stage, step)
        key = json.loads((options.stage / "stage.json").read_text())["key"]
        fsio.write_json(options.stage / "result.json", {"key": key, "steps": step})
    print(f"rank {rank} done", flush=True)
    return 0


def _await_all(attempt: Path, world_size: int) -> None:
    """Ranks that agree to stop have all been there."""
    while len(list(attempt.glob("rank*.json"))) < world_size:
        time.sleep(0.02)


def _committed(stage: Path) -> int:
    found = [int(p.parent.name[5:]) for p in stage.glob("checkpoints/step_*/manifest.json")]
    return max(found, default=0)


def _commit(stage: Path, step: int) -> None:
    folder = fsio.make_dir(stage / "checkpoints" / f"step_{step:09d}")
    fsio.write_json(folder / "manifest.json", {"step": step})


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # As the real entry does: while Python shuts down, a stop signal would kill it.
    os._exit(code)
