"""Jobs on SLURM: submission through submitit, states from squeue; works without accounting."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cluster import batch, fsio
from cluster.contract import JobHandle, JobRequest, JobState, Phase, SchedulerError
from cluster.environment import passed_on
from cluster.queue import SQUEUE_FORMAT, QueuedJob, parse_scontrol_config, parse_squeue

if TYPE_CHECKING:
    from cluster.submission import CommandSubmission

_GONE = JobState(phase=Phase.GONE, reason="unknown to the scheduler")
_UNKNOWN_JOB = "Invalid job id"
_UNREACHABLE = ("timed out", "Unable to contact", "Connection refused", "Zero Bytes", "Socket")
_TICK_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_PATIENCE_SECONDS = 600.0


class SlurmExecutor:
    """The SLURM back end (see `cluster.contract.Executor`). Holds nothing but a cached name.

    Args:
        ghost_patience_seconds: how long to look, after an sbatch that got no answer, for the job it
            may have made all the same.
    """

    name = "slurm"

    def __init__(self, *, ghost_patience_seconds: float = 30.0) -> None:
        self._ghost_patience_seconds = ghost_patience_seconds
        self._cluster: str | None = None

    def submit(self, request: JobRequest) -> JobHandle:
        """Hand the job to sbatch.

        Raises:
            batch.RequestError: a value that no script may hold; nothing was submitted.
            SchedulerError: sbatch refused, or could not be reached and left no job.
        """
        for handle in request.after:
            self._check_own(handle)
        submission, command = self._prepare(request)
        fsio.make_dir(request.log_dir)
        try:
            job_id = submission.submit_command(command)
        except SchedulerError as error:
            return self._ghost(request.name, error)
        return JobHandle(
            executor=self.name,
            cluster=self.cluster(),
            job_id=job_id,
            submitted_at=self._submit_time(job_id),
        )

    def render(self, request: JobRequest) -> str:
        """The sbatch script `submit` hands over; needs no SLURM. Raises batch.RequestError."""
        submission, command = self._prepare(request)
        return submission.render(command)

    def query(self, handles: Sequence[JobHandle]) -> dict[JobHandle, JobState]:
        """States from one squeue call. Raises SchedulerError."""
        if not handles:
            return {}
        for handle in handles:
            self._check_own(handle)
        known = {job.job_id: job for job in self._squeue("--jobs", _ids(handles))}
        return {handle: _state_of(handle, known.get(handle.job_id)) for handle in handles}

    def find(self, name: str) -> JobHandle | None:
        """The newest job of ours with that name that waits or runs. Raises SchedulerError."""
        alive = [job for job in self._named(name) if job.state.phase is not Phase.GONE]
        return self._handle(alive[-1]) if alive else None

    def cancel(self, handles: Sequence[JobHandle]) -> None:
        """scancel those that still wait or run; an id used again by a stranger is left alone."""
        states = self.query(handles)
        alive = [handle for handle in handles if states[handle].phase is not Phase.GONE]
        if alive:
            try:
                _run(["scancel", *(handle.job_id for handle in alive)])
            except SchedulerError as error:
                # Some ended between the question and the order, which some versions call an error.
                if not any(mark in str(error) for mark in (_UNKNOWN_JOB, "already completing")):
                    raise

    def wait(
        self,
        handles: Sequence[JobHandle],
        on_tick: Callable[[Mapping[JobHandle, JobState]], None] | None = None,
        timeout: float | None = None,
    ) -> dict[JobHandle, JobState]:
        """Poll squeue until all jobs are gone, ever less often the longer it takes.

        Raises:
            SchedulerError: no answer at first, or none for ten minutes: controllers are restarted.
        """
        states = self.query(handles)
        begun = answered = asked = time.monotonic()
        while True:
            if on_tick is not None:
                on_tick(states)
            if all(state.phase is Phase.GONE for state in states.values()):
                return states
            now = time.monotonic()
            if timeout is not None and now - begun >= timeout:
                return states
            time.sleep(_TICK_SECONDS if timeout is None else min(_TICK_SECONDS, timeout))
            if now - asked < min(_LONGEST_PAUSE_SECONDS, (now - begun) / 60):
                continue
            asked = now
            try:
                states, answered = self.query(handles), now
            except SchedulerError:
                if now - answered > _PATIENCE_SECONDS:
                    raise

    def cluster(self) -> str:
        """ClusterName of the controller this shell talks to. Raises SchedulerError."""
        if self._cluster is None:
            config = parse_scontrol_config(_run(["scontrol", "show", "config"]))
            self._cluster = config.get("ClusterName", "")
        return self._cluster

    def _prepare(self, request: JobRequest) -> tuple[CommandSubmission, str]:
        from cluster.submission import CommandSubmission

        values = batch.parameters(request, passed_on(os.environ))
        # In the background, so that the script can act on a signal while the ranks still run.
        return CommandSubmission(request.log_dir, values), f"{batch.command(request)} &"

    def _check_own(self, handle: JobHandle) -> None:
        if handle.executor != self.name or handle.cluster != self.cluster():
            raise SchedulerError(
                f"job {handle.job_id} was submitted to {handle.executor} cluster"
                f" {handle.cluster!r}, and this shell talks to slurm cluster {self.cluster()!r}:"
                " run the command where the job was submitted"
            )

    def _submit_time(self, job_id: str) -> float:
        """The controller's own clock, which later answers are compared with."""
        jobs = self._squeue("--jobs", job_id)
        return jobs[0].submitted_at if jobs else time.time()

    def _ghost(self, name: str, error: SchedulerError) -> JobHandle:
        """The job that an unanswered sbatch made all the same; else raise what sbatch said."""
        silent = any(mark in str(error) for mark in _UNREACHABLE)
        deadline = time.monotonic() + (self._ghost_patience_seconds if silent else 0.0)
        reached = False
        while True:
            try:
                jobs = self._named(name)
                reached = True
                if jobs:
                    return self._handle(jobs[-1])
            except SchedulerError:
                reached = False
            if time.monotonic() >= deadline:
                break
            time.sleep(1.0)
        if reached:
            raise error
        raise SchedulerError(
            f"{error}; whether job {name!r} exists is not known, because squeue does not answer"
            " either: repeat the command later, it looks the job up by name first"
        ) from error

    def _named(self, name: str) -> list[QueuedJob]:
        jobs = self._squeue("--name", batch.check_job_name(name), "--user", str(os.geteuid()))
        return sorted(jobs, key=lambda job: (job.submitted_at, int(job.job_id)))

    def _handle(self, job: QueuedJob) -> JobHandle:
        return JobHandle(
            executor=self.name,
            cluster=self.cluster(),
            job_id=job.job_id,
            submitted_at=job.submitted_at,
        )

    def _squeue(self, *selection: str) -> list[QueuedJob]:
        base = ["squeue", "--noheader", "--states=all", "--Format", SQUEUE_FORMAT]
        try:
            return parse_squeue(_run([*base, *selection]))
        except SchedulerError as error:
            if _UNKNOWN_JOB in str(error):
                return []
            raise
        except ValueError as error:
            raise SchedulerError(
                f"squeue: an answer this version does not know: {error}"
            ) from error


def _ids(handles: Sequence[JobHandle]) -> str:
    return ",".join(sorted({handle.job_id for handle in handles}))


def _state_of(handle: JobHandle, job: QueuedJob | None) -> JobState:
    """A job of that id is ours unless it was submitted anew: a crashed controller repeats ids.

    SLURM renews the time of submission at a requeue, so it says nothing once there were restarts.
    """
    if job is None:
        return _GONE
    same = job.state.restarts > 0 or abs(job.submitted_at - handle.submitted_at) <= 2.0
    return job.state if same else _GONE


def _run(command: Sequence[str]) -> str:
    """Run a SLURM client with times as unix seconds and none of the user's format variables."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQUEUE_", "SCANCEL_", "SLURM_CLUSTERS"))
    }
    environment |= {"SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
    except FileNotFoundError:
        raise SchedulerError(
            f"{command[0]} is not installed here: run this on a login node of the cluster, or"
            " choose cluster=local"
        ) from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{command[0]}: no answer within 120 s") from None
    if done.returncode != 0:
        raise SchedulerError(
            f"{' '.join(command[:1])}: exit code {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout
