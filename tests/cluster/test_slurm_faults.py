"""What happens to a running job on a real SLURM when it is preempted, warned, killed or cancelled.

The jobs of one group run side by side, hit in the middle of their steps, because every requeue
costs six seconds of waiting (`cred_expire` of the private cluster + 1).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.contract import JobState, Phase, Resources
from cluster.slurm import SlurmExecutor
from tests.cluster.bench import Bench, Job
from tests.slurm_cluster import PrivateSlurm

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm_faults")]

STEPS = 20  # of the second attempt; the first goes on until it is hit
LENGTH = ("--endless-first", "--steps", str(STEPS), "--step-seconds", "0.05")


@pytest.fixture(scope="module")
def module_bench(slurm: PrivateSlurm) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(slurm.conf))
        patch.setenv("PATH", slurm.env["PATH"])
        slurm.heal()
        root = slurm.shared / f"faults-{os.urandom(3).hex()}"
        yield Bench(executor=SlurmExecutor(), root=root, prefix="f" + os.urandom(3).hex())
        slurm.heal()


Outcome = tuple[Job, JobState]


def _run(bench: Bench, jobs: dict[str, Job], hit: object) -> dict[str, Outcome]:
    """Wait until all ranks run, hit, wait for the end."""
    bench.until(lambda: all(job.started(0, 2) for job in jobs.values()))
    assert callable(hit)
    hit()
    states = bench.wait(*jobs.values(), seconds=90)
    return dict(zip(jobs, zip(jobs.values(), states, strict=True), strict=True))


def _submit(bench: Bench, name: str, *arguments: str, partition: str | None = None) -> Job:
    resources = Resources(nodes=2, tasks_per_node=1, partition=partition)
    return bench.submit(name, *LENGTH, *arguments, resources=resources)


def _array(
    bench: Bench, name: str, tasks: Sequence[str], partition: str | None = None
) -> dict[str, Job]:
    """The tasks of one job array, numbered in the order of their names."""
    resources = Resources(nodes=2, tasks_per_node=1, partition=partition)
    jobs = bench.submit_array(name, range(len(tasks)), *LENGTH, resources=resources)
    return {f"{name}_{task}": job for task, job in zip(tasks, jobs, strict=True)}


@pytest.fixture(scope="module")
def signalled(module_bench: Bench, slurm: PrivateSlurm) -> dict[str, Outcome]:
    """Jobs hit one by one: the time limit's warning, a requeue by hand, a killed rank, a cancel."""
    names = ("warned", "requeued", "rank_killed", "cancelled")
    jobs = {name: _submit(module_bench, name) for name in names}
    # The last task of an array has the number of the array: it is the one to requeue itself.
    jobs |= _array(module_bench, "task", ("cancelled", "requeued", "rank_killed"))

    def hit() -> None:
        slurm.run("scontrol", "requeue", jobs["task_requeued"].handle.job_id)
        os.kill(jobs["task_rank_killed"].rank(0, 1)["pid"], signal.SIGKILL)
        slurm.run("scancel", jobs["task_cancelled"].handle.job_id)
        slurm.run("scancel", "--signal=USR2", jobs["warned"].handle.job_id)
        slurm.run("scontrol", "requeue", jobs["requeued"].handle.job_id)
        os.kill(jobs["rank_killed"].rank(0, 1)["pid"], signal.SIGKILL)
        slurm.run("scancel", jobs["cancelled"].handle.job_id)

    return _run(module_bench, jobs, hit)


@pytest.fixture(scope="module")
def preempted(
    module_bench: Bench, slurm: PrivateSlurm, signalled: dict[str, Outcome]
) -> dict[str, Outcome]:
    """One job in each kind of partition, all preempted by the same job of a higher tier."""
    jobs = {
        "requeue": _submit(module_bench, "p-requeue"),
        "cancel": _submit(module_bench, "p-cancel", partition="cancel"),
        "grace": _submit(module_bench, "p-grace", partition="grace"),
        "slow": _submit(module_bench, "p-slow", "--save-seconds", "60", partition="cancel"),
        "deaf": _submit(module_bench, "p-deaf", "--deaf-to", "SIGTERM", partition="cancel"),
    }
    jobs |= _array(module_bench, "cancelling", ("0", "1"), partition="cancel")

    def hit() -> None:
        slurm.preempt(2)
        deaf = jobs["deaf"]
        slurm.wait_for(lambda: slurm.job(deaf.handle.job_id)["JobState"] == "COMPLETING", 20)
        (deaf.stage / "finish").touch()

    return _run(module_bench, jobs, hit)


@pytest.fixture(scope="module")
def node_lost(
    module_bench: Bench, slurm: PrivateSlurm, preempted: dict[str, Outcome]
) -> dict[str, Outcome]:
    """A node is set down by an administrator in the middle of a job, and comes back."""
    jobs = {"down": _submit(module_bench, "down")}

    def hit() -> None:
        slurm.set_node("n2", "down")
        slurm.set_node("n2", "resume")

    return _run(module_bench, jobs, hit)


def _check_continued(outcome: Outcome, *, self_ended: bool, saved: bool = True) -> None:
    """It was hit in the middle, went on once from what it had saved, and finished."""
    job, state = outcome
    assert state.phase is Phase.GONE and state.exit_code == 0
    assert job.attempts() == ["s001r000", "s001r001"]
    first, second = job.ended(0), job.ended(1)
    assert first["decision"] == "requeue" and first["self_ended"] is self_ended
    assert second["decision"] == "finished"
    result = job.result()
    assert result is not None and result["steps"] == first["step"] + STEPS
    if saved:
        assert first["step"] > 0
        assert job.committed() == [first["step"], first["step"] + STEPS]
    assert "restart 0" in job.log(1) and "restart 1" in job.log(1)


def test_the_warning_of_the_time_limit_saves_and_requeues(signalled: dict[str, Outcome]) -> None:
    _check_continued(signalled["warned"], self_ended=True)
    assert "SIGUSR2" in signalled["warned"][0].log()


def test_a_requeue_by_hand_saves_and_goes_on(signalled: dict[str, Outcome]) -> None:
    _check_continued(signalled["requeued"], self_ended=False)


def test_a_killed_rank_takes_the_job_down_and_it_goes_on(signalled: dict[str, Outcome]) -> None:
    _check_continued(signalled["rank_killed"], self_ended=True, saved=False)
    ended = signalled["rank_killed"][0].ended(0)
    assert ended["exit_code"] == 137


def test_a_cancelled_job_never_comes_back(signalled: dict[str, Outcome]) -> None:
    job, state = signalled["cancelled"]
    assert (state.phase, state.reason) == (Phase.GONE, "CANCELLED")
    assert job.attempts() == ["s001r000"] and job.result() is None
    ended = job.ended(0)
    assert ended["decision"] == "stop"
    assert ended["reason"] == "cancelled through the scheduler"
    assert ended["step"] > 0


@pytest.mark.parametrize("hit", ["requeued", "rank_killed"])
def test_a_task_of_an_array_goes_on_in_place_and_alone(
    signalled: dict[str, Outcome], hit: str
) -> None:
    """Its requeue must not be that of the array, whose number one of the tasks has as its own."""
    killed = hit == "rank_killed"
    _check_continued(signalled[f"task_{hit}"], self_ended=killed, saved=not killed)


def test_a_cancelled_task_of_an_array_never_comes_back(signalled: dict[str, Outcome]) -> None:
    job, state = signalled["task_cancelled"]
    assert (state.phase, state.reason) == (Phase.GONE, "CANCELLED")
    assert job.attempts() == ["s001r000"] and job.result() is None
    assert job.ended(0)["reason"] == "cancelled through the scheduler"


def test_preemption_that_cancels_is_turned_into_a_requeue_of_each_task(
    preempted: dict[str, Outcome],
) -> None:
    for task in ("0", "1"):
        _check_continued(preempted[f"cancelling_{task}"], self_ended=False)


def test_preemption_that_requeues_saves_and_goes_on(preempted: dict[str, Outcome]) -> None:
    _check_continued(preempted["requeue"], self_ended=False)


def test_preemption_that_cancels_is_turned_into_a_requeue(preempted: dict[str, Outcome]) -> None:
    _check_continued(preempted["cancel"], self_ended=False)
    ended = preempted["cancel"][0].ended(0)
    assert ended["reason"] == "preempted"


def test_preemption_with_a_grace_time_saves_and_goes_on(preempted: dict[str, Outcome]) -> None:
    _check_continued(preempted["grace"], self_ended=False)


def test_a_job_too_slow_to_save_is_requeued_even_where_preemption_cancels(
    preempted: dict[str, Outcome],
) -> None:
    """All of it is killed after KillWait, the batch script too: the requeue had to come first."""
    job, state = preempted["slow"]
    assert (state.exit_code, state.restarts) == (0, 1)
    assert job.committed() == [STEPS]
    ended = job.ended(0)
    assert (ended["decision"], ended["reason"]) == ("requeue", "preempted")
    assert "was told to end at step 0: requeue: preempted" in job.log()


def test_a_job_that_finishes_after_the_signal_still_counts_as_success(
    preempted: dict[str, Outcome],
) -> None:
    """SLURM calls it preempted, so it runs once more, only to say that its result is there."""
    job, state = preempted["deaf"]
    assert (state.reason, state.exit_code, state.restarts) == ("COMPLETED", 0, 1)
    ended = job.ended(0)
    assert ended["decision"] == "finished" and ended["step"] > 0
    assert job.committed() == [ended["step"]]


def test_a_lost_node_leads_to_a_requeue(node_lost: dict[str, Outcome]) -> None:
    job, state = node_lost["down"]
    assert state.exit_code == 0 and state.restarts == 1
    assert job.attempts() == ["s001r000", "s001r001"]
    assert job.result() is not None


def test_a_node_that_vanishes_leads_to_a_requeue(
    module_bench: Bench, slurm: PrivateSlurm, node_lost: dict[str, Outcome]
) -> None:
    """SLURM notices after SlurmdTimeout; until then the job hangs on, which no script can help."""
    resources = Resources(nodes=2, tasks_per_node=1)
    job = module_bench.submit("vanish", *LENGTH, resources=resources)
    module_bench.until(lambda: job.started(0, 2))
    slurm.kill_node("n2")
    module_bench.until(lambda: bool(job.ended(0)), seconds=60)
    ended = job.ended(0)
    assert ended["decision"] == "requeue" and not ended["self_ended"]
    assert ended["step"] > 0
    slurm.start_node("n2")
    (state,) = module_bench.wait(job, seconds=120)
    assert (state.exit_code, state.restarts) == (0, 1)
    assert job.attempts() == ["s001r000", "s001r001"]


def test_faults_leave_no_process_behind(
    slurm: PrivateSlurm, node_lost: dict[str, Outcome], module_bench: Bench
) -> None:
    marks = str(module_bench.root).encode()
    running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if marks in _read(p)]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
