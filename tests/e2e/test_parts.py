"""An index that four jobs of an array share, on a real SLURM; two are hit, the table is equal."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import CommandLine, make_command_line
from tests.recipes.data_files import write_set
from tests.slurm_cluster import PrivateSlurm

pytestmark = [pytest.mark.e2e, pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

RECIPE = """\
name: parts
cluster: {{executor: slurm, resources: {{cpus_per_task: 1, hours: 0.2}}}}
tracking: {{enabled: false}}
data:
  home:
    format: folder
    name: home
    root: {root}
    max_bad_share: 0.2
    index: {{shards: 4}}
    prepare: null
stages:
  scan: {{kind: index, data: '${{data.home}}', workers: 1}}
"""
PARTS = [f"scan/part-{number:03}" for number in range(4)]


@pytest.fixture(scope="module")
def videos(slurm: PrivateSlurm) -> Path:
    """Eleven videos in two classes, and one file that is none, where all nodes see them.

    They are long enough for a part to be hit while it works.
    """
    root = slurm.shared / f"videos-{os.urandom(3).hex()}"
    write_set(root, count=11, frames=100)
    (root / "odd" / "broken.mp4").write_bytes(b"not a video" * 100)
    return root


def _command_line(slurm: PrivateSlurm, videos: Path, name: str) -> CommandLine:
    run = make_command_line(slurm.shared / f"{name}-{os.urandom(3).hex()}", slurm.env)
    (run.folder / "parts.yaml").write_text(RECIPE.format(root=videos), encoding="utf-8")
    return run


def _folder(stages: dict[str, dict[str, Any]], name: str) -> Path:
    return Path(stages[name]["folder"])


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _attempts(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "attempts").glob("s*r*"))


def test_an_index_in_four_parts_two_of_them_hit_equals_the_index_of_one_job(
    slurm: PrivateSlurm, videos: Path
) -> None:
    run, alone = (_command_line(slurm, videos, name) for name in ("divided", "alone"))
    run("submit", "parts.yaml")
    stages = run.status()
    jobs = [stages[name]["job_id"] for name in PARTS]
    (array,) = {job.partition("_")[0] for job in jobs}
    assert jobs == [f"{array}_{number}" for number in range(4)]
    requeued, killed = (_folder(stages, PARTS[n]) for n in (1, 3))
    for folder in (killed, requeued):  # a process that has ended cannot be killed any more
        start = folder / "attempts" / "s001r000" / "start.json"
        _until(start.is_file)
        if folder is killed:
            os.kill(json.loads(start.read_text())["pid"], signal.SIGKILL)
        else:
            slurm.run("scontrol", "requeue", jobs[1])
    alone("submit", "parts.yaml", "cluster.executor=local", "data.home.index.shards=1")
    run("status", "--watch")
    stages = run.status()
    assert {stage["status"] for stage in stages.values()} == {"succeeded"}
    assert [_attempts(_folder(stages, name)) for name in PARTS] == [
        ["s001r000"],
        ["s001r000", "s001r001"],
        ["s001r000"],
        ["s001r000", "s001r001"],
    ]
    whole, single = _folder(stages, "scan"), alone.stage_dir("index")
    assert whole.name == single.name
    for name in ("index.parquet", "excluded.csv"):
        assert (whole / "outputs" / name).read_bytes() == (single / "outputs" / name).read_bytes()
    assert "restart 1" not in run("logs", f"latest:{PARTS[0]}")
    assert "attempt s001r001" in run("logs", f"latest:{PARTS[3]}")
    text = run("status")
    assert f"scan/part-*  succeeded  {array}_0..{array}_3  6" in text
    assert "4 parts: 4 succeeded" in text


def test_three_submits_at_once_make_one_job_of_each_part(slurm: PrivateSlurm, videos: Path) -> None:
    run = _command_line(slurm, videos, "race")
    words = ("submit", "parts.yaml", "+cluster.resources.extra.begin=now+1hour")
    processes = [run.start(*words) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, "\n".join(outputs)
    jobs = {stage["job_id"] for stage in run.status().values()}
    assert len(jobs) == len(list(run.store.glob("stages/*/submission-1.json"))) == 5
    assert not list(run.store.glob("stages/*/submission-2*.json"))
    run("cancel", "latest")
    slurm.wait_for(lambda: not slurm.live(), 30)


def test_one_cancelled_part_is_resumed_alone_and_the_whole_waits_for_old_and_new(
    slurm: PrivateSlurm, videos: Path
) -> None:
    run = _command_line(slurm, videos, "resumed")
    run("submit", "parts.yaml", "+cluster.resources.extra.begin=now+1hour")
    before = run.status()
    run("cancel", f"latest:{PARTS[1]}")
    stages = run.status()
    assert [stages[name]["status"] for name in PARTS] == [
        "waiting",
        "cancelled",
        "waiting",
        "waiting",
    ]
    assert stages["scan"]["status"] == "cancelled"
    run("resume", "latest")
    stages = run.status()
    new = stages[PARTS[1]]["job_id"]
    kept = [before[PARTS[n]]["job_id"] for n in (0, 2, 3)]
    assert new not in [stage["job_id"] for stage in before.values()]
    shown = slurm.job(stages["scan"]["job_id"])["Dependency"]
    waited_for = {one.partition("(")[0].removeprefix("afterok:") for one in shown.split(",")}
    assert waited_for == {*kept, new}
    run("cancel", "latest")
    assert "index_part" not in run("plan", "parts.yaml", "data.home.index.shards=1")
    slurm.wait_for(lambda: not slurm.live(), 30)
