"""Carries a running stage's records to MLflow, in a process of its own beside rank 0.

`start` is called before anything heavy is imported; the process is deaf to the signals that stop a
job, retries for as long as the rank lives and then has a bounded time to finish. What it cannot
deliver stays in the stage's folder for the next attempt or for `tracking.sync`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tracking.delivering import DRAIN_SECONDS, INTERVAL_SECONDS, deliver, sampling
from tracking.stagefiles import StageFiles

_STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


@dataclass(frozen=True)
class Outbox:
    """A started outbox process, seen from rank 0; through `announced` it tells the run's id."""

    process: subprocess.Popen[bytes]
    announced: int

    def run_id(self, patience_seconds: float) -> str:
        """The stage's MLflow run, to be asked for once; empty where the server is not in reach."""
        ready, _, _ = select.select([self.announced], [], [], patience_seconds)
        return os.read(self.announced, 100).decode() if ready else ""

    def finish(self, patience_seconds: float = DRAIN_SECONDS + 15.0) -> bool:
        """Say that the attempt has ended and wait; False if something was left for `sync`."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            return self.process.wait(patience_seconds) == 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False


def start(stage_dir: Path, submission: int) -> Outbox:
    """Start the outbox of a stage; what it has to say goes to `outbox.log` in the stage's folder.

    The stop signals are blocked until the child ignores them, so that one that comes to the whole
    job while the child's interpreter starts does not end it.
    """
    argv = [sys.executable, "-m", "tracking.outbox", str(stage_dir)]
    reading, writing = os.pipe()
    argv += ["--submission", str(submission), "--announce", str(writing)]
    log = os.open(stage_dir / "outbox.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[writing]
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(log)
        os.close(writing)
    return Outbox(process, reading)


def main(argv: list[str] | None = None) -> int:
    """Deliver until the attempt has ended; 0 if everything that should be in MLflow is there."""
    for one in _STOP_SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    parser = argparse.ArgumentParser(prog="python -m tracking.outbox")
    parser.add_argument("stage_dir", type=Path)
    parser.add_argument("--submission", type=int, required=True)
    parser.add_argument("--announce", type=int, required=True, metavar="FD")
    parser.add_argument("--interval", type=float, default=INTERVAL_SECONDS, metavar="SECONDS")
    parser.add_argument("--drain", type=float, default=DRAIN_SECONDS, metavar="SECONDS")
    options = parser.parse_args(argv)
    os.umask(0o077)
    os.nice(10)  # the rank's own start needs the processor more
    files = StageFiles(options.stage_dir.absolute())
    target = files.target(options.submission)
    if target is None or (target.offline and not target.system_metrics):
        return 0
    ended = _watch_parent(files, options.submission)
    if target.offline:
        _only_sample(files, ended, options.interval)
        return 0
    return deliver(
        files,
        target,
        ended,
        interval=options.interval,
        drain=options.drain,
        announce=_announcer(options.announce),
    )


def _only_sample(files: StageFiles, ended: Callable[[float], bool], interval: float) -> None:
    """In mode offline nothing is delivered, but what the node does is noted for `sync`."""
    with sampling(files):
        while not ended(interval):
            pass


def _announcer(writing: int) -> Callable[[str], None]:
    """A function that tells rank 0 the run's id, or by an empty text that there is none, once."""
    told = False

    def announce(run_id: str) -> None:
        nonlocal told
        if not told:
            told = True
            with contextlib.suppress(OSError):  # rank 0 is gone
                os.write(writing, run_id.encode())
            os.close(writing)

    return announce


def _watch_parent(files: StageFiles, submission: int) -> Callable[[float], bool]:
    """A function that waits up to so many seconds and says whether the attempt has ended.

    It has when rank 0 closed our standard input or is gone, or when the attempt's end is recorded.
    """
    parent = os.getppid()
    piped = stat.S_ISFIFO(os.fstat(0).st_mode)
    prefix = f"s{submission:03d}r"
    mine = [one for one in files.attempts() if one.id.startswith(prefix)]
    end = files.path / "attempts" / (mine[-1].id if mine else f"{prefix}000") / "end.json"

    def ended(seconds: float) -> bool:
        if piped:
            ready, _, _ = select.select([0], [], [], seconds)
            if ready and not os.read(0, 4096):
                return True
        else:
            time.sleep(seconds)
        return os.getppid() != parent or end.exists()

    return ended


if __name__ == "__main__":
    sys.exit(main())
