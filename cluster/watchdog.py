"""Watches one rank from outside: finds that it hangs or died, agrees with the others, ends it."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import hang, memory, procfs, stacks
from cluster.contract import ExitCode
from cluster.hang_records import Records
from cluster.heartbeat import Heart, Monitor, Pulse

_DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_TICK_SECONDS = 1.0
_SHORTEST_TICK_SECONDS = 0.1
_ASLEEP_SECONDS = 5.0  # a watchdog that comes so much too late was stopped itself, like its rank
_CPU_SECONDS = 5.0  # over which the use of the processor is measured
_PEERS_SECONDS = 30.0  # for the other watchdogs to say how their ranks are, also through NFS
_LEAVE_SECONDS = 5.0  # for a rank to leave by itself when another one has failed
_SIGNAL_BASE = 128
_KILLED = _SIGNAL_BASE + signal.SIGKILL


def start(
    heart: Heart, attempt: Path, rank: int, world_size: int, hang_seconds: float
) -> subprocess.Popen[bytes]:
    """Start the watchdog of this process, which ends with it; call it before heavy imports.

    Args:
        heart: what this process will give signs of life through.
        attempt: folder of the attempt's records, shared by all ranks.
        rank: of this process.
        world_size: how many watchdogs speak with each other.
        hang_seconds: see `hang.Limits.of`.
    """
    descriptors = (heart.descriptor, stacks.prepare())
    numbers = (os.getpid(), *descriptors, rank, world_size, hang_seconds)
    argv = [sys.executable, "-P", "-m", "cluster.watchdog", str(attempt), *map(str, numbers)]
    # -P: the folder the job runs in must not shadow the code. The signals are held back until the
    # child ignores them: one that comes to the whole job while it starts does not end it.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
    try:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, pass_fds=descriptors, start_new_session=True
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def main(argv: list[str] | None = None) -> int:
    """Watch until the rank has ended."""
    for number in _DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _DEAF_TO)
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="python -m cluster.watchdog")
    parser.add_argument("attempt", type=Path)
    for name in ("pid", "heart", "stacks", "rank", "world_size"):
        parser.add_argument(name, type=int)
    parser.add_argument("hang_seconds", type=float)
    options = parser.parse_args(argv)
    watch = _Watch(
        rank=Rank(number=options.rank, pid=options.pid, world_size=options.world_size),
        attempt=options.attempt,
        monitor=Monitor(options.heart),
        stacks_descriptor=options.stacks,
        hang_seconds=options.hang_seconds,
    )
    watch.run()
    return 0


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The process that is watched: number `number` of `world_size`."""

    number: int
    pid: int
    world_size: int


class _Watch:
    """One life of a watchdog."""

    def __init__(
        self,
        *,
        rank: Rank,
        attempt: Path,
        monitor: Monitor,
        stacks_descriptor: int,
        hang_seconds: float,
    ) -> None:
        self._rank, self._monitor = rank, monitor
        self._stacks_descriptor = stacks_descriptor
        self._host = socket.gethostname()
        self._records = Records(attempt, rank.number, self._host)
        self._limits = hang.Limits.of(hang_seconds)
        # Limits of a few seconds, as in tests, are looked after more often.
        quick = _TICK_SECONDS * hang_seconds / hang.DEFAULT_SECONDS
        self._tick = min(_TICK_SECONDS, max(_SHORTEST_TICK_SECONDS, quick))
        self._process = procfs.Parent(rank.pid)
        self._times = hang.StepTimes()
        self._cpu: deque[tuple[float, float]] = deque()
        self._oom_kills = memory.oom_kills() or 0
        self._awake_since = time.monotonic()
        self._hanging_since: float | None = None
        self._failed_since: float | None = None
        self._complaint = ""

    def run(self) -> None:
        """Look once a second until the rank is gone or had to be ended."""
        before = time.monotonic()
        while not self._process.ends_within(self._tick):
            now = time.monotonic()
            if now - before > self._tick + _ASLEEP_SECONDS:
                self._awake_since = now  # `scontrol suspend` stops all of a job: nobody hangs
            before = now
            try:
                ended = self._look(now)
            except OSError as error:
                ended = self._speechless(error, now)
            if ended:
                return
        self._died()

    def _speechless(self, error: OSError, now: float) -> bool:
        """The records cannot be read or written: end a rank that hangs without asking the others.

        A file server that is away may come back, so that is done only after twice its time.
        """
        if str(error) != self._complaint:
            print(f"orchestrate: watchdog: {error}", file=sys.stderr, flush=True)
        self._complaint = str(error)
        pulse = self._monitor.read()
        if not self._hangs(pulse, now - self._limit(pulse)):
            return False
        self._kill()
        return True

    def _look(self, now: float) -> bool:
        """See how this rank and the others are; whether this one was ended."""
        pulse = self._monitor.read()
        self._times.observe(pulse)
        self._cpu.append((now, procfs.cpu_seconds(self._rank.pid)))
        while now - self._cpu[0][0] > _CPU_SECONDS:
            self._cpu.popleft()
        if pulse.leaving:
            return False
        hangs = self._hangs(pulse, now)
        if self._rank.world_size == 1 and not hangs:
            return False
        names = self._records.names()
        if "hang.json" in names:
            self._end_attempt(names)
            return True
        if failed := sorted(name for name in names if name.startswith("failure-rank")):
            return self._end_after(failed[0], pulse, now)
        self._failed_since = None
        self._compare(pulse, names, hangs=hangs, now=now)
        return False

    def _hangs(self, pulse: Pulse, now: float) -> bool:
        return pulse.phase != "idle" and self._silent(pulse, now) > self._limit(pulse)

    def _silent(self, pulse: Pulse, now: float) -> float:
        return now - max(pulse.at, self._awake_since)

    def _limit(self, pulse: Pulse) -> float:
        return hang.limit(pulse, self._times, self._limits)

    def _end_after(self, failure: str, pulse: Pulse, now: float) -> bool:
        """End this rank where it stays though another has failed: it may wait for it for ever.

        A collective of Gloo notices a lost peer within a second, one of NCCL may not. A rank that
        saves may be about to commit what all have written; the executor gives it a little longer.
        """
        if self._failed_since is None:
            self._failed_since = now
        if pulse.phase == "save" or now - self._failed_since < _LEAVE_SECONDS:
            return False
        message = f"ended by its watchdog, because it went on when others had failed: {failure}"
        self._records.failed(ExitCode.COMMUNICATION, "communication", message)
        self._kill()
        return True

    def _compare(self, pulse: Pulse, names: set[str], *, hangs: bool, now: float) -> None:
        """Say how this rank is as long as any rank hangs; declare which, once that is known."""
        asked = any(name.startswith("hang-rank") for name in names)
        if not hangs and not (asked and self._another_hangs()):
            if self._hanging_since is not None:
                self._records.unsay()
            self._hanging_since = None
            return
        if self._hanging_since is None:
            self._hanging_since = now
        self._records.say(self._state(pulse, hangs=hangs, now=now))
        waited = now - self._hanging_since > _PEERS_SECONDS
        found = hang.verdict(self._records.states(), self._rank.world_size, waited=waited)
        again = self._monitor.read()
        alive = again.beats != pulse.beats or (hangs and not self._hangs(again, now))
        if found is not None and not alive:
            self._records.declare(found)  # the next look finds it, or that of another watchdog

    def _another_hangs(self) -> bool:
        states = self._records.states()
        return any(state.hangs for state in states if state.rank != self._rank.number)

    def _state(self, pulse: Pulse, *, hangs: bool, now: float) -> hang.RankState:
        pid = self._rank.pid
        (first, used_first), (last, used_last) = self._cpu[0], self._cpu[-1]
        return hang.RankState(
            rank=self._rank.number,
            host=self._host,
            pid=pid,
            phase=pulse.phase,
            step=pulse.step,
            beats=pulse.beats,
            silent_seconds=round(self._silent(pulse, now), 1) if pulse.beats else 0.0,
            limit_seconds=round(self._limit(pulse), 1),
            hangs=hangs,
            state=procfs.state(pid),
            waits_in=procfs.waits_in(pid),
            cpu_share=round((used_last - used_first) / max(last - first, self._tick), 2),
            children=tuple(one for one in procfs.children(pid) if one["pid"] != os.getpid()),
        )

    def _end_attempt(self, names: set[str]) -> None:
        """Leave the stacks and the end of the attempt on disk, then kill this rank.

        The end is rank 0's to write, so its watchdog stops it first and writes in its place; where
        its node is gone, another one does. Nobody kills before the end is written: the others would
        notice the loss within a second and call that the cause.
        """
        found = self._records.declared()
        stopped = procfs.state(self._rank.pid) == "T"
        with contextlib.suppress(OSError):  # a full disk
            if not stopped:
                self._write_stacks(found)
            if self._rank.number == 0:
                self._process.signal(signal.SIGSTOP)
                self._records.write_end(found)
            written = self._records.wait_for({"end.json"})
            if not written and found["found_by"] == self._rank.number:
                self._records.write_end(found)
            expected = {_stacks_of(name) for name in names if name.startswith("hang-rank")}
            if stopped:  # it has to be continued for them, and then the others would be as well
                self._records.wait_for(
                    expected - {_stacks_of(f"hang-rank{self._rank.number}.json")}
                )
                self._write_stacks(found)
            self._records.wait_for(expected)
        self._kill()

    def _write_stacks(self, found: dict[str, Any]) -> None:
        head = f"rank {self._rank.number} on {self._host}; {found['message']}\n"
        self._records.write_stacks(head + stacks.take(self._rank.pid, self._stacks_descriptor))

    def _died(self) -> None:
        """Record the end of a rank that left no word: killed by the kernel, a person, a crash."""
        if self._monitor.read().leaving:
            return
        code = self._process.exit_code()
        if (memory.oom_kills() or 0) > self._oom_kills and code in (None, _KILLED):
            message = memory.killed_message()
            self._records.failed(ExitCode.OUT_OF_MEMORY, "out_of_host_memory", message)
            return
        how = "" if code is None else f" {_how(code)}"
        message = f"the process ended{how} without a word"
        self._records.failed(code or _KILLED, "killed", message)

    def _kill(self) -> None:
        self._process.signal(signal.SIGCONT)
        self._process.signal(signal.SIGKILL)


def _stacks_of(name: str) -> str:
    return name.replace("hang-", "stacks-").replace(".json", ".txt")


def _how(code: int) -> str:
    """An exit code in words."""
    if code <= _SIGNAL_BASE:
        return f"with exit code {code}"
    number = code - _SIGNAL_BASE
    known = number in {one.value for one in signal.Signals}
    return f"by {signal.Signals(number).name}" if known else f"by signal {number}"


if __name__ == "__main__":
    sys.exit(main())
