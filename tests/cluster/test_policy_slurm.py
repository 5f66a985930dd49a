"""On a real SLURM of four nodes: bad nodes are left out, memory is raised, a cancel wins.

All jobs run side by side, because every requeue costs six seconds of waiting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster import fsio
from cluster.contract import Phase, Resources
from cluster.slurm import SlurmExecutor
from orchestrator.handover import Order, hand_over
from orchestrator.store import Store
from tests.cluster.bench import PYTHON, Bench, Job
from tests.conftest import _require_slurm
from tests.slurm_cluster import PrivateSlurm

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm_policy")]


@pytest.fixture(scope="module")
def four_nodes() -> Iterator[PrivateSlurm]:
    _require_slurm()
    with PrivateSlurm(num_nodes=4, slurmd_timeout=5) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def policy_bench(four_nodes: PrivateSlurm) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(four_nodes.conf))
        patch.setenv("PATH", four_nodes.env["PATH"])
        root = four_nodes.shared / "policy"
        yield Bench(executor=SlurmExecutor(), root=root, prefix="p" + os.urandom(3).hex())


def submit(
    bench: Bench, name: str, *arguments: str, policy: dict[str, Any] | None = None, **options: Any
) -> Job:
    """A job with the claim that the epilogue reads what was asked for from."""
    resources = options.setdefault("resources", Resources())
    request = bench.request(name, **options)
    asked = {"nodes": resources.nodes, "mem_gb": resources.mem_gb, "exclude": resources.exclude}
    claim = {"resources": asked, "policy": policy or {}}
    fsio.write_json(request.log_dir.parent / "submission-1.intent.json", claim)
    argv = (PYTHON, "-m", "tests.cluster.failing_stage", *arguments)
    return bench.submit_request(replace(request, argv=argv, comment="orchestrate test"))


def node(job: Job, restart: int, rank: int = 0) -> str:
    path = job.stage / "attempts" / f"s001r{restart:03d}" / f"node-rank{rank}.json"
    return str(fsio.read_json(path)["node"])


TWO = Resources(nodes=2)


@pytest.fixture(scope="module")
def ended(policy_bench: Bench, four_nodes: PrivateSlurm) -> dict[str, Job]:
    """All jobs, after they have come to their ends."""
    bench, hang = policy_bench, "73:hang"
    twice = ("--end", f"0:0:{hang}", "--end", f"1:0:{hang}")
    memory = ("--end", "0:0:71:out_of_host_memory")
    again = {"causes": {"user_code": {"retry": "counted"}}}
    in_vain = [word for n in range(3) for word in ("--end", f"{n}:0:70:user_code")]
    peers = ("--end", "0:0:74:communication", "--end", "0:1:137:")
    jobs = {
        "hang": submit(bench, "hang", *twice),
        "peers": submit(bench, "peers", *peers, resources=TWO),
        "memory": submit(bench, "memory", *memory, resources=Resources(mem_gb=8)),
        "too_much": submit(bench, "too_much", *memory, resources=Resources(mem_gb=60)),
        "in_vain": submit(bench, "in_vain", *in_vain, policy=again),
        "cancelled": submit(bench, "cancelled", "--hold", "0"),
    }
    jobs["behind"] = submit(bench, "behind", after=(jobs["hang"],))
    jobs["last"] = submit(bench, "last", after=(jobs["behind"],))
    everything = Resources(nodes=4)
    jobs["all_nodes"] = submit(bench, "all_nodes", after=(jobs["hang"],), resources=everything)
    cancelled = jobs["cancelled"]
    bench.until(lambda: (cancelled.stage / "attempts/s001r000/start.json").exists())
    cancel = {"user": "ann", "host": "login1", "at": 1.0}
    fsio.write_json(cancelled.stage / "cancel.json", cancel)
    four_nodes.run("scontrol", "requeue", cancelled.handle.job_id)
    bench.wait(*jobs.values(), seconds=180)
    return jobs


def test_a_node_on_which_a_rank_hung_is_left_out_and_the_job_goes_on_elsewhere(
    ended: dict[str, Job],
) -> None:
    job = ended["hang"]
    first = job.ended(0)
    assert (first["cause"], first["policy"], first["decision"]) == ("hang", "counted", "requeue")
    assert first["exclude"] == [node(job, 0)]
    assert f"without {node(job, 0)} from now on" in first["reason"]
    assert node(job, 0) not in (node(job, 1), node(job, 2))
    assert job.ended(2)["decision"] == "finished"


def test_a_run_does_not_leave_out_more_than_a_quarter_of_the_nodes(ended: dict[str, Job]) -> None:
    second = ended["hang"].ended(1)
    assert (second["decision"], second["exclude"]) == ("requeue", [])
    assert f"{node(ended['hang'], 1)} stays in use" in second["reason"]


def test_what_waits_does_without_the_node_too_unless_it_needs_all(
    ended: dict[str, Job], four_nodes: PrivateSlurm
) -> None:
    bad = node(ended["hang"], 0)
    for name in ("behind", "last"):
        assert four_nodes.job(ended[name].handle.job_id)["ExcNodeList"] == bad
        assert node(ended[name], 0) != bad
    assert four_nodes.job(ended["all_nodes"].handle.job_id)["ExcNodeList"] == "(null)"
    assert all(job.result() for job in (ended["behind"], ended["last"], ended["all_nodes"]))


def test_the_node_of_a_rank_that_vanished_is_left_out(ended: dict[str, Job]) -> None:
    job = ended["peers"]
    first = job.ended(0)
    assert (first["cause"], first["decision"]) == ("communication", "requeue")
    assert first["exclude"] == [node(job, 0, rank=1)]
    assert node(job, 0, rank=1) not in (node(job, 1), node(job, 1, rank=1))
    assert job.result()


def test_memory_is_raised_and_one_that_no_node_has_stops_the_stage(
    ended: dict[str, Job], four_nodes: PrivateSlurm
) -> None:
    job = ended["memory"]
    assert (job.ended(0)["decision"], job.ended(0)["mem_gb"]) == ("requeue", 12.0)
    assert four_nodes.job(job.handle.job_id)["MinMemoryNode"] == "12G"
    assert job.ended(1)["decision"] == "finished"
    refused = ended["too_much"].ended(0)
    assert (refused["decision"], refused["mem_gb"]) == ("stop", None)
    assert "90 GB a node next, which the scheduler refuses" in refused["reason"]


def test_a_policy_of_the_recipe_holds_for_real_jobs(ended: dict[str, Job]) -> None:
    job = ended["in_vain"]
    assert [job.ended(n)["decision"] for n in range(3)] == ["requeue", "requeue", "stop"]
    assert {job.ended(n)["policy"] for n in range(3)} == {"counted"}


def test_a_cancel_takes_back_a_requeue_that_the_scheduler_has_made(
    ended: dict[str, Job], policy_bench: Bench
) -> None:
    job = ended["cancelled"]
    (state,) = policy_bench.wait(job)
    assert (state.phase, state.reason) == (Phase.GONE, "CANCELLED")
    assert job.attempts() == ["s001r000"]
    assert (job.ended(0)["decision"], job.ended(0)["cause"]) == ("stop", "cancelled")


def test_an_attempt_that_was_lost_with_its_node_is_recorded_by_the_next(
    ended: dict[str, Job], policy_bench: Bench, four_nodes: PrivateSlurm
) -> None:
    job = submit(policy_bench, "lost", "--hold", "0")
    started = job.stage / "attempts" / "s001r000" / "start.json"
    policy_bench.until(started.exists)
    lost = node(job, 0)
    four_nodes.kill_node(lost)
    (state,) = policy_bench.wait(job, seconds=180)
    assert (state.exit_code, state.restarts) == (0, 1)
    record = job.ended(0)
    assert (record["cause"], record["policy"]) == ("node_failure", "free")
    assert record["recorded_by"] == "s001r001"
    assert record["exclude"] == [lost] and node(job, 1) != lost
    assert job.ended(1)["decision"] == "finished"


def test_later_jobs_of_a_run_are_submitted_without_its_bad_nodes(
    policy_bench: Bench, four_nodes: PrivateSlurm
) -> None:
    store, key = Store(four_nodes.shared / "store"), "0" * 64
    stage = store.stage_dir("probe", key)
    entry = {"name": "probe", "kind": "probe", "key": key}
    fsio.make_dir(store.run_dir("r"))
    fsio.write_json(store.run_dir("r") / "plan.json", {"stages": [entry]})
    fsio.write_json(store.run_dir("r") / "run.json", {"submitted_at": 0.0})
    stage.claim(1, "earlier", {"run_id": "r"})
    fsio.make_dir(stage.attempts / "s001r000")
    fsio.write_json(stage.attempts / "s001r000" / "exit.json", {"exclude": ["n2"]})
    orders = [
        Order(
            name="probe",
            key=key,
            stage=stage,
            upstream=(),
            resources=resources,
            action="resume",
            reason="",
            policy={},
            n=n,
        )
        for n, resources in ((2, Resources()), (3, Resources(nodes=4)))
    ]
    run = {"run_id": "r", "code": {"path": None}, "tracking": {"enabled": False}}
    excluded, reasons = [], []
    for order in orders:
        submitted = hand_over([order], run, store, SlurmExecutor())
        handle = submitted.handles["probe"]
        excluded.append(four_nodes.job(handle.job_id)["ExcNodeList"])
        reasons.append(submitted.stages[0].reason)
        policy_bench.executor.cancel([handle])
    assert (excluded, reasons) == (["n2", "(null)"], ["without n2", ""])
