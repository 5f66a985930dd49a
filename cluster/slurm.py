"""Jobs on SLURM: submission through submitit, states from squeue; works without accounting."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster import array as job_array
from cluster import batch, fsio
from cluster.contract import (
    ArrayRequest,
    JobHandle,
    JobRequest,
    JobState,
    Phase,
    SchedulerError,
)
from cluster.environment import passed_on
from cluster.patience import Patience, answered, insist
from cluster.queue import SQUEUE_FORMAT, QueuedJob, parse_scontrol_config, parse_squeue

if TYPE_CHECKING:
    from cluster.submission import CommandSubmission

_GONE = JobState(phase=Phase.GONE, reason="unknown to the scheduler")
_UNKNOWN_JOB = "Invalid job id"
_TICK_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_PATIENCE_SECONDS = 600.0
# What is known of the controller's clock without asking it about each job.
_CLOCK_SECONDS = 2.0


class SlurmExecutor:
    """The SLURM back end (see `cluster.contract.Executor`). Holds only the site's configuration.

    Args:
        patience: how long a submission goes on where the controller does not answer.
    """

    name = "slurm"

    def __init__(self, *, patience: Patience | None = None) -> None:
        self._patience = patience or Patience(say=_to_stderr)
        self._config: dict[str, str] | None = None
        self._clock_ahead_seconds = 0.0

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
        return self._sbatch(submission, command, request.name)

    def submit_array(self, array: ArrayRequest) -> list[JobHandle]:
        """Hand all jobs to sbatch in one call, as a job array.

        Raises:
            batch.RequestError: a value that no script may hold; nothing was submitted.
            SchedulerError: as for `submit`; an array is made whole or not at all.
        """
        for handle in array.tasks[0].after:
            self._check_own(handle)
        submission, command = self._prepare(array)
        fsio.make_dir(array.folder)
        for task in array.tasks:
            fsio.make_dir(task.log_dir)
            (array.folder / str(task.task)).symlink_to(task.log_dir)
        made = self._sbatch(submission, command, array.tasks[0].name)
        made_id = made.job_id.partition("_")[0]
        return [
            replace(made, job_id=f"{made_id}_{task.task}", array_size=len(array.tasks))
            for task in array.tasks
        ]

    def array_limit(self) -> int:
        """MaxArraySize, above every task's number, and less where a site says so."""
        config = self._configuration()
        found = re.search(r"max_array_tasks=(\d+)", config.get("SchedulerParameters", ""))
        limits = [config.get("MaxArraySize", "1"), *(found.groups() if found else ())]
        return max(1, min(int(limit) for limit in limits))

    def render(self, request: JobRequest | ArrayRequest) -> str:
        """The sbatch script that is handed over; needs no SLURM. Raises batch.RequestError."""
        submission, command = self._prepare(request)
        return submission.render(command)

    def query(self, handles: Sequence[JobHandle]) -> dict[JobHandle, JobState]:
        """States from one squeue call. Raises SchedulerError."""
        if not handles:
            return {}
        for handle in handles:
            self._check_own(handle)
        pairs = {handle: _pair(handle) for handle in handles}
        ids = {one.job_id.partition("_")[0] for pair in pairs.values() for one in pair}
        known = {job.job_id: job for job in self._squeue("--jobs", ",".join(sorted(ids)))}
        return {
            handle: _most_alive([_state_of(one, known.get(one.job_id)) for one in pair])
            for handle, pair in pairs.items()
        }

    def find(self, name: str, task: int | None = None) -> JobHandle | None:
        """The newest job of ours with that name that waits or runs. Raises SchedulerError."""
        number = "" if task is None else str(task)
        alive = [
            job
            for job in self._named(name)
            if job.state.phase is not Phase.GONE and job.job_id.partition("_")[2] == number
        ]
        return self._handle(alive[-1]) if alive else None

    def cancel(self, handles: Sequence[JobHandle]) -> None:
        """scancel those that still wait or run; an id used again by a stranger is left alone."""
        states = self.query([one for handle in handles for one in reversed(_pair(handle))])
        alive = [handle for handle, state in states.items() if state.phase is not Phase.GONE]
        if alive:
            try:
                _run(["scancel", *job_array.grouped(handle.job_id for handle in alive)])
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
        return self._configuration().get("ClusterName", "")

    def _configuration(self) -> dict[str, str]:
        if self._config is None:
            begun = time.time()
            text = _run(["scontrol", "show", "config"])
            asked = (begun + time.time()) / 2
            self._config = parse_scontrol_config(text)
            # It begins with the time of the controller's clock, in whole seconds.
            now = re.match(r"Configuration data as of (\d+)\s", text)
            self._clock_ahead_seconds = float(now[1]) + 0.5 - asked if now else 0.0
        return self._config

    def _prepare(self, request: JobRequest | ArrayRequest) -> tuple[CommandSubmission, str]:
        from cluster.submission import CommandSubmission

        if isinstance(request, ArrayRequest):
            tasks = tuple(_as_of_this_shell(task) for task in request.tasks)
            job = tasks[0]
            shell = passed_on(os.environ, also=job.resources.pass_env)
            values = job_array.parameters(replace(request, tasks=tasks), shell)
            submission = CommandSubmission(request.folder, values, tasks=len(tasks))
        else:
            job = _as_of_this_shell(request)
            shell = passed_on(os.environ, also=job.resources.pass_env)
            submission = CommandSubmission(request.log_dir, batch.parameters(job, shell))
        # In the background, so that the script can act on a signal while the ranks still run.
        return submission, f"{batch.command(job)} &"

    def _sbatch(self, submission: CommandSubmission, command: str, name: str) -> JobHandle:
        """Submit. The controller's time of it is not asked for but known to lie within the call."""
        # Before there is a job: what is asked afterwards may find nobody to answer.
        answered(self._configuration, self._patience)

        def submit() -> JobHandle:
            begun = time.time()
            job_id = submission.submit_command(command)
            half = (time.time() - begun) / 2
            return JobHandle(
                executor=self.name,
                cluster=self.cluster(),
                job_id=job_id,
                submitted_at=begun + half + self._clock_ahead_seconds,
                margin_seconds=half + _CLOCK_SECONDS,
            )

        def find() -> JobHandle | None:
            jobs = self._named(name)
            return self._handle(jobs[-1]) if jobs else None

        return insist(submit, find, name, self._patience)

    def _check_own(self, handle: JobHandle) -> None:
        if handle.executor != self.name or handle.cluster != self.cluster():
            raise SchedulerError(
                f"job {handle.job_id} was submitted to {handle.executor} cluster"
                f" {handle.cluster!r}, and this shell talks to slurm cluster {self.cluster()!r}:"
                " run the command where the job was submitted"
            )

    def _named(self, name: str) -> list[QueuedJob]:
        jobs = self._squeue("--name", batch.check_job_name(name), "--user", str(os.geteuid()))
        return sorted(jobs, key=lambda job: (job.submitted_at, int(job.job_id.partition("_")[0])))

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


def _as_of_this_shell(request: JobRequest) -> JobRequest:
    """The request with what the site sets in everybody's shell where the recipe says nothing.

    sbatch would take it from there as well, but not when a successor is submitted from a node.
    """
    chosen = {
        field: os.environ[f"SBATCH_{field.upper()}"]
        for field in ("partition", "account", "qos", "constraint", "reservation")
        if getattr(request.resources, field) is None and os.environ.get(f"SBATCH_{field.upper()}")
    }
    return replace(request, resources=replace(request.resources, **chosen))  # type: ignore[arg-type]


def _pair(handle: JobHandle) -> list[JobHandle]:
    """The job before this one, which may still live, and the job by itself."""
    return [*([handle.before] if handle.before else []), replace(handle, before=None)]


def _most_alive(states: Sequence[JobState]) -> JobState:
    """What counts of a job and its successor: the one that runs, else the one that waits."""
    order = (Phase.RUNNING, Phase.PENDING, Phase.GONE)
    return min(reversed(states), key=lambda state: order.index(state.phase))


def _state_of(handle: JobHandle, job: QueuedJob | None) -> JobState:
    """A job of that id is ours unless it was submitted anew: a crashed controller repeats ids.

    SLURM renews the time of submission at a requeue, so it says nothing once there were restarts.
    """
    if job is None:
        return _GONE
    apart = abs(job.submitted_at - handle.submitted_at)
    same = job.state.restarts > 0 or apart <= handle.margin_seconds
    return job.state if same else _GONE


def _run(command: Sequence[str]) -> str:
    """Run a SLURM client with times as unix seconds and none of the user's format variables."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQUEUE_", "SCANCEL_", "SLURM_CLUSTERS"))
    }
    environment |= {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0", "LC_ALL": "C"}
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


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
