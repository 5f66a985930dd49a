"""Carries a running stage's records to MLflow, in a process of its own beside rank 0.

`start` is called before anything heavy is imported; the process is deaf to the signals that stop a
job, retries for as long as the rank lives and then has a bounded time to finish. What it cannot
deliver stays in the stage's folder for the next attempt or for `tracking.sync`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
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

from tracking.stagefiles import StageFiles, State, Target

INTERVAL_SECONDS = 2.0
DRAIN_SECONDS = 60.0
# A server that is away at the end is not waited for: the job would hold its nodes for nothing.
DRAIN_AWAY_SECONDS = 5.0
_BACKOFF_SECONDS = (2.0, 60.0)
_TIMEOUT_SECONDS = (5, 60)
_PROGRESS_SECONDS = 15.0
_TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
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
    if target is None or target.offline:
        return 0
    ended = _watch_parent(files, options.submission)
    return deliver(
        files,
        target,
        ended,
        interval=options.interval,
        drain=options.drain,
        announce=_announcer(options.announce),
    )


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


def deliver(
    files: StageFiles,
    target: Target,
    ended: Callable[[float], bool],
    *,
    interval: float = INTERVAL_SECONDS,
    drain: float = DRAIN_SECONDS,
    announce: Callable[[str], None] = lambda run_id: None,
) -> int:
    """Deliver until the attempt has ended, then what is left; 0 if nothing is.

    Args:
        files: the stage.
        target: where it reports to.
        ended: waits up to so many seconds and says whether the attempt has ended.
        interval: seconds between two looks at the stage's files.
        drain: seconds for the last delivery.
        announce: is told the run's id when it is known, or nothing when the server is away.
    """
    return _Run(files, target, ended, interval, drain, announce).run()


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


class _Run:
    """One life of the process: deliver while the parent lives, then finish in bounded time."""

    def __init__(
        self,
        files: StageFiles,
        target: Target,
        ended: Callable[[float], bool],
        interval: float,
        drain: float,
        announce: Callable[[str], None],
    ) -> None:
        self._announce = announce
        self._files = files
        self._target = target
        self._ended = ended
        self._interval = interval
        self._drain = drain
        self._failures = 0
        self._own_timeout = _TIMEOUT_VARIABLE not in os.environ
        attempts = files.attempts()
        self._attempt = attempts[-1].id if attempts else ""
        self._resumed_at = files.committed_step()
        self._progress_at = -math.inf
        self._opened = False
        self._draining = False

    def run(self) -> int:
        """Deliver and finish, under the stage's lease."""
        from tracking.lease import Lease
        from tracking.shipping import LEASE, LeaseLostError, Shipment

        lease = Lease.acquire(
            self._files.path / LEASE, patience_seconds=math.inf, give_up=lambda: self._ended(0.0)
        )
        if lease is None:
            _say("another process delivers this stage")
            return 1
        with lease:
            self._shipment = Shipment(self._files, self._target, lease)
            try:
                self._while_alive()
                return self._finish()
            except LeaseLostError as error:
                _say(str(error))
                return 1

    def _while_alive(self) -> None:
        wait = 0.0
        while not self._ended(wait):
            if self._try(self._round):
                wait = self._interval
            else:
                first, most = _BACKOFF_SECONDS
                wait = min(most, first * 2 ** (self._failures - 1))

    def _try(self, step: Callable[[], None]) -> bool:
        """Run a step that talks to the server; False, with a line in the log, if it could not."""
        from tracking.backend import delivery_errors

        try:
            step()
        except delivery_errors() as error:
            self._failures += 1
            self._announce("")
            message = str(error).partition("\n")[0][:300]
            _say(f"not delivered ({self._failures} in a row): {type(error).__name__}: {message}")
            if not self._draining:
                self._set_timeout(min(_TIMEOUT_SECONDS[1], _TIMEOUT_SECONDS[0] * 2**self._failures))
            return False
        if self._failures:
            _say("the server answers again")
        self._failures = 0
        return True

    def _set_timeout(self, seconds: int) -> None:
        """A slow server is given more time at each try: nobody waits for this process."""
        if self._own_timeout:
            os.environ[_TIMEOUT_VARIABLE] = str(seconds)

    def _round(self) -> None:
        from tracking.pipeline import refresh_parent

        if not self._opened:
            self._shipment.open("RUNNING")
            refresh_parent(self._shipment.client, self._target)
            self._opened = True
            self._announce(self._shipment.run_id)
        # The checkpoint is looked at before the metrics, whose lines are then at least as new.
        committed = self._files.committed_step()
        self._shipment.deliver(
            current=self._attempt, committed=committed, resumed_at=self._resumed_at
        )
        if time.monotonic() - self._progress_at > _PROGRESS_SECONDS:
            self._shipment.tag_progress()
            self._progress_at = time.monotonic()

    def _finish(self) -> int:
        state = self._files.state()
        if state.name == "running":
            state = State(name="requeued", reason="ended without a record")
        patience = min(self._drain, DRAIN_AWAY_SECONDS) if self._failures else self._drain
        deadline = time.monotonic() + patience
        self._set_timeout(_TIMEOUT_SECONDS[0])
        self._draining = True
        while not self._try(lambda: self._close(state)):
            if time.monotonic() > deadline:
                _say("left for `orchestrate sync`")
                return 1
            time.sleep(min(self._interval, 1.0))
        return 0

    def _close(self, state: State) -> None:
        from tracking.closing import close
        from tracking.pipeline import refresh_parent

        if not self._opened:
            self._shipment.open(None)
            self._opened = True
            self._announce(self._shipment.run_id)
        self._shipment.deliver(
            current=self._attempt,
            committed=self._files.committed_step(),
            resumed_at=self._resumed_at,
            final=state.final,
        )
        close(self._shipment, state)
        refresh_parent(self._shipment.client, self._target)


def _say(message: str) -> None:
    moment = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"{moment} outbox: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
