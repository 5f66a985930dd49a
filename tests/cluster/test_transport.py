"""Which transport a site gets, and what is read of jobs that wait for others; pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from cluster import fsio
from cluster.contract import Resources
from cluster.doctor import SlurmFacts, parse_facts, parse_partitions
from cluster.inside import Changes, Origin, downstream, megabytes, origin_of
from cluster.queue import Dependent, parse_dependents, parse_job_fields
from cluster.ranks import restart_count
from cluster.site import SiteProfile
from cluster.slurm import SlurmExecutor
from cluster.successor import Successor, own_record, recorded, successors, superseded
from cluster.transport import choose_transport
from tests.cluster.test_batch import plain_shell, request

__all__ = ["plain_shell"]

CONFIG = {
    "SLURM_VERSION": "22.05.8",
    "ClusterName": "c",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "KillWait": "30 sec",
    "JobRequeue": "1",
    "MinJobAge": "300 sec",
}
PROFILE = SiteProfile(cluster="c", checked_at=0.0)


def facts(partition: str = "", **config: str) -> SlurmFacts:
    known = parse_partitions(f"PartitionName=main Default=YES {partition}") if partition else []
    return parse_facts({**CONFIG, **config}, known)


CHOICES: list[
    tuple[SlurmFacts | None, SiteProfile | None, Literal["auto", "requeue", "successor"], str]
] = [
    (facts(), None, "auto", "requeue in place (PreemptMode=REQUEUE, KillWait 30 s)"),
    (
        facts(PreemptMode="CANCEL", JobRequeue="0"),
        None,
        "auto",
        "requeue in place (PreemptMode=CANCEL, KillWait 30 s)",
    ),
    (
        facts("PreemptMode=CANCEL GraceTime=60"),
        None,
        "auto",
        "requeue in place (PreemptMode=CANCEL, KillWait 30 s, GraceTime 60 s)",
    ),
    (
        facts("PreemptMode=CANCEL GraceTime=0", KillWait="2 sec"),
        None,
        "auto",
        "a successor job (PreemptMode=CANCEL, KillWait 2 s: too short to ask for a requeue)",
    ),
    (
        facts("PreemptMode=CANCEL GraceTime=60", KillWait="2 sec"),
        None,
        "auto",
        "requeue in place (PreemptMode=CANCEL, KillWait 2 s, GraceTime 60 s)",
    ),
    (
        facts(PreemptMode="CANCEL", KillWait="2 sec"),
        replace(PROFILE, scontrol_on_nodes=True, sbatch_on_nodes=False),
        "auto",
        "requeue in place (PreemptMode=CANCEL, KillWait 2 s)",
    ),
    (
        facts(),
        replace(PROFILE, scontrol_on_nodes=True, sbatch_on_nodes=False),
        "auto",
        "requeue in place (PreemptMode=REQUEUE, KillWait 30 s)",
    ),
    (
        facts(),
        replace(PROFILE, scontrol_on_nodes=False, sbatch_on_nodes=True),
        "auto",
        "a successor job (scontrol does not work on the nodes)",
    ),
    (
        facts(),
        replace(PROFILE, scontrol_on_nodes=False),
        "auto",
        "a successor job (scontrol does not work on the nodes)",
    ),
    (
        facts(),
        replace(PROFILE, scontrol_on_nodes=False, sbatch_on_nodes=False),
        "auto",
        "requeue in place (neither scontrol nor sbatch works on the nodes: what SLURM does not"
        " requeue by itself is continued by `orchestrate resume`)",
    ),
    (None, None, "auto", "requeue in place (no scheduler was asked)"),
    (facts(), None, "successor", "a successor job (cluster.transport=successor)"),
    (
        facts(),
        replace(PROFILE, scontrol_on_nodes=False),
        "requeue",
        "requeue in place (cluster.transport=requeue)",
    ),
]


@pytest.mark.parametrize(("known", "profile", "wanted", "says"), CHOICES)
def test_the_transport_follows_from_what_the_site_says_of_itself(
    known: SlurmFacts | None,
    profile: SiteProfile | None,
    wanted: Literal["auto", "requeue", "successor"],
    says: str,
) -> None:
    assert str(choose_transport(known, profile, wanted)) == says


# As squeue 22.05.8 printed them for -O "JobArrayID:|,Dependency:|,WorkDir:|".
WAITING = """\
6|afterany:3(unfulfilled),afterany:4(unfulfilled),afterany:5_*(unfulfilled)|/store/a|b|
7|afterok:5_*(unfulfilled),afterok:3(unfulfilled)|
9_[0]|afternotok:5_0(unfulfilled)|
12|(null)|/store|
13|afterok:3(unfulfilled)?afterok:4(unfulfilled)|
14|singleton(unfulfilled)|
15|afterany:6(unfulfilled)|/home/ann|
"""


def test_jobs_that_wait_for_others_are_read_from_squeue() -> None:
    found = {one.job_id: one for one in parse_dependents(WAITING)}
    assert set(found) == {"6", "7", "9_[0]", "15"}
    assert (found["6"].folder, found["7"].folder) == ("/store/a|b", "")
    assert found["6"].waits_for("4") and found["6"].waits_for("5_1", kind="afterany")
    assert not found["6"].waits_for("50") and not found["7"].waits_for("3", kind="afterany")
    assert found["6"].and_after("21_4") == "afterany:3,afterany:4,afterany:5,afterany:21"
    assert found["7"].with_success_of("21", "3") == "afterok:5,afterok:21"


def test_what_waits_for_a_job_through_others_is_found_with_it() -> None:
    waiting = parse_dependents(WAITING)
    assert [one.job_id for one in downstream(waiting, ["4"])] == ["6", "15"]
    assert [one.job_id for one in downstream(waiting, ["6", "15"])] == []
    ring = [Dependent(job_id=a, on=(("afterany", b),)) for a, b in (("1", "2"), ("2", "1"))]
    assert [one.job_id for one in downstream(ring, ["1"])] == ["2"]


def test_squeue_tells_of_an_end_in_the_words_of_scontrol() -> None:
    told = parse_job_fields("COMPLETING|NodeDown|0|N/A|\n")
    assert told is not None and told["JobState"] == "COMPLETING" and told["Reason"] == "NodeDown"
    assert parse_job_fields("") is None


def test_memory_is_rounded_up() -> None:
    assert [megabytes(gb) for gb in (1, 1.5, 0.0001)] == [1024, 1536, 1]


def _origin(stage: Path, **environ: str) -> Origin:
    origin = origin_of(stage, 1, environ)
    assert origin is not None
    return origin


def _record(stage: Path, number: int, job_id: str, **more: object) -> None:
    value = {"number": number, "job_id": job_id, "submitted_at": 0.0, "why": "", "exclude": []}
    folder = fsio.make_dir(stage / "submission-1.jobs")
    fsio.write_json(folder / f"{number}.json", {"schema_version": 1, **value, **more})


def test_attempts_are_counted_over_all_jobs_of_a_submission(tmp_path: Path) -> None:
    environ = {"SLURM_JOB_ID": "9", "ORCHESTRATE_RESTART_BASE": "3", "SLURM_RESTART_COUNT": "2"}
    assert restart_count(environ) == 5
    origin = _origin(tmp_path, **environ)
    assert (origin.number, origin.base, origin.script) == (5, 3, None)
    assert origin_of(tmp_path, 1, {}) is None


def test_only_the_job_that_is_recorded_goes_on_with_a_submission(tmp_path: Path) -> None:
    first = {"SLURM_JOB_ID": "5"}
    second = {"SLURM_JOB_ID": "8", "ORCHESTRATE_RESTART_BASE": "1"}
    assert superseded(tmp_path, 1, first) is None
    _record(tmp_path, 1, "8")
    assert superseded(tmp_path, 1, first) is None  # its successor only waits
    assert superseded(tmp_path, 1, {**first, "SLURM_RESTART_COUNT": "1"}) == "8"
    assert superseded(tmp_path, 1, second) is None
    assert superseded(tmp_path, 1, {**second, "SLURM_JOB_ID": "7"}) == "8"
    _record(tmp_path, 2, "9")
    assert superseded(tmp_path, 1, second) is None
    assert superseded(tmp_path, 1, {**second, "SLURM_RESTART_COUNT": "1"}) == "9"


def test_a_job_whose_record_was_never_written_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    stage = fsio.make_dir(tmp_path / "stage")
    assert own_record(_origin(stage, SLURM_JOB_ID="5")) is None
    made = own_record(_origin(stage, SLURM_JOB_ID="8", ORCHESTRATE_RESTART_BASE="1"))
    assert made is not None and successors(stage, 1) == [made]


def test_a_job_that_was_taken_back_is_not_one_to_go_on_with(tmp_path: Path) -> None:
    _record(tmp_path, 1, "8", taken_back=True, mem_gb=4.0)
    origin = _origin(tmp_path, SLURM_JOB_ID="5")
    assert recorded(origin, 1) is None
    assert successors(tmp_path, 1) == [
        Successor(number=1, job_id="8", submitted_at=0.0, why="", mem_gb=4.0, taken_back=True)
    ]


def test_a_successor_is_submitted_with_what_the_shell_of_the_first_job_chose(
    plain_shell: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    monkeypatch.setenv("SBATCH_RESERVATION", "course")
    asked = request(resources=Resources(reservation="mine", requeue=False))
    script = SlurmExecutor().render(replace(asked, prologue=("/env/bin/python", "-m", "p")))
    lines = script.splitlines()
    assert "#SBATCH --partition=gpu" in lines and "#SBATCH --reservation=mine" in lines
    assert "#SBATCH --no-requeue" in lines and 'export ORCHESTRATE_SCRIPT="$0"' in lines
    assert any(line.endswith("; [ $? -ne 76 ] || exit 76") for line in lines)


def test_no_change_is_false() -> None:
    assert not Changes() and Changes(exclude=("n1",)) and Changes(mem_gb=1.0)
