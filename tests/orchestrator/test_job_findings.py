"""What `doctor --job` makes of the reports of ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.contract import Resources
from cluster.node_looks import NUM_CLAIMS
from orchestrator.checkup import Check
from orchestrator.job_findings import judge, profile_of
from orchestrator.node_findings import Seen

SCHEDULER = {"scontrol": True, "scontrol_says": "", "sbatch": True, "sbatch_says": ""}


def rank(number: int, **looks: Any) -> dict[str, Any]:
    """A rank on a node of its own that found everything in order."""
    return {
        "rank": number,
        "local_rank": 0,
        "host": f"n{number + 1}",
        "at_work_on": "",
        "done": True,
        "python": {"version": "3.11.7", "executable": "/env/bin/python", "kernel": "6.1"},
        "imports": {"packages": {"torch": {"version": "2.6", "after": 3.0}}, "seconds": 3.0},
        "cpus": {"asked": 4, "allowed": 4, "threads": "4"},
        "shared": {"answered_after": 0.5, "clock_differs": 0.0},
        "claims": {"won": list(range(number, NUM_CLAIMS, 2))},
        "lock": {"locks": True},
        "scratch": {"folder": "/tmp", "free_gb": 100.0, "shm_gb": 60.0},  # noqa: S108
        "limits": {
            "files": [4096, 8192],
            "locked_bytes": [-1, -1],
            "processes": [-1, -1],
            "memory_bytes": 8e9,
        },
        "scheduler": SCHEDULER,
        "internet": {"reached": False},
        "gpus": {"asked": 4, "visible": "0,1,2,3", "seen": 4, "names": ["H100"] * 4},
        "collective": {
            "backend": "nccl",
            "right": True,
            "world_size": 2,
            "ready_seconds": 2.0,
            "gb_per_second": 23.5,
        },
        "signal": {"received": "SIGUSR2"},
        **looks,
    }


def seen(*ranks: dict[str, Any], batch: dict[str, Any] | None = None) -> Seen:
    resources = Resources(
        nodes=2, device="cuda", gpus_per_node=4, cpus_per_task=4, gpu_request="gres"
    )
    return Seen(
        executor="slurm",
        cluster="site",
        job_id="12",
        resources=resources,
        waited_seconds=7.0,
        ranks=ranks,
        batch={"host": "n1", "scheduler": SCHEDULER} if batch is None else batch,
        versions={"torch": "2.6"},
        logs="/store/doctor/1/logs",
    )


def told(found: Seen) -> dict[str, Check]:
    return {check.name: check for check in judge(found)}


def test_nodes_in_order_get_one_line_for_both_and_no_advice() -> None:
    checks = told(seen(rank(0), rank(1)))
    assert {check.state for check in checks.values()} == {"ok"}
    assert not any(check.advice for check in checks.values())
    assert checks["job"].found == "12: 2 nodes x 1 task, on n1, n2, began after 7 s"
    assert checks["node gpus"].found == "4 of 4 a node visible (H100)"
    assert checks["all-reduce"].found == "nccl, 2 ranks, 24 GB/s"


def test_nodes_that_differ_are_named_and_the_worst_counts() -> None:
    other = {"packages": {"torch": {"version": "2.4", "after": 3.0}}, "seconds": 90.0}
    checks = told(seen(rank(0), rank(1, imports=other)))
    assert checks["node packages"].state == "warning"
    assert checks["node packages"].found == "n1: torch 2.6; n2: torch 2.4 (here 2.6)"
    assert checks["node imports"].state == "warning" and "90 s" in checks["node imports"].found


def test_a_rank_that_never_began_and_one_that_stopped_in_the_middle_are_told() -> None:
    hung = rank(0, at_work_on="collective")
    del hung["done"]
    (first, *_) = judge(seen(hung))
    assert (first.name, first.state) == ("job", "failed")
    assert "1 of 2 ranks never began" in first.found
    assert "rank 0 on n1 ended in `collective`" in first.found
    assert first.advice == "read /store/doctor/1/logs"


def test_an_error_in_a_look_is_its_finding() -> None:
    broken = {"error": "DistBackendError: NCCL error"}
    checks = told(seen(rank(0), rank(1, collective=broken)))
    assert checks["all-reduce"].state == "failed"
    assert checks["all-reduce"].found == "DistBackendError: NCCL error"
    assert "NCCL_SOCKET_IFNAME" in checks["all-reduce"].advice


def test_a_claim_that_two_ranks_won_is_a_failure() -> None:
    both = {"won": list(range(NUM_CLAIMS))}
    assert told(seen(rank(0), rank(1, claims=both)))["exclusive files"].state == "failed"


def test_missing_gpus_and_signals_are_failures_and_small_things_warnings() -> None:
    ranks = [
        rank(
            n,
            gpus={"asked": 4, "visible": "", "seen": 0, "names": []},
            signal={"received": None},
            cpus={"asked": 4, "allowed": 1, "threads": "4"},
            lock={"error": "OSError: [Errno 37] No locks available"},
            mlflow={"status": 403, "says": "Invalid Host header"},
            scratch={"folder": "/tmp", "free_gb": 100.0, "shm_gb": 0.1},  # noqa: S108
            shared={"answered_after": 41.0, "clock_differs": 9.0},
        )
        for n in (0, 1)
    ]
    checks = told(seen(*ranks))
    failed = {name for name, check in checks.items() if check.state == "failed"}
    warned = {name for name, check in checks.items() if check.state == "warning"}
    assert failed == {"node gpus", "signals"}
    assert warned == {
        "node cpus",
        "node locks",
        "node mlflow",
        "node scratch",
        "shared files",
        "clocks",
    }
    assert all(checks[name].advice for name in failed | warned)


def test_one_gpu_of_many_is_enough_only_where_each_task_was_given_its_own() -> None:
    one = {"asked": 4, "visible": "0", "seen": 1, "names": ["H100"]}
    found = seen(rank(0, gpus=one), rank(1, gpus=one))
    assert told(found)["node gpus"].state == "warning"
    own = replace(found, resources=replace(found.resources, gpu_request="gpus-per-task"))
    assert told(own)["node gpus"].state == "ok"


def test_scontrol_counts_only_where_it_works_on_every_node_and_in_the_batch_script() -> None:
    says = "scontrol: not found"
    missing = {**SCHEDULER, "scontrol": False, "scontrol_says": says}
    found = seen(rank(0), rank(1), batch={"host": "n1", "scheduler": missing})
    check = told(found)["node scontrol"]
    assert (check.state, check.found) == ("warning", "n1: scontrol: not found")
    profile = profile_of(found, now=5.0)
    assert (profile.scontrol_on_nodes, profile.sbatch_on_nodes) == (False, True)


def test_the_profile_keeps_what_submissions_choose_by() -> None:
    profile = profile_of(seen(rank(0), rank(1)), now=5.0)
    assert (profile.cluster, profile.checked_at, profile.nodes) == ("site", 5.0, ("n1", "n2"))
    assert profile.gpu_request == "gres"
    none = {"asked": 4, "visible": "", "seen": 0, "names": []}
    assert profile_of(seen(rank(0, gpus=none), rank(1)), 5.0).gpu_request is None
