"""Jobs on this machine, in the foreground: one after the other, in dependency order."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType

from cluster import batch, fsio, local_record
from cluster.contract import (
    ArrayRequest,
    ExitCode,
    JobHandle,
    JobRequest,
    JobState,
    Phase,
    SchedulerError,
)
from cluster.environment import passed_on
from cluster.local_record import JobRecord, Owner, OwnRecords
from cluster.processes import RankGroup, log_path, run_logged

_POLL_SECONDS = 0.05
_TICK_SECONDS = 0.5
_NEVER = "DependencyNeverSatisfied"

Tick = Callable[[Mapping[JobHandle, JobState]], None]


@dataclass(kw_only=True)
class _Job:
    """A job of this executor; `group` holds its ranks while it runs."""

    request: JobRequest
    record: JobRecord
    group: RankGroup | None = None
    cancelled: bool = False

    @property
    def phase(self) -> Phase:
        return self.record.state.phase


class LocalExecutor:
    """The local back end (see `cluster.contract.Executor`).

    `submit` only queues; `wait` runs what is queued. Ctrl-C, SIGTERM and SIGHUP in `wait` ask the
    ranks to save and leave, then raise KeyboardInterrupt; a second one kills them.

    Args:
        kill_seconds: how long the other ranks have to leave once one has failed.
        stop_seconds: how long ranks have to save and leave when asked to stop.
        notify: where the few words for a waiting person go.
    """

    name = "local"

    def __init__(
        self,
        *,
        kill_seconds: float = 8.0,
        stop_seconds: float = 120.0,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._kill_seconds = kill_seconds
        self._stop_seconds = stop_seconds
        self._notify = notify or _to_stderr
        self._jobs: dict[str, _Job] = {}
        self._records: OwnRecords | None = None

    def submit(self, request: JobRequest) -> JobHandle:
        """Queue the job; it starts in `wait`. Raises batch.RequestError."""
        name = _name(batch.check_job_name(request.name), request.task)
        batch.command(replace(request, task=None))
        fsio.make_dir(request.log_dir)
        if self._records is None:
            self._records = OwnRecords()
        record = self._records.create(name)
        self._jobs[record.job_id] = _Job(request=request, record=record)
        return record.handle

    def submit_array(self, array: ArrayRequest) -> list[JobHandle]:
        """Queue the jobs, one after the other. Raises batch.RequestError."""
        return [self.submit(task) for task in array.tasks]

    def array_limit(self) -> int:
        """As many as one likes."""
        return sys.maxsize

    def render(self, request: JobRequest | ArrayRequest) -> str:
        """The commands that `wait` runs, for people to read."""
        if isinstance(request, ArrayRequest):
            return "\n".join(self.render(replace(task, task=None)) for task in request.tasks)
        exports = sorted(request.env.items())
        return "\n".join(
            [
                f"# {request.name}: {request.resources.world_size} processes on this machine",
                *(f"# {name}={value}" for name, value in exports),
                batch.command(request),
                "",
            ]
        )

    def query(self, handles: Sequence[JobHandle]) -> dict[JobHandle, JobState]:
        """States of jobs of any process here. Raises SchedulerError for jobs elsewhere."""
        return {handle: self._state(handle) for handle in handles}

    def find(self, name: str, task: int | None = None) -> JobHandle | None:
        """The newest job of that name queued or running in any process of this user."""
        alive = [
            record
            for record in local_record.iterate()
            if record.name == _name(name, task) and record.state.phase is not Phase.GONE
        ]
        return max(alive, key=lambda record: record.submitted_at).handle if alive else None

    def cancel(self, handles: Sequence[JobHandle]) -> None:
        """Stop jobs; those of another process are stopped by it within a second."""
        for handle in handles:
            job = self._jobs.get(handle.job_id)
            if job is not None:
                self._cancel(job)
            elif self._state(handle).phase is not Phase.GONE:
                local_record.ask_to_cancel(handle.job_id)

    def wait(
        self,
        handles: Sequence[JobHandle],
        on_tick: Tick | None = None,
        timeout: float | None = None,
    ) -> dict[JobHandle, JobState]:
        """Run the queued jobs until `handles` are gone. Raises KeyboardInterrupt as described."""
        deadline = None if timeout is None else time.monotonic() + timeout
        next_tick = 0.0
        with _signals_interrupt():
            try:
                while True:
                    self._advance()
                    now = time.monotonic()
                    over = deadline is not None and now >= deadline
                    states = self.query(handles)
                    gone = all(state.phase is Phase.GONE for state in states.values())
                    if on_tick is not None and (now >= next_tick or gone or over):
                        next_tick = now + _TICK_SECONDS
                        on_tick(states)
                    if gone or over:
                        return states
                    time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:
                self._interrupted()
                raise

    # -- one step of the queue -------------------------------------------------------------------

    def _advance(self) -> None:
        """Look once at the running job; with none, start the first one that may start."""
        for job in self._jobs.values():
            if self._records is not None and self._records.cancel_wanted(job.record.job_id):
                self._cancel(job)
        running = [job for job in self._jobs.values() if job.group is not None]
        if running:
            self._look_at(running[0])
            return
        for job in self._jobs.values():
            if job.phase is not Phase.PENDING:
                continue
            upstream = self._upstream(job)
            if upstream is Phase.RUNNING:
                self._start(job)
                return
            if upstream is Phase.GONE:
                self._set(job, phase=Phase.GONE, reason=_NEVER)

    def _upstream(self, job: _Job) -> Phase:
        """RUNNING where all dependencies succeeded, GONE where one never will, else PENDING."""
        states = [self._state(handle) for handle in job.request.after]
        failed = [s for s in states if s.phase is Phase.GONE and s.exit_code != ExitCode.SUCCESS]
        if failed:
            return Phase.GONE
        return Phase.RUNNING if all(s.phase is Phase.GONE for s in states) else Phase.PENDING

    def _start(self, job: _Job) -> None:
        request = job.request
        try:
            job.group = RankGroup(
                [*request.argv, *request.target],
                self._environment(job),
                request.resources.world_size,
                request.log_dir,
                kill_seconds=self._kill_seconds,
            )
        except OSError as error:
            self._set(job, phase=Phase.GONE, reason=f"cannot start: {error}", exit_code=127)
            return
        self._set(job, phase=Phase.RUNNING, reason="")

    def _environment(self, job: _Job) -> dict[str, str]:
        return {
            **passed_on(os.environ, also=job.request.resources.pass_env, same_machine=True),
            **job.request.env,
            "ORCHESTRATE_RESTART_COUNT": str(job.record.state.restarts),
        }

    def _look_at(self, job: _Job) -> None:
        code = job.group.poll() if job.group is not None else None
        if code is None:
            return
        job.group = None
        code = self._run_epilogue(job, code)
        if job.cancelled:
            self._set(job, phase=Phase.GONE, reason="cancelled", exit_code=code or 1)
        elif code == ExitCode.PREEMPTED:
            restarts = job.record.state.restarts + 1
            self._set(job, phase=Phase.PENDING, reason="requeued", restarts=restarts)
            self._start(job)
        else:
            reason = "" if code == ExitCode.SUCCESS else f"exit code {code}"
            self._set(job, phase=Phase.GONE, reason=reason, exit_code=code)

    def _run_epilogue(self, job: _Job, code: int, *flags: str) -> int:
        request = job.request
        argv = [*request.epilogue, *request.target, "--exit-code", str(code), *flags]
        try:
            return run_logged(argv, self._environment(job), log_path(job.request.log_dir, 0))
        except OSError as error:
            self._notify(f"{job.request.name}: the epilogue did not start: {error}")
            return code or 1

    # -- stopping --------------------------------------------------------------------------------

    def _cancel(self, job: _Job) -> None:
        if job.phase is Phase.GONE or job.cancelled:
            return
        job.cancelled = True
        if job.group is None:
            self._set(job, phase=Phase.GONE, reason="cancelled", exit_code=None)
        else:
            job.group.terminate(within=self._stop_seconds)

    def _interrupted(self) -> None:
        """Let the running job save, run its epilogue without a restart, drop what is queued."""
        for job in self._jobs.values():
            if job.phase is Phase.PENDING:
                self._set(job, phase=Phase.GONE, reason="interrupted")
            elif job.group is not None:
                code = self._stop(job.group, job.request.name)
                job.group = None
                # A third Ctrl-C must not lose the record of how the attempt ended.
                with _signals_ignored():
                    code = self._run_epilogue(job, code, "--interrupted")
                self._set(job, phase=Phase.GONE, reason="interrupted", exit_code=code)

    def _stop(self, group: RankGroup, name: str) -> int:
        self._notify(f"stopping {name}: it saves a checkpoint; Ctrl-C again kills it")
        try:
            group.terminate(within=self._stop_seconds)
            while (code := group.poll()) is None:
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            group.kill()
            code = group.poll()
        return 128 + signal.SIGKILL if code is None else code

    # -- records ---------------------------------------------------------------------------------

    def _set(
        self,
        job: _Job,
        *,
        phase: Phase,
        reason: str,
        exit_code: int | None = None,
        restarts: int | None = None,
    ) -> None:
        count = job.record.state.restarts if restarts is None else restarts
        state = JobState(phase=phase, reason=reason, restarts=count, exit_code=exit_code)
        job.record = replace(job.record, state=state)
        if self._records is not None:
            self._records.update(job.record)

    def _state(self, handle: JobHandle) -> JobState:
        job = self._jobs.get(handle.job_id)
        if job is not None:
            return job.record.state
        owner = Owner.parse(handle.job_id.rpartition(".")[0])
        if owner is None or handle.executor != self.name:
            raise SchedulerError(f"{handle.executor} job {handle.job_id} is not a local job")
        if owner.alive():
            record = local_record.read(handle.job_id)
            return record.state if record else JobState(phase=Phase.RUNNING, reason="process lives")
        if owner.boot != local_record.boot_id() and handle.cluster not in _machines_known_here():
            raise SchedulerError(
                f"job {handle.job_id} was started on {handle.cluster}: only that machine can tell"
                f" whether it still runs. Ask there; if it is no more, set"
                f" ORCHESTRATE_GONE_HOSTS={handle.cluster}"
            )
        return JobState(phase=Phase.GONE, reason="the process that ran it is gone")


def _name(name: str, task: int | None) -> str:
    """What a job is found by; the jobs of an array share their name."""
    return name if task is None else f"{name}_{task}"


def _machines_known_here() -> set[str]:
    """This host, whose earlier boots are over, and those the user says are no more."""
    return {socket.gethostname(), *os.environ.get("ORCHESTRATE_GONE_HOSTS", "").split(",")}


def _to_stderr(text: str) -> None:
    print(f"orchestrate: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP to the executor do what Ctrl-C does, so that the ranks can save."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handlers({signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}):
        yield


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with _handlers(dict.fromkeys(numbers, signal.SIG_IGN)):
        yield


@contextlib.contextmanager
def _handlers(
    wanted: Mapping[signal.Signals, Callable[[int, FrameType | None], None] | signal.Handlers],
) -> Iterator[None]:
    """Signal handlers for a while; only the main thread may have any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
