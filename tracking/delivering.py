"""One process's turn at delivering a stage: while its rank lives, then what is left."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

from tracking.backend import TIMEOUT_VARIABLE
from tracking.stagefiles import StageFiles, State, Target

INTERVAL_SECONDS = 2.0
DRAIN_SECONDS = 60.0
# A server that is away at the end is not waited for: the job would hold its nodes for nothing.
DRAIN_AWAY_SECONDS = 5.0
_BACKOFF_SECONDS = (2.0, 60.0)
_TIMEOUT_SECONDS = (5, 60)
_PROGRESS_SECONDS = 15.0


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


@contextlib.contextmanager
def sampling(files: StageFiles) -> Iterator[None]:
    """Note how busy this node is, meanwhile."""
    from tracking.usage import Sampler

    attempts = files.attempts()
    sampler = Sampler(files.path, attempts[-1].id if attempts else "").start()
    try:
        yield
    finally:
        sampler.stop()


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
        self._own_timeout = TIMEOUT_VARIABLE not in os.environ
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
                with sampling(self._files) if self._target.system_metrics else nullcontext():
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
            os.environ[TIMEOUT_VARIABLE] = str(seconds)

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
