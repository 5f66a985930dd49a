"""A stage that ends as its attempts are told to, with the records that the real entry leaves."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from cluster import fsio
from cluster.ranks import rank_environment, restart_count
from cluster.unrecorded import record_lost


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", type=Path)
    parser.add_argument("--submission", type=int)
    parser.add_argument("--end", action="append", default=[], help="restart:rank:code:cause")
    parser.add_argument("--hold", type=int, default=-1, help="attempt that goes on until it is hit")
    options = parser.parse_args()
    ranks, restart = rank_environment(os.environ), restart_count(os.environ)
    attempt = fsio.make_dir(options.stage / "attempts" / f"s{options.submission:03d}r{restart:03d}")
    node = os.environ["SLURMD_NODENAME"]
    fsio.write_json(attempt / f"node-rank{ranks.rank}.json", {"node": node, "pid": os.getpid()})
    if ranks.rank == 0:
        record_lost(options.stage, options.submission, restart)
        nodes = os.environ["SLURM_JOB_NODELIST"]
        start = {"world_size": ranks.world_size, "hosts": nodes, "job_id": "1"}
        fsio.write_json(attempt / "start.json", start)
    while len(list(attempt.glob("node-rank*.json"))) < ranks.world_size:
        time.sleep(0.02)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    while restart == options.hold:
        time.sleep(0.1)
    for when, rank, code, cause in (text.split(":") for text in options.end):
        if (int(when), int(rank)) == (restart, ranks.rank):
            return _fail(attempt, ranks.rank, int(code), cause)
    if any(text.startswith(f"{restart}:") for text in options.end):
        time.sleep(600)
    if ranks.rank == 0:
        fsio.write_json(options.stage / "result.json", {"key": "k" * 64})
    return 0


def _fail(attempt: Path, rank: int, code: int, cause: str) -> int:
    if not cause:  # a rank that is gone with its watchdog; the others have noticed
        while not list(attempt.glob("failure-rank*.json")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    record = {"rank": rank, "exit_code": code, "cause": cause, "at": time.time()}
    fsio.write_json(attempt / f"failure-rank{rank}.json", record)
    time.sleep(1.0)  # in which those end that wait for this record
    return code


if __name__ == "__main__":
    sys.exit(main())
