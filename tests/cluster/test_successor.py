"""Stages that go on in a successor job, on a real SLURM that cancels what it preempts.

`scontrol` does not work on the nodes of this cluster. Every attempt queues the job of the next one
first; what waits for a stage waits for the end of its jobs, and steps back where it starts early.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import fsio
from cluster.contract import ArrayRequest, JobRequest, Phase, Resources
from cluster.slurm import SlurmExecutor
from cluster.successor import successors
from tests.cluster.bench import PYTHON, Bench, Job
from tests.slurm_cluster import PrivateSlurm

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm_successor")]

STEPS = 10
LENGTH = ("--endless-first", "--steps", str(STEPS), "--step-seconds", "0.05")
KEY = "k" * 64
CONTINUED = ("preempted", "limit", "rank", "node", "task-0", "task-1", "bare", "refused")


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateSlurm]:
    with PrivateSlurm(preempt_mode="CANCEL", job_requeue=False, cpus=32) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bench(cluster: PrivateSlurm) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.conf))
        patch.setenv("PATH", cluster.env["PATH"])
        yield Bench(executor=SlurmExecutor(), root=cluster.shared / "store", prefix="s")


@pytest.fixture(scope="module")
def shim(cluster: PrivateSlurm) -> Path:
    """A folder for the front of PATH whose scontrol refuses, as where only administrators may."""
    folder = cluster.shared / "shim"
    folder.mkdir()
    (folder / "scontrol").write_text("#!/bin/sh\necho 'scontrol: not permitted' >&2; exit 1\n")
    (folder / "scontrol").chmod(0o755)
    return folder


def _stage(
    bench: Bench, shim: Path | None, name: str, *words: str, **options: object
) -> JobRequest:
    """A job of the kind that must not be requeued; `upstream` are stages that it takes from."""
    upstream, follows = options.pop("upstream", ()), options.pop("follows", True)
    assert isinstance(upstream, tuple)
    resources = Resources(**{"nodes": 1, "requeue": False, **options})  # type: ignore[arg-type]
    path = f"{shim}:{os.environ['PATH']}" if shim else os.environ["PATH"]
    request = bench.request(name, *words, after=upstream, resources=resources, env={"PATH": path})
    inputs = [{"stage": job.stage.name, "key": KEY} for job in upstream]
    spec = {"key": KEY, "kind": "test", "inputs": {"in": inputs}}
    fsio.write_json(request.log_dir.parent / "stage.json", spec)
    fsio.write_json(request.log_dir.parent / "submission-1.intent.json", {"n": 1})
    prologue = (PYTHON, "-m", "cluster.prologue") if follows else ()
    return replace(request, prologue=prologue)


def _submit(bench: Bench, request: JobRequest) -> Job:
    """Submit and record the job, as the hand-over does."""
    job = bench.submit_request(request)
    _note(job)
    return job


def _note(job: Job) -> None:
    handle = {"executor": "slurm", "job_id": job.handle.job_id}
    fsio.write_json(job.stage / "submission-1.json", {"n": 1, "handle": handle})


def _jobs(job: Job) -> list[str]:
    """All jobs that the stage has had, those taken back left out."""
    return [job.handle.job_id] + [s.job_id for s in successors(job.stage, 1) if not s.taken_back]


def _quiet(cluster: PrivateSlurm) -> bool:
    return not cluster.live()


@pytest.fixture(scope="module")
def run(bench: Bench, cluster: PrivateSlurm, shim: Path) -> dict[str, Job]:
    """Stages hit in their first attempt, each in its own way, and what waits for them."""
    jobs: dict[str, Job] = {}

    def add(name: str, *words: str, **options: object) -> None:
        bare = options.pop("bare", False)
        jobs[name] = _submit(bench, _stage(bench, None if bare else shim, name, *words, **options))

    add("finished", "--steps", "3")
    add("preempted", *LENGTH, "--save-seconds", "3", nodelist="n1", cpus_per_task=16)
    add("limit", *LENGTH, partition="high")
    add("rank", *LENGTH, partition="high")
    add("node", *LENGTH, partition="high", nodelist="n2")
    add("cancelled", *LENGTH, partition="high")
    add("killed", *LENGTH, partition="high")
    add("broken", "--exit", "*:*:70", partition="high")
    add("bare", *LENGTH, partition="high", bare=True)
    add("refused", *LENGTH, partition="high", bare=True, follows=False)
    array = [
        replace(_stage(bench, shim, f"task-{n}", *LENGTH, partition="high"), task=n, name="s.task")
        for n in (0, 1)
    ]
    handles = bench.executor.submit_array(
        ArrayRequest(folder=bench.root / "array", tasks=tuple(array))
    )
    bench.handles += handles
    for n, handle in enumerate(handles):
        jobs[f"task-{n}"] = Job(stage=bench.root / f"task-{n}", handle=handle)
        _note(jobs[f"task-{n}"])
    upstream = tuple(jobs[n] for n in ("finished", "preempted", "rank", "task-0", "task-1"))
    add("fan-in", "--steps", "1", upstream=upstream)
    add("after-fan-in", "--steps", "1", upstream=(jobs["fan-in"],))
    add("after-refused", "--steps", "1", upstream=(jobs["refused"],), follows=False, requeue=True)
    add("after-bare", "--steps", "1", upstream=(jobs["bare"],), bare=True)
    add("after-cancelled", "--steps", "1", upstream=(jobs["cancelled"],))
    add("after-broken", "--steps", "1", upstream=(jobs["broken"],))
    hit = (*CONTINUED, "cancelled", "killed")
    bench.until(lambda: all(jobs[name].started(0, 1) for name in hit), seconds=60)
    bench.until(lambda: bool(jobs["finished"].ended(0)) and bool(jobs["broken"].ended(0)))
    _hit(cluster, jobs)
    cluster.wait_for(lambda: _quiet(cluster), 300)
    return jobs


def _hit(cluster: PrivateSlurm, jobs: dict[str, Job]) -> None:
    def pid(name: str) -> int:
        return int(jobs[name].rank(0, 0)["pid"])

    os.kill(pid("rank"), signal.SIGKILL)
    os.kill(pid("bare"), signal.SIGKILL)
    os.kill(pid("refused"), signal.SIGKILL)
    os.kill(pid("task-0"), signal.SIGKILL)
    cluster.run("scancel", "--signal=USR2", jobs["task-1"].handle.job_id)
    cluster.run("scancel", "--signal=USR2", jobs["limit"].handle.job_id)
    cluster.run("scancel", jobs["cancelled"].handle.job_id)
    cluster.run("scancel", "--full", "--signal=KILL", jobs["killed"].handle.job_id)
    cluster.set_node("n2", "down")
    cluster.set_node("n2", "resume")
    room = ("--nodelist=n1", "--ntasks=18", "--output=/dev/null", "--wrap=sleep 1")
    cluster.sbatch("--partition=high", *room)


def _check_continued(job: Job) -> None:
    assert job.attempts() == ["s001r000", "s001r001"]
    assert len(_jobs(job)) == 2
    assert job.ended(1)["decision"] == "finished"
    assert job.result() is not None
    begun, ended = job.rank(1, 0)["env"]["SLURM_JOB_ID"], _jobs(job)[1]
    assert "_" in ended or begun == ended


@pytest.mark.parametrize("name", CONTINUED)
def test_a_stage_goes_on_in_a_successor(run: dict[str, Job], name: str) -> None:
    _check_continued(run[name])


def test_a_successor_starts_when_all_of_its_predecessor_has_ended(run: dict[str, Job]) -> None:
    """The preempted ranks save for 3 seconds: what they save is what the successor begins with."""
    job = run["preempted"]
    saved = job.ended(0)["step"]
    result = job.result()
    assert saved > 0 and result is not None and result["steps"] == saved + STEPS


def test_a_finished_stage_leaves_no_successor(run: dict[str, Job], cluster: PrivateSlurm) -> None:
    assert run["finished"].attempts() == ["s001r000"]
    assert _jobs(run["finished"]) == [run["finished"].handle.job_id]
    assert _quiet(cluster)


def test_a_stage_that_stops_takes_its_successor_back_and_what_waits_for_it(
    run: dict[str, Job],
) -> None:
    assert run["broken"].attempts() == ["s001r000"]
    assert run["broken"].ended(0)["decision"] == "stop"
    assert run["after-broken"].attempts() == []


def test_a_cancelled_job_takes_its_successor_back_and_what_waits_for_it(
    run: dict[str, Job],
) -> None:
    job = run["cancelled"]
    assert job.attempts() == ["s001r000"] and job.result() is None
    assert job.ended(0)["reason"] == "cancelled through the scheduler"
    assert _jobs(job) == [job.handle.job_id]
    assert run["after-cancelled"].attempts() == []


def test_a_job_killed_through_the_scheduler_is_not_continued(
    run: dict[str, Job],
) -> None:
    job = run["killed"]
    assert job.attempts() == ["s001r000"] and job.result() is None


@pytest.mark.parametrize("name", ["fan-in", "after-fan-in", "after-bare", "after-refused"])
def test_what_waits_for_stages_that_went_on_elsewhere_runs_once_after_them(
    run: dict[str, Job], name: str
) -> None:
    job = run[name]
    assert len(job.attempts()) == 1
    assert job.result() is not None
    latest = {"fan-in": "preempted", "after-fan-in": "fan-in"}.get(name, name[len("after-") :])
    results = [run[latest].stage / "result.json", job.stage / "attempts" / job.attempts()[0]]
    assert results[0].stat().st_mtime <= (results[1] / "rank0.json").stat().st_mtime


def test_where_scontrol_works_dependents_are_told_and_need_not_step_back(
    run: dict[str, Job],
) -> None:
    assert "waits again" not in run["after-bare"].log()
    assert "waits again" in run["fan-in"].log()


def test_nothing_is_left(run: dict[str, Job], bench: Bench) -> None:
    states = bench.executor.query(bench.handles)
    assert {state.phase for state in states.values()} == {Phase.GONE}
