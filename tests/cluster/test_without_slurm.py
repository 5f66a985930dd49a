"""On a machine without SLURM: scripts are shown, questions are refused with a remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.contract import JobHandle, JobRequest, Resources, SchedulerError
from cluster.doctor import has_gpus
from cluster.slurm import SlurmExecutor
from tests.cluster.bench import REPOSITORY

HEAVY = ("torch", "numpy", "deepspeed", "mlflow", "pandas", "decord", "submitit", "pydantic")


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


def request() -> JobRequest:
    return JobRequest(
        name="a",
        argv=("/bin/true",),
        epilogue=("/bin/true",),
        resources=Resources(),
        log_dir=Path("/store/logs"),
    )


def test_scripts_can_be_shown() -> None:
    assert "srun" in SlurmExecutor().render(request())


def test_questions_are_refused_with_a_remedy() -> None:
    handle = JobHandle(executor="slurm", cluster="c", job_id="1", submitted_at=0.0)
    executor = SlurmExecutor()
    assert executor.query([]) == {}
    for ask in (lambda: executor.query([handle]), lambda: executor.find("a")):
        with pytest.raises(SchedulerError, match=r"is not installed here.*cluster=local"):
            ask()


def test_submitting_says_what_is_missing(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(SchedulerError, match="is not installed here"):
        SlurmExecutor().submit(replace(request(), log_dir=tmp_path / "logs"))


def test_a_recipe_for_slurm_is_taken_at_its_word_about_gpus() -> None:
    assert has_gpus("slurm")
    assert has_gpus("local") is any(Path("/dev").glob("nvidia[0-9]*"))


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    modules = sorted(
        p.stem for p in (REPOSITORY / "cluster").glob("*.py") if p.stem != "submission"
    )
    code = (
        f"import sys, importlib; [importlib.import_module('cluster.' + m) for m in {modules}];"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
