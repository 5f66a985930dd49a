"""What the controller says of itself, as facts."""

from __future__ import annotations

import pytest

from cluster.doctor import parse_facts, parse_partitions, slurm_facts
from cluster.queue import parse_scontrol_config
from tests.slurm_cluster import PrivateSlurm

# From `scontrol -o show partition` of 22.05.8, cut to what is read.
_PARTITIONS = """\
PartitionName=main AllowGroups=ALL Default=YES QoS=N/A DefaultTime=NONE GraceTime=0 Hidden=NO \
MaxNodes=UNLIMITED MaxTime=UNLIMITED Nodes=n[1-2] PriorityTier=1 PreemptMode=REQUEUE State=UP \
TotalCPUs=16 TotalNodes=2 TRES=cpu=16,mem=125G,node=2,billing=16
PartitionName=spare AllowGroups=ALL Default=NO QoS=N/A DefaultTime=01:00:00 GraceTime=120 \
MaxNodes=4 MaxTime=1-12:30:00 Nodes=n[1-8] PreemptMode=CANCEL State=DOWN TotalNodes=8
"""


def test_a_partition_tells_its_limits_and_what_preemption_does() -> None:
    main, spare = parse_partitions(_PARTITIONS)
    assert (main.name, main.default, main.up, main.num_nodes) == ("main", True, True, 2)
    assert (main.preempt_mode, main.grace_seconds) == ("REQUEUE", 0)
    assert main.max_hours is None and main.max_nodes is None
    assert (spare.up, spare.max_nodes, spare.max_hours) == (False, 4, 36.5)
    assert (spare.preempt_mode, spare.grace_seconds) == ("CANCEL", 120)


@pytest.mark.parametrize(
    ("preempt_type", "modes"),
    [
        ("preempt/none", {"OFF"}),
        ("preempt/partition_prio", {"REQUEUE", "CANCEL"}),
        ("preempt/qos", {"SUSPEND"}),
    ],
)
def test_what_preemption_may_do_depends_on_how_the_cluster_chooses(
    preempt_type: str, modes: set[str]
) -> None:
    config = {"PreemptType": preempt_type, "PreemptMode": "SUSPEND"}
    facts = parse_facts(config, parse_partitions(_PARTITIONS))
    assert facts.preempt_modes == modes and facts.grace_seconds == 0


def test_settings_that_a_newer_slurm_has_are_read_as_well() -> None:
    text = """\
AccountingStorageType   = accounting_storage/slurmdbd
AuthInfo                = (null)
DependencyParameters    = kill_invalid_depend
MaxArraySize            = 0
PreemptParameters       = send_user_signal
SchedulerParameters     = bf_interval=60,requeue_delay=30
"""
    facts = parse_facts(parse_scontrol_config(text))
    assert facts.user_signal and facts.kill_invalid_depend and facts.accounting
    assert (facts.max_array_size, facts.requeue_wait_seconds) == (0, 30)
    assert parse_facts({}).requeue_wait_seconds == 121


@pytest.mark.slurm
def test_a_real_controller_is_asked_for_the_partitions_a_job_would_go_to(
    slurm_here: PrivateSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = slurm_facts()
    assert [one.name for one in facts.partitions] == ["main"]
    assert (facts.preempt_type, facts.max_array_size) == ("preempt/partition_prio", 1001)
    assert (facts.accounting, facts.kill_invalid_depend) == (False, False)
    assert (facts.requeue_wait_seconds, facts.slurmd_timeout_seconds) == (6, 20)
    monkeypatch.setenv("SBATCH_PARTITION", "cancel")
    assert slurm_facts().preempt_modes == {"CANCEL"}
    both = slurm_facts("grace,cancel")
    assert both.preempt_modes == {"REQUEUE", "CANCEL"} and both.grace_seconds == 0
    assert slurm_facts("grace").grace_seconds == 20
    assert slurm_facts("none").partitions == ()
