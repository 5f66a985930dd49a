"""Ranks of a few lines that train with a watchdog each, and wait for each other at every step.

They meet through files, where real ones use a collective. `ORCHESTRATE_FAULT` makes one hang, see
`recipes.engine.hangs`; `kill:n` and `crash:n` make it die of SIGKILL, or raise and record that.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from cluster import fsio, watchdog
from cluster.heartbeat import Heart
from cluster.ranks import rank_environment
from recipes.engine import hangs

STEPS = 40
STEP_SECONDS = 0.05


def main() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in a collective, where nobody looks
    attempt = Path(sys.argv[1]) / "attempts" / "s001r000"
    ranks = rank_environment(os.environ)
    heart = Heart()
    seconds = float(os.environ["ORCHESTRATE_HANG_SECONDS"])
    watchdog.start(heart, attempt, ranks.rank, ranks.world_size, seconds)
    fsio.write_text(attempt / f"pid-{ranks.rank}", str(os.getpid()))
    beat = hangs.behind(heart.beat)
    for step in range(STEPS):
        beat("data", step)
        time.sleep(STEP_SECONDS)
        _fault(attempt, ranks.rank, step)
        beat("agree", step)
        (attempt / f"step-{step}-{ranks.rank}").touch()
        while len(list(attempt.glob(f"step-{step}-*"))) < ranks.world_size:
            time.sleep(0.01)
    beat("idle", STEPS)
    (attempt / f"done-{ranks.rank}").touch()
    heart.leave()
    return 0


def _fault(attempt: Path, rank: int, step: int) -> None:
    kind, _, number = os.environ.get("ORCHESTRATE_FAULT", "").partition(":")
    if number != str(step) or os.environ["ORCHESTRATE_FAULT_RANK"] != str(rank):
        return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "crash":
        record = {"rank": rank, "exit_code": 70, "cause": "user_code", "message": "x"}
        record |= {"host": "h", "at": time.time()}
        fsio.write_json(attempt / f"failure-rank{rank}.json", record)
        os._exit(70)
    if kind == "pause":
        time.sleep(3 * float(os.environ["ORCHESTRATE_HANG_SECONDS"]))


if __name__ == "__main__":
    sys.exit(main())
