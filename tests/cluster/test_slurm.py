"""What only the SLURM executor does: ghosts, repeated ids, other clusters, a shell's variables."""

from __future__ import annotations

import signal
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest

from cluster.contract import ArrayRequest, Phase, Resources, SchedulerError
from cluster.doctor import has_gpus, slurm_facts
from cluster.patience import Patience
from cluster.slurm import SlurmExecutor
from tests.cluster.bench import Bench
from tests.slurm_cluster import PrivateSlurm

pytestmark = pytest.mark.slurm

LATER = Resources(extra={"begin": "now+1hour"})


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PrivateSlurm, Bench]]:
    """A cluster of its own whose controller a test may stop, and clients that wait 2 seconds."""
    with PrivateSlurm(message_timeout=2) as cluster:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        monkeypatch.setenv("PATH", cluster.env["PATH"])
        executor = SlurmExecutor(patience=Patience(seconds=20, settle_seconds=3))
        yield cluster, Bench(executor=executor, root=cluster.shared / "s", prefix="ghost")


def test_jobs_made_by_an_unanswered_sbatch_are_found(
    hanging: tuple[PrivateSlurm, Bench],
) -> None:
    cluster, bench = hanging
    assert isinstance(bench.executor, SlurmExecutor)
    name = bench.executor.cluster()
    cluster.signal_controller(signal.SIGSTOP)
    timer = threading.Timer(5.0, cluster.signal_controller, [signal.SIGCONT])
    timer.start()
    begun = time.monotonic()
    with ThreadPoolExecutor() as threads:
        one = threads.submit(bench.submit, "job")
        several = threads.submit(bench.submit_array, "array", [0, 2])
        job, tasks = one.result(), several.result()
    timer.join()
    assert time.monotonic() - begun > 2
    assert job.handle.cluster == name
    assert [state.exit_code for state in bench.wait(job, *tasks)] == [0, 0, 0]
    names = [j["Name"] for j in cluster.squeue()]
    assert (names.count("ghost.job"), names.count("ghost.array")) == (1, 2)


def test_a_dead_controller_is_told_apart_from_a_refusal(
    hanging: tuple[PrivateSlurm, Bench],
) -> None:
    cluster, bench = hanging
    request = bench.request("job")
    with pytest.raises(SchedulerError, match=r"[Ii]nvalid partition"):
        bench.executor.submit(replace(request, resources=Resources(partition="nonexistent")))
    bench.executor = SlurmExecutor(patience=Patience(seconds=1))
    assert bench.executor.cluster()
    cluster.signal_controller(signal.SIGKILL)
    with pytest.raises(SchedulerError, match=r"whether job 'ghost.job' exists is not known"):
        bench.executor.submit(request)
    cluster.start_controller()
    assert bench.executor.find("ghost.job") is None


def test_an_id_used_again_is_not_our_job(slurm_bench: Bench) -> None:
    job = slurm_bench.submit("mine", resources=LATER)
    stranger = replace(job.handle, submitted_at=job.handle.submitted_at - 3600)
    executor = slurm_bench.executor
    assert executor.query([stranger])[stranger].phase is Phase.GONE
    executor.cancel([stranger])
    assert executor.query([job.handle])[job.handle].phase is Phase.PENDING
    executor.cancel([job.handle])
    assert executor.query([job.handle])[job.handle].phase is Phase.GONE


def test_a_job_of_another_cluster_is_refused(slurm_bench: Bench) -> None:
    job = slurm_bench.submit("mine", resources=LATER)
    elsewhere = replace(job.handle, cluster="other")
    with pytest.raises(SchedulerError, match="submitted to slurm cluster 'other'"):
        slurm_bench.executor.query([elsewhere])
    with pytest.raises(SchedulerError, match="other"):
        slurm_bench.executor.submit(replace(slurm_bench.request("b"), after=(elsewhere,)))
    slurm_bench.executor.cancel([job.handle])


def test_the_newest_job_of_a_name_is_found(slurm_bench: Bench) -> None:
    first = slurm_bench.submit("twice", resources=LATER)
    second = slurm_bench.submit("twice", resources=LATER)
    assert slurm_bench.executor.find(f"{slurm_bench.prefix}.twice") == replace(
        second.handle, submitted_at=ANY, margin_seconds=2.0
    )
    slurm_bench.executor.cancel([first.handle, second.handle])
    assert slurm_bench.executor.find(f"{slurm_bench.prefix}.twice") is None


def test_the_size_of_an_array_is_what_the_site_allows(
    slurm_here: PrivateSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = SlurmExecutor()
    assert executor.array_limit() == 1001  # SLURM's default
    for settings, limit in [
        ({"MaxArraySize": "50"}, 50),
        ({"MaxArraySize": "50", "SchedulerParameters": "bf_interval=1,max_array_tasks=8"}, 8),
        ({"MaxArraySize": "0"}, 1),
        ({}, 1),
    ]:
        monkeypatch.setattr(executor, "_config", settings)
        assert executor.array_limit() == limit


def test_every_task_of_a_large_array_is_seen_and_cancelled_by_its_number(
    slurm_bench: Bench,
) -> None:
    """Also where every second one is left: squeue's own listing then leaves out the last."""
    request = slurm_bench.request("many", resources=LATER)
    tasks = tuple(replace(request, task=number) for number in range(1000))
    array = ArrayRequest(folder=slurm_bench.root / "array", tasks=tasks)
    executor = slurm_bench.executor
    handles = executor.submit_array(array)
    assert {state.phase for state in executor.query(handles).values()} == {Phase.PENDING}
    executor.cancel(handles[::2])
    states = executor.query(handles)
    left = [handle for handle in handles if states[handle].phase is Phase.PENDING]
    assert left == handles[1::2]
    executor.cancel(handles)
    assert {state.phase for state in executor.query(handles).values()} == {Phase.GONE}


def test_variables_of_the_shell_do_not_override_the_script(
    slurm_bench: Bench, slurm_here: PrivateSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = {
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_PARTITION": "grace",
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_OPEN_MODE": "truncate",
        "SLURM_NTASKS": "7",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "5",
        "SQUEUE_PARTITION": "nonexistent",
        "SQUEUE_FORMAT": "%i",
    }
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    default = slurm_bench.submit("default", resources=LATER)
    stated = slurm_bench.submit("stated", resources=replace(LATER, partition="main"))
    shown = [slurm_here.job(job.handle.job_id) for job in (default, stated)]
    assert [s["Partition"] for s in shown] == ["grace", "main"]
    for job in shown:
        assert (job["TimeLimit"], job["Requeue"], job["NumNodes"]) == ("01:00:00", "1", "1-1")
        assert (job["NumTasks"], job["CPUs/Task"]) == ("1", "1")
    slurm_bench.executor.cancel([default.handle, stated.handle])


def test_what_is_left_is_private_and_holds_no_pickle(slurm_bench: Bench) -> None:
    job = slurm_bench.submit("files")
    slurm_bench.wait(job)
    logs = job.stage / "logs"
    number = job.handle.job_id
    names = sorted(path.name for path in logs.iterdir())
    assert names == [f"{number}_0_log.out", f"{number}_submission.sh"]
    assert stat.S_IMODE(logs.stat().st_mode) == 0o700
    assert stat.S_IMODE((logs / f"{number}_submission.sh").stat().st_mode) == 0o600
    rendered = slurm_bench.executor.render(slurm_bench.request("files"))
    assert (logs / f"{number}_submission.sh").read_text() == rendered


def test_a_chain_of_twenty_pays_no_throttle(slurm_bench: Bench) -> None:
    begun = time.monotonic()
    jobs = [slurm_bench.submit("job0", resources=LATER)]
    for number in range(1, 20):
        jobs.append(slurm_bench.submit(f"job{number}", after=(jobs[-1],)))
    assert time.monotonic() - begun < 3.0  # submitit's throttle alone would take 4
    states = slurm_bench.executor.query([job.handle for job in jobs])
    assert {state.phase for state in states.values()} == {Phase.PENDING}
    slurm_bench.executor.cancel([job.handle for job in jobs])


def test_every_rank_sees_its_nodes_gpus(slurm_bench: Bench) -> None:
    resources = Resources(nodes=2, tasks_per_node=2, device="cuda", gpus_per_node=2)
    job = slurm_bench.submit("gpus", resources=resources)
    by_gres = slurm_bench.submit("gres", resources=replace(resources, gpu_request="gres"))
    states = slurm_bench.wait(job, by_gres)
    assert [state.exit_code for state in states] == [0, 0]
    for each in (job, by_gres):
        seen = [each.rank(0, rank)["env"]["CUDA_VISIBLE_DEVICES"] for rank in range(4)]
        assert [len(devices.split(",")) for devices in seen] == [2, 2, 2, 2]


def test_nodes_do_not_share_tmp(slurm_bench: Bench, slurm: PrivateSlurm, tmp_path: Path) -> None:
    """The fixture does what it promises: a job that leans on local files fails here as well."""
    if not slurm.isolated:
        pytest.skip("this user may not create mount namespaces, so the nodes share /tmp")
    request = slurm_bench.request("hidden")
    words = {"argv": ("/bin/ls", str(tmp_path)), "epilogue": ("/bin/true",), "target": ()}
    request = replace(request, **words)  # type: ignore[arg-type]
    job = slurm_bench.executor.submit(request)
    slurm_bench.executor.wait([job], timeout=30)
    log = (request.log_dir / f"{job.job_id}_0_log.out").read_text()
    assert "No such file or directory" in log


def test_facts_and_gpus_of_a_cluster(slurm_here: PrivateSlurm) -> None:
    facts = slurm_facts()
    assert facts.version.startswith("2")
    assert (facts.preempt_mode, facts.job_requeue, facts.user_signal) == ("REQUEUE", True, False)
    assert (facts.kill_wait_seconds, facts.min_job_age_seconds) == (10, 300)
    assert has_gpus("slurm")


def test_a_cluster_nobody_has_configured_runs_a_job(
    slurm_without_gpus: PrivateSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm_without_gpus.conf))
    monkeypatch.setenv("PATH", slurm_without_gpus.env["PATH"])
    assert not has_gpus("slurm")
    bench = Bench(executor=SlurmExecutor(), root=slurm_without_gpus.shared / "s", prefix="plain")
    job = bench.submit("job", resources=Resources(nodes=2, tasks_per_node=2))
    assert bench.wait(job)[0].exit_code == 0
