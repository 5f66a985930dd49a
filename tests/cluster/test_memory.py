"""Kills for want of memory, as control groups of both versions count them; and a real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster import memory
from tests.cluster.memory_group import memory_group

# The kernel's formats (admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst); groups as SLURM's plugins
# for both versions name them.
V2_EVENTS = "low 0\nhigh 0\nmax 1811\noom 7\noom_kill {}\n"
V1_CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2_MEMBER = "0::/system.slice/slurmstepd.scope/job_71/step_0/user/task_0\n"
V1_MEMBER = "10:cpuset:/slurm/uid_0/job_71\n9:memory:/slurm/uid_0/job_71/step_0\n1:name=systemd:/\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_version_2_counts_in_the_nearest_group_that_has_the_controller(tmp_path: Path) -> None:
    step = tmp_path / "system.slice/slurmstepd.scope/job_71/step_0"
    write(step / "user/memory.events", V2_EVENTS.format(3))
    assert memory.oom_kills(V2_MEMBER, tmp_path) == 3


def test_version_1_counts_in_the_memory_controllers_tree(tmp_path: Path) -> None:
    group = tmp_path / "memory/slurm/uid_0/job_71/step_0"
    write(group / "memory.oom_control", V1_CONTROL.format(1))
    assert memory.oom_kills(V1_MEMBER, tmp_path) == 1


@pytest.mark.parametrize("member", [V1_MEMBER, V2_MEMBER, "", "0::/\n"])
def test_where_nobody_counts_nothing_is_known(member: str, tmp_path: Path) -> None:
    assert memory.oom_kills(member, tmp_path) is None


def test_a_counter_of_an_old_kernel_without_the_count_is_no_count(tmp_path: Path) -> None:
    group = tmp_path / "memory/slurm/uid_0/job_71/step_0"
    write(group / "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n")
    assert memory.oom_kills(V1_MEMBER, tmp_path) is None


HOG = """
import os, pathlib, sys
from cluster import memory
group = pathlib.Path(sys.argv[1])
(group / "cgroup.procs").write_text(str(os.getpid()))
before = memory.oom_kills()
child = os.fork()
if child == 0:
    filled = bytearray(512 << 20)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), before, memory.oom_kills())
"""


def test_a_real_kill_for_want_of_memory_is_counted() -> None:
    with memory_group() as group:
        if group is None:
            pytest.skip("no right to make a control group with a limit of memory")
        argv = [sys.executable, "-c", HOG, str(group)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["-9", "0", "1"]
