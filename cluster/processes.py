"""The ranks of one job as processes of this machine: start, watch, stop together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.contract import ExitCode
from cluster.ranks import RankEnv, rendezvous_port

_PR_SET_PDEATHSIG = 1
_AGREED_SECONDS = 30.0  # SLURM's default KillWait


def free_port() -> int:
    """A port nobody listens on now, below the ephemeral range that outgoing connections use."""
    for _ in range(100):
        # Not a secret: any port will do, and two executors should not try the same one first.
        port = rendezvous_port(random.SystemRandom().randrange(12000), 0)
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port between 20000 and 31999 after 100 tries")


def die_with_parent() -> Callable[[], None] | None:
    """What a child runs before its program, so that it is killed when the executor ends anyhow.

    Without it a killed executor would leave ranks training that nothing watches or restarts.
    Only Linux offers it.
    """
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


class RankGroup:
    """All ranks of one attempt. Each has a process group of its own, so that Ctrl-C in the terminal
    reaches the executor alone, which then stops them together.

    Args:
        argv: the command of every rank.
        env: the whole environment but for the rank variables.
        world_size: number of ranks.
        log_dir: rank r appends to `local_<r>_log.out` and starts in this folder.
        kill_seconds: how long ranks have to leave after another one failed or they were asked to.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        world_size: int,
        log_dir: Path,
        *,
        kill_seconds: float,
    ) -> None:
        self._kill_seconds = kill_seconds
        self._kill_at: float | None = None
        self._first_code: int | None = None
        self._ranks: list[subprocess.Popen[bytes]] = []
        port = free_port()
        prepare = die_with_parent()
        try:
            for rank in range(world_size):
                place = RankEnv(
                    rank=rank,
                    world_size=world_size,
                    local_rank=rank,
                    local_world_size=world_size,
                    master_addr="127.0.0.1",
                    master_port=port,
                )
                whole = {**env, **place.export()}
                self._ranks.append(_spawn(argv, whole, log_path(log_dir, rank), prepare))
        except OSError:
            self.kill()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids, rank by rank."""
        return [process.pid for process in self._ranks]

    def poll(self) -> int | None:
        """The group's exit code once every rank is gone; None while any lives.

        It is that of the first rank seen to fail, 128 + n for one killed by signal n, as a shell
        says it. When a rank fails, the others are asked to leave and, after a while, killed.
        """
        codes = [process.poll() for process in self._ranks]
        if self._first_code is None:
            failed = [code for code in codes if code]
            if failed:
                self._first_code = _shell_code(failed[0])
                # Ranks that agreed to stop leave one by one; the last still commits what all saved.
                agreed = self._first_code == ExitCode.PREEMPTED
                self.terminate(within=_AGREED_SECONDS if agreed else None)
        alive = any(code is None for code in codes)
        if alive and self._kill_at is not None and time.monotonic() > self._kill_at:
            self._signal(signal.SIGKILL)
        if alive:
            return None
        self._signal(signal.SIGKILL)  # what a rank left behind in its group
        return self._first_code or ExitCode.SUCCESS

    def terminate(self, within: float | None = None) -> None:
        """Ask all ranks to stop; `poll` kills those still there after `within` seconds.

        The default is `kill_seconds`.
        """
        if self._kill_at is None:
            seconds = self._kill_seconds if within is None else within
            self._kill_at = time.monotonic() + seconds
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill all ranks at once and wait for them."""
        self._signal(signal.SIGKILL)
        for process in self._ranks:
            process.wait()

    def _signal(self, number: int) -> None:
        for process in self._ranks:
            if number == signal.SIGTERM and process.returncode is not None:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)


def log_path(log_dir: Path, rank: int) -> Path:
    """Where a rank of the local executor writes, appended across restarts."""
    return log_dir / f"local_{rank}_log.out"


def run_logged(argv: Sequence[str], env: Mapping[str, str], log: Path) -> int:
    """Run one program to its end with its output appended to `log`; its exit code as a shell's."""
    return _shell_code(_spawn(argv, env, log, die_with_parent()).wait())


def _spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    prepare: Callable[[], None] | None,
) -> subprocess.Popen[bytes]:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            argv,
            env=env,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            umask=0o077,
            start_new_session=True,
            preexec_fn=prepare,
        )
    finally:
        os.close(descriptor)


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code
