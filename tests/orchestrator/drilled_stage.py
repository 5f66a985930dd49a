"""Ranks that count steps together under the real watchdog, save when told to stop, and go on.

They meet through files where real ones use a collective, and wait there as NCCL does. The records
are those that the real entry writes, as far as a drill reads them.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from pathlib import Path

from cluster import fsio, watchdog
from cluster.heartbeat import Heart
from cluster.preemption import StopFlag
from cluster.progress import committed_step
from cluster.ranks import RankEnv, rank_environment, restart_count

STEP_SECONDS = 0.1
SAVED_EVERY = 10


def main() -> int:
    stop = StopFlag()
    stop.install()
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", type=Path)
    parser.add_argument("--submission", type=int)
    options = parser.parse_args()
    ranks = rank_environment(os.environ)
    # The watchdog writes for a rank of that name, and a drill on one machine finds it by it.
    os.environ["RANK"] = str(ranks.rank)
    name = f"s{options.submission:03d}r{restart_count(os.environ):03d}"
    attempt = fsio.make_dir(options.stage / "attempts" / name)
    heart = Heart()
    seconds = float(os.environ["ORCHESTRATE_HANG_SECONDS"])
    watchdog.start(heart, attempt, ranks.rank, ranks.world_size, seconds)
    step = committed_step(options.stage)
    if ranks.rank == 0:
        _record_start(attempt, ranks)
    while not (attempt / "stop").exists():
        heart.beat("data", step)
        time.sleep(STEP_SECONDS)
        heart.beat("agree", step)
        _meet(attempt, ranks, step)
        step += 1
        if ranks.rank == 0:
            progress = {"attempt": name, "step": step, "phase": "train", "steps": 100_000}
            fsio.write_json(options.stage / "progress.json", progress)
            if step % SAVED_EVERY == 0:
                _save(options.stage, step)
        if stop.requested():
            (attempt / "stop").touch()
    if ranks.rank == 0:
        _save(options.stage, step)
        end = {"outcome": "preempted", "exit_code": 75, "cause": "preempted", "message": ""}
        fsio.write_json(attempt / "end.json", {**end, "step": step, "finished_at": time.time()})
    heart.leave()
    return 75


def _record_start(attempt: Path, ranks: RankEnv) -> None:
    start = {
        "job_id": os.environ.get("SLURM_JOB_ID", ""),
        "hosts": os.environ.get("SLURM_JOB_NODELIST", socket.gethostname()),
        "host": socket.gethostname(),
        "restart": restart_count(os.environ),
        "pid": os.getpid(),
        "world_size": ranks.world_size,
        "started_at": time.time(),
    }
    fsio.write_json(attempt / "start.json", start)


def _meet(attempt: Path, ranks: RankEnv, step: int) -> None:
    (attempt / f"step-{step}-{ranks.rank}").touch()
    while len(list(attempt.glob(f"step-{step}-*"))) < ranks.world_size:
        if (attempt / "stop").exists():
            return
        time.sleep(0.01)
    (attempt / f"step-{step - 2}-{ranks.rank}").unlink(missing_ok=True)


def _save(stage: Path, step: int) -> None:
    folder = fsio.make_dir(stage / "checkpoints" / f"step_{step:09d}")
    fsio.write_json(folder / "manifest.json", {"step": step})


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
