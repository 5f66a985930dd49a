"""Ranks of a few lines that train with a watchdog each, and wait for each other at every step.

They meet through files, where real ones use a collective, and wait as NCCL does: for ever, deaf to
SIGTERM. `ORCHESTRATE_FAULT` makes one of them hang in the first attempt, see
`recipes.engine.hangs`; `kill:n` and `crash:n` make it die of SIGKILL, or record an error and leave;
`save:n` makes it save for a time in which it may not be silent otherwise; `eat:n` fills half a
gigabyte.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from cluster import fsio, watchdog
from cluster.heartbeat import Heart
from cluster.ranks import RankEnv, rank_environment, restart_count
from recipes.engine import hangs

STEPS = 60
STEP_SECONDS = 0.05


def main() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stage = Path(sys.argv[1])
    ranks = rank_environment(os.environ)
    os.environ["RANK"] = str(ranks.rank)
    restart = restart_count(os.environ)
    attempt = fsio.make_dir(stage / "attempts" / f"s001r{restart:03d}")
    heart = Heart()
    seconds = float(os.environ["ORCHESTRATE_HANG_SECONDS"])
    dog = watchdog.start(heart, attempt, ranks.rank, ranks.world_size, seconds)
    fsio.write_json(attempt / f"pids-{ranks.rank}", {"rank": os.getpid(), "watchdog": dog.pid})
    fault = _fault(ranks.rank) if restart == 0 else ("", -1)
    beat = hangs.behind(heart.beat)
    for step in range(STEPS):
        beat("data", step)
        time.sleep(STEP_SECONDS)
        if os.environ.get("ORCHESTRATE_FAULT") == f"save:{step}":
            beat("save", step)  # on all ranks, as ever
            if fault == ("save", step):
                time.sleep(4 * seconds)
        _maybe_die(fault, attempt, ranks, step)
        beat("agree", step)
        _meet(attempt, ranks, step)
    beat("idle", STEPS)
    if ranks.rank == 0:
        key = fsio.read_json(stage / "stage.json")["key"]
        fsio.write_json(stage / "result.json", {"key": key, "steps": STEPS})
    heart.leave()
    return 0


def _fault(rank: int) -> tuple[str, int]:
    kind, _, step = os.environ.get("ORCHESTRATE_FAULT", "").partition(":")
    mine = os.environ.get("ORCHESTRATE_FAULT_RANK") == str(rank)
    return (kind, int(step)) if kind and mine else ("", -1)


def _maybe_die(fault: tuple[str, int], attempt: Path, ranks: RankEnv, step: int) -> None:
    if fault == ("eat", step):
        print(len(bytearray(512 << 20)))
    if fault == ("kill", step):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == ("crash", step):
        why = {"exit_code": 70, "cause": "user_code", "message": "ValueError: x"}
        where = {"rank": ranks.rank, "host": "h", "at": time.time()}
        fsio.write_json(attempt / f"failure-rank{ranks.rank}.json", {**why, **where})
        os._exit(70)


def _meet(attempt: Path, ranks: RankEnv, step: int) -> None:
    (attempt / f"step-{step}-{ranks.rank}").touch()
    while len(list(attempt.glob(f"step-{step}-*"))) < ranks.world_size:
        time.sleep(0.01)
    (attempt / f"step-{step - 2}-{ranks.rank}").unlink(missing_ok=True)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
