"""Job arrays: one script that looks up its task, ids grouped as SLURM writes them, refusals."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.array import grouped, parameters, ranges
from cluster.batch import RequestError
from cluster.batch import parameters as job_parameters
from cluster.contract import ArrayRequest, JobHandle, JobRequest, Resources
from cluster.slurm import SlurmExecutor
from tests.cluster.test_batch import CANARY, GOLDEN, PAYLOADS, plain_shell, request
from tests.slurm_cluster import PrivateSlurm

__all__ = ["plain_shell"]


def task(number: int, *target: str, **changes: object) -> JobRequest:
    words = target or (f"/store/stages/index_part-{number:012}", "--submission", "1")
    base = request(
        name="index-k400.parts-0123456789ab-s1",
        argv=("/env/bin/python", "-P", "-m", "orchestrator.entry"),
        epilogue=("/env/bin/python", "-P", "-m", "cluster.epilogue"),
    )
    return replace(base, target=words, task=number, log_dir=Path(f"/store/{number}"), **changes)  # type: ignore[arg-type]


def array(*tasks: JobRequest) -> ArrayRequest:
    return ArrayRequest(folder=Path("/store/arrays/a"), tasks=tasks)


def handle(job_id: str, size: int = 0) -> JobHandle:
    return JobHandle(
        executor="slurm", cluster="c", job_id=job_id, submitted_at=0.0, array_size=size
    )


FOUR = array(*(task(n, resources=Resources(parts_at_once=2)) for n in (0, 1, 2, 7)))


def test_the_script_of_an_array_is_as_agreed(plain_shell: None) -> None:
    """To renew after a wanted change: write what `render` gives into tests/cluster/golden."""
    text = SlurmExecutor().render(FOUR)
    assert text == (GOLDEN / "array.sh").read_text(encoding="utf-8")


@pytest.mark.slurm
def test_slurm_accepts_the_script(slurm: PrivateSlurm, plain_shell: None) -> None:
    done = slurm.sbatch_test_only(SlurmExecutor().render(FOUR))
    assert done.returncode == 0, done.stderr


def _run(text: str, number: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The script in bash with srun as a function, as SLURM would run the task of that number."""
    script = 'srun() { printf "%s\\n" "$@" > arguments; }\n' + text
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "SLURM_ARRAY_TASK_ID": number}
    return subprocess.run(
        ["/bin/bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )


def _runnable(*targets: tuple[str, ...]) -> str:
    tasks = [
        replace(task(n, *words), argv=("/bin/true",), epilogue=("/bin/echo", "epilogue"), env={})
        for n, words in enumerate(targets)
    ]
    return SlurmExecutor().render(array(*tasks))


@pytest.mark.parametrize("number", [0, 1])
def test_each_task_runs_its_own_target_and_ends_with_its_own_epilogue(
    tmp_path: Path, number: int
) -> None:
    text = _runnable(("/stage a", "--submission", "1"), ("/stage b", "--submission", "4"))
    done = _run(text, str(number), tmp_path)
    assert done.stderr == ""
    own = [["/stage a", "--submission", "1"], ["/stage b", "--submission", "4"]][number]
    assert (tmp_path / "arguments").read_text().splitlines()[-4:] == ["/bin/true", *own]
    assert done.stdout == f"epilogue {' '.join(own)} --exit-code 0\n"


def test_a_task_the_script_does_not_know_ends_at_once(tmp_path: Path) -> None:
    done = _run(_runnable(("/stage",)), "3", tmp_path)
    assert (done.returncode, done.stderr) == (65, "orchestrate: no task 3 in this script\n")
    assert not (tmp_path / "arguments").exists()


def test_no_hostile_target_is_executed(tmp_path: Path) -> None:
    refused = 0
    for number, payload in enumerate(PAYLOADS):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            text = _runnable((payload,), ("other",))
        except RequestError:
            refused += 1
            continue
        done = _run(text, "0", folder)
        assert done.stderr == ""
        assert [path.name for path in folder.iterdir()] == ["arguments"], payload
        assert (folder / "arguments").read_text().splitlines()[-1] == payload
    assert 8 <= refused < len(PAYLOADS)
    assert not list(tmp_path.rglob(CANARY))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "at least one job"),
        ([task(0), task(0)], "two have the same number"),
        ([task(0), task(1, resources=Resources(hours=2))], "is not the job the others are"),
        ([task(0), task(1, env={"A": "1"})], "is not the job the others are"),
        ([replace(task(0), task=None)], "a number from 0"),
        ([task(-1)], "a number from 0"),
    ],
)
def test_an_array_that_is_none_is_refused(tasks: list[JobRequest], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parameters(array(*tasks), {})


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0], "0"), ([0, 1, 2, 3], "0-3"), ([7, 3, 0, 1], "0-1,3,7"), ([5, 6, 8, 9], "5-6,8-9")],
)
def test_numbers_are_written_as_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_the_tasks_of_an_array_are_named_together() -> None:
    ids = ["7_0", "9", "7_1", "7_3", "8_2"]
    assert grouped(ids) == ["7_[0-1,3]", "9", "8_[2]"]


@pytest.mark.parametrize(
    ("handles", "ids"),
    [
        ([handle("7_0", 2), handle("7_1", 2)], "7"),
        ([handle("7_0", 3), handle("7_1", 3)], "7_0:7_1"),
        ([handle("7_0"), handle("7_1")], "7_0:7_1"),
        ([handle("3"), handle("7_1", 2), handle("8_0", 1), handle("7_0", 2)], "3:7:8"),
        ([handle("7_1", 4), handle("9_0", 2), handle("9_3", 2), handle("4")], "7_1:9:4"),
    ],
)
def test_a_dependent_waits_for_a_whole_array_or_for_the_tasks_that_count(
    handles: list[JobHandle], ids: str
) -> None:
    values = job_parameters(request(after=tuple(handles)), {})
    assert values["dependency"] == f"afterok:{ids}"
