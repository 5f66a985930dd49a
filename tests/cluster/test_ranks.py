"""Rank, world and rendezvous from SLURM's and PyTorch's variables; host lists."""

from __future__ import annotations

import re
import subprocess

import pytest

from cluster.ranks import (
    RankEnv,
    RankError,
    check_world_size,
    cpus_of_task,
    expand_counts,
    expand_hosts,
    placement,
    rank_environment,
    rendezvous_port,
    restart_count,
)
from tests.slurm_cluster import PrivateSlurm

STEP = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NODELIST": "gpu[07,09]",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}
TORCH = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_a_slurm_step_gives_the_whole_place() -> None:
    expected = RankEnv(
        rank=5,
        world_size=8,
        local_rank=1,
        local_world_size=4,
        master_addr="gpu07",
        master_port=20000 + 7 * 1234,
    )
    assert rank_environment(STEP) == expected
    assert rank_environment(expected.export()) == expected


def test_pytorchs_names_win_inside_an_allocation() -> None:
    ranks = rank_environment({**STEP, **TORCH})
    assert (ranks.rank, ranks.world_size, ranks.master_port) == (1, 2, 29500)


def test_alone_without_any_of_them() -> None:
    ranks = rank_environment({"HOME": "/root", "SLURM_JOB_ID": "7"})
    assert (ranks.rank, ranks.world_size, ranks.local_world_size) == (0, 1, 1)


@pytest.mark.parametrize("missing", sorted(TORCH))
def test_a_partial_torch_environment_names_what_is_missing(missing: str) -> None:
    partial = {name: value for name, value in TORCH.items() if name != missing}
    with pytest.raises(RankError, match=f"{missing} not set"):
        rank_environment(partial)


@pytest.mark.parametrize(
    "missing", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID"]
)
def test_a_partial_step_names_what_is_missing(missing: str) -> None:
    partial = {name: value for name, value in STEP.items() if name != missing}
    with pytest.raises(RankError, match=f"{missing} not set"):
        rank_environment(partial)


def test_a_batch_script_without_srun_is_refused() -> None:
    with pytest.raises(RankError, match=r"SLURM_PROCID, SLURM_LOCALID not set.*srun"):
        rank_environment({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"})
    with pytest.raises(RankError, match="SLURM_JOB_NODELIST"):
        rank_environment({k: v for k, v in STEP.items() if k != "SLURM_JOB_NODELIST"})


@pytest.mark.parametrize(
    "change", [{"RANK": "2"}, {"RANK": "-1"}, {"RANK": "x"}, {"LOCAL_RANK": "2"}]
)
def test_impossible_ranks_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(RankError):
        rank_environment({**TORCH, **change})


RESOURCES = {"nodes": 2, "tasks_per_node": 4, "cpus_per_task": 6}


def test_another_number_of_ranks_than_was_submitted_is_refused_with_both() -> None:
    ranks = rank_environment(STEP)
    check_world_size(ranks, RESOURCES)
    check_world_size(ranks, {})
    with pytest.raises(RankError, match=r"a world of 8 ranks.* asked for 4: .*nodes 1 x .*_node 4"):
        check_world_size(ranks, {**RESOURCES, "nodes": 1})
    alone = rank_environment({})
    with pytest.raises(RankError, match=r"a world of 1 ranks.* asked for 8: .*start 8 processes"):
        check_world_size(alone, RESOURCES)


def test_threads_are_as_many_as_the_task_has_cpus() -> None:
    assert cpus_of_task({"SLURM_CPUS_PER_TASK": "12"}, RESOURCES) == 12
    assert cpus_of_task({}, RESOURCES) == 6
    assert cpus_of_task({}, {}) == 1


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 0),
        ({"SLURM_RESTART_COUNT": "2"}, 2),
        ({"ORCHESTRATE_RESTART_COUNT": "1"}, 1),
        ({"TORCHELASTIC_RESTART_COUNT": "3"}, 3),
        ({"SLURM_RESTART_COUNT": "2", "TORCHELASTIC_RESTART_COUNT": "0"}, 2),
    ],
)
def test_restarts_are_counted_by_whoever_started_the_ranks(
    environ: dict[str, str], count: int
) -> None:
    assert restart_count(environ) == count


def test_a_rank_says_where_it_is_and_what_it_may_use() -> None:
    environ = {"OMP_NUM_THREADS": "6", "CUDA_VISIBLE_DEVICES": "1"}
    line = placement(rank_environment(STEP), environ)
    assert line.startswith("rank 5 of 8 on ") and "(local 1 of 4)" in line
    assert "6 threads, GPUs 1, rendezvous gpu07:28638" in line


def test_ports_differ_by_job_and_restart_and_stay_below_the_ephemeral_range() -> None:
    ports = [rendezvous_port(job, restart) for job in range(5000) for restart in range(3)]
    assert min(ports) >= 20000 and max(ports) < 32000
    assert rendezvous_port(11, 0) != rendezvous_port(11, 1) != rendezvous_port(12, 0)


@pytest.mark.parametrize(
    ("text", "counts"), [("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("1(x2),4(x2)", [1, 1, 4, 4])]
)
def test_task_counts_are_expanded(text: str, counts: list[int]) -> None:
    assert expand_counts(text) == counts


HOST_LISTS = [
    ("n1", ["n1"]),
    ("n[1-2,5]", ["n1", "n2", "n5"]),
    ("n[08-11]", ["n08", "n09", "n10", "n11"]),
    ("a[1-2,05]-ib,b", ["a1-ib", "a2-ib", "a05-ib", "b"]),
    ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ("gpu-a,gpu-b[3]", ["gpu-a", "gpu-b3"]),
    (
        "x[1-3],y[001,010-011].cluster.site",
        ["x1", "x2", "x3", *(f"y{n}.cluster.site" for n in ("001", "010", "011"))],
    ),
]


@pytest.mark.parametrize(("text", "hosts"), HOST_LISTS)
def test_host_lists_are_expanded(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.slurm
def test_host_lists_are_expanded_as_slurm_does(slurm: PrivateSlurm) -> None:
    # scontrol 22.05 prints nothing for a name that goes on behind its brackets, so those are out.
    plain = [(text, hosts) for text, hosts in HOST_LISTS if not re.search(r"\][^,\[]", text)]
    assert len(plain) >= 4
    for text, hosts in plain:
        command = ["scontrol", "show", "hostnames", text]
        done = subprocess.run(command, env=slurm.env, capture_output=True, text=True, check=True)
        assert done.stdout.split() == hosts


@pytest.mark.parametrize("text", ["n[1-2", "n[a-b]", "n]1["])
def test_a_host_list_nobody_understands_is_an_error(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RankError, match="cannot read the host list"):
        expand_hosts(text)
