"""What a site will not run is found before submission, each with the key of the recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.contract import JobRequest, Resources
from cluster.limits import Account, Limits, Quota, check, gpus_of, minutes_of, problems
from cluster.limits_read import (
    parse_accounts,
    parse_nodes,
    parse_partitions,
    parse_qos,
    parse_queue,
    read_limits,
)
from tests.slurm_cluster import PrivateSlurm

GOLDEN = Path(__file__).parent / "golden"
NODES = """\
main|2|8|64000|gpu:4
short|1|8|64000|gpu:4
short|1|16|128000|gpu:a100:8(S:0-1)
off|2|8|64000|(null)
"""


@pytest.fixture
def site() -> Limits:
    """A partition without limits, one with all kinds of them, one that is drained."""
    main = parse_partitions((GOLDEN / "partitions_22.05.txt").read_text())["main"]
    limited = {"AllowAccounts": "foo,bar", "MaxNodes": "1", "MaxTime": "1-00:00:00"}
    off = {"DenyQos": "small", "MinNodes": "2", "State": "DRAIN"}
    other = {**main, "Default": "NO"}
    return Limits(
        config={"MaxJobCount": "10000", "SLURM_VERSION": "22.05.8"},
        partitions={"main": main, "short": {**other, **limited}, "off": {**other, **off}},
        nodes=parse_nodes(NODES),
    )


def _request(**resources: Any) -> JobRequest:
    return JobRequest(
        name="a",
        argv=("/bin/true",),
        epilogue=("/bin/true",),
        resources=Resources(**resources),
        log_dir=Path("/store/logs"),
    )


def _found(site: Limits, shell: dict[str, str] | None = None, **resources: Any) -> list[str]:
    return check({"probe": _request(**resources)}, site, shell or {})


def test_a_job_that_fits_is_left_alone(site: Limits) -> None:
    assert _found(site, nodes=2, gpus_per_node=4, hours=100, mem_gb=60, cpus_per_task=8) == []
    assert _found(site, partition="short", account="foo", hours=24, gpus_per_node=8) == []


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"partition": "gpus"}, "resources.partition is 'gpus', which does not exist; there are:"),
        ({"partition": "off", "nodes": 2}, "resources.partition: off is DRAIN"),
        ({"hours": 25}, "resources.hours is 25; partition short allows 24 (MaxTime)"),
        ({"nodes": 2}, "resources.nodes is 2; partition short allows 1 (MaxNodes)"),
        ({"account": "me"}, "resources.account is 'me'; partition short allows bar, foo"),
        ({"gpus_per_node": 9}, "resources.gpus_per_node is 9; partition short has 0 such nodes"),
        ({"mem_gb": 200}, "resources.mem_gb is 200; partition short has 0 such nodes"),
        (
            {"tasks_per_node": 4, "cpus_per_task": 5},
            "tasks_per_node x cpus_per_task is 20; partition short has 0 such nodes, 1 are needed"
            " (the largest has 16)",
        ),
    ],
)
def test_each_limit_of_a_partition_is_told_with_its_key(
    site: Limits, resources: dict[str, Any], told: str
) -> None:
    (line,) = _found(site, **{"partition": "short", "account": "foo", **resources})
    assert line.startswith("probe: ") and told in line


def test_large_nodes_are_counted_and_not_small_ones(site: Limits) -> None:
    wide = replace(site, partitions={"short": {"State": "UP"}})
    (line,) = _found(wide, partition="short", nodes=2, gpus_per_node=8)
    assert "partition short has 1 such nodes, 2 are needed (the largest has 8)" in line
    (line,) = _found(wide, partition="short", nodes=3)
    assert "resources.nodes is 3; partition short has 2" in line


def test_a_denied_qos_and_too_few_nodes_are_both_told(site: Limits) -> None:
    up = {"off": {**site.partitions["off"], "State": "UP"}}
    known = replace(site, partitions=up, qos={"small": Quota(where="QOS small")})
    lines = _found(known, partition="off", qos="small")
    assert "resources.qos is 'small', which partition off denies" in lines[0]
    assert "resources.nodes is 1; partition off asks for at least 2 (MinNodes)" in lines[1]


def test_one_partition_of_several_is_enough(site: Limits) -> None:
    assert _found(site, partition="short,main", hours=48) == []
    assert "MaxTime" in _found(site, partition="short,off", hours=48, account="foo")[0]


def test_defaults_of_the_shell_and_of_the_cluster_count(site: Limits) -> None:
    assert _found(site, hours=48) == []
    shell = {"SBATCH_PARTITION": "short", "SBATCH_ACCOUNT": "foo"}
    assert "partition short allows 24" in _found(site, shell, hours=48)[0]


ACCOUNTS = """\
video|root||normal,small||4|1-00:00:00|gres/gpu=8,node=2,mem=1T
root|root||normal||||
"""
QOS = """\
normal||||
small||2|01:00:00|
long|DenyOnLimit,PartitionTimeLimit|||
"""


@pytest.fixture
def accounted(site: Limits) -> Limits:
    """A site that enforces what accounting says; three jobs are in the queue."""
    accounts, default = parse_accounts(ACCOUNTS)
    queue = parse_queue("video|normal|main\n" * 3)
    return replace(
        site, accounts=accounts, qos=parse_qos(QOS), in_queue=queue, default_account=default
    )


def test_accounts_and_qos_are_read(accounted: Limits) -> None:
    assert accounted.default_account == "root"
    assert accounted.accounts[0] == Account(
        name="video",
        partition="",
        qos=("normal", "small"),
        default_qos="",
        quota=Quota(
            where="account video",
            max_submit=4,
            max_minutes=1440,
            max_tres={"gres/gpu": 8.0, "node": 2.0},
        ),
    )
    assert accounted.qos["small"].max_minutes == 60


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"account": "nope"}, "resources.account is 'nope'; yours are: root, video"),
        ({"account": "root", "qos": "small"}, "resources.qos is 'small'; account root may use"),
        ({"hours": 25}, "resources.hours is 25; account video allows 24 (MaxWall)"),
        ({"nodes": 3}, "resources.nodes is 3; account video allows 2 a job (MaxTRES)"),
    ],
)
def test_what_accounting_does_not_allow_is_told(
    accounted: Limits, resources: dict[str, Any], told: str
) -> None:
    lines = _found(accounted, **{"account": "video", **resources})
    assert any(told in line for line in lines)


def test_what_is_not_sure_is_left_to_the_scheduler(site: Limits, accounted: Limits) -> None:
    """Accounts below an allowed one; a QOS that lifts a limit, or that nobody knows."""
    newer = replace(site, config={"SLURM_VERSION": "24.05.2"})
    assert _found(newer, partition="short", account="me") == []
    assert _found(site, partition="short") == []
    assert _found(site, partition="short", account="foo", qos="unknown", hours=48) == []
    free = [replace(one, qos=(*one.qos, "long")) for one in accounted.accounts]
    lifted = replace(accounted, accounts=free)
    assert _found(lifted, partition="short", account="root", qos="long", hours=48) == [
        "probe: resources.account is 'root'; partition short allows bar, foo"
    ]


def test_too_many_jobs_are_told_before_the_first(accounted: Limits) -> None:
    two = {name: _request(account="video") for name in ("a", "b")}
    (line,) = check(two, accounted, {})
    assert line.startswith("2 jobs are to be submitted and 3 of yours are in the queue; account")
    assert "allows 4 (MaxSubmitJobs)" in line
    tiny = replace(accounted, config={"MaxJobCount": "1"}, in_queue=())
    assert "the cluster holds 1 (MaxJobCount)" in check(two, tiny, {})[0]


def test_the_first_limit_of_partition_qos_and_association_holds(accounted: Limits) -> None:
    """As SLURM has it: a QOS may allow more than the association, and count its own jobs only."""
    wide = {"wide": Quota(where="QOS wide", max_submit=100, max_minutes=6000)}
    free = [replace(one, qos=(*one.qos, "wide")) for one in accounted.accounts]
    site = replace(accounted, qos={**accounted.qos, **wide}, accounts=free)
    video: dict[str, Any] = {"account": "video", "qos": "wide"}
    assert _found(site, **video, hours=48) == []
    assert "QOS wide allows 100 (MaxWall)" in _found(site, **video, hours=101)[0]
    many = {str(number): _request(**video) for number in range(20)}
    assert check(many, site, {}) == []
    own = {"main": {**site.partitions["main"], "QoS": "small"}}
    (line,) = _found(replace(site, partitions=own, in_queue=()), **video, hours=2)
    assert "QOS small allows 1 (MaxWall)" in line
    others = replace(accounted, in_queue=parse_queue("root|normal|main\n" * 9))
    assert check({"a": _request(account="video")}, others, {}) == []


@pytest.mark.parametrize("enforced", ["associations", "limits", "associations,qos"])
def test_limits_that_are_not_enforced_refuse_nothing(
    enforced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "config": f"AccountingStorageEnforce = {enforced}\n",
        "partition": "PartitionName=main Default=YES State=UP\n",
        "user": ACCOUNTS,
        "qos": QOS,
    }

    def ask(*command: str, seconds: float = 0.0) -> str:
        return next((text for key, text in told.items() if key in command), "")

    monkeypatch.setattr("cluster.limits_read._ask", ask)
    limits = read_limits()
    asked = {"account": "video", "hours": 25}
    assert bool(_found(limits, **asked)) is (enforced == "limits")
    assert bool(_found(limits, account="root", qos="small")) is ("qos" in enforced)
    told["user"] = "one field"
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert problems("slurm", {"probe": _request(**asked)}) == []


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("UNLIMITED", None),
        ("", None),
        ("00:10:00", 10),
        ("1-00:00:00", 1440),
        ("2-03:04:05", 3065),
    ],
)
def test_time_limits_are_read(text: str, minutes: int | None) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [("gpu:4", 4), ("gpu:a100:4(S:0-1),tmp:1T", 4), ("(null)", 0), ("gpu:a:2,gpu:b:1", 3)],
)
def test_gpus_of_a_node_are_counted_whatever_their_type(gres: str, gpus: int) -> None:
    assert gpus_of(gres) == gpus


def test_nothing_is_asked_for_another_executor() -> None:
    assert problems("local", {"probe": _request(nodes=99)}) == []


@pytest.mark.slurm
def test_the_limits_of_a_cluster_are_read_and_hold(slurm_here: PrivateSlurm) -> None:
    limits = read_limits()
    assert set(limits.partitions) == {"main", "grace", "cancel", "high"}
    assert [(one.count, one.cpus, gpus_of(one.gres)) for one in limits.nodes] == [(2, 8, 4)] * 4
    assert problems("slurm", {"probe": _request(nodes=2, gpus_per_node=4)}) == []
    (line,) = problems("slurm", {"probe": _request(gpus_per_node=5)})
    assert "partition main has 0 such nodes" in line
