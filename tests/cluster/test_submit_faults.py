"""Submitting on a real SLURM while it fails: killed, twenty at once, refused, without a controller.

The jobs wait for an hour that never comes, so nothing is computed; the last test runs two of them.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import fsio
from orchestrator.store import StageDir, Store
from tests.cluster.shims import NUM_JOBS, NUM_SBATCH, LoginShell
from tests.slurm_cluster import PrivateSlurm, missing_programs

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("submit_faults")]


@pytest.fixture(scope="module")
def forgetful() -> Iterator[PrivateSlurm]:
    """A cluster that forgets ended jobs after 2 seconds, and whose clients give up after 3."""
    if missing_programs():
        pytest.skip("a private SLURM is needed")
    with PrivateSlurm(min_job_age=2, message_timeout=3) as cluster:
        yield cluster


@pytest.fixture
def shell(forgetful: PrivateSlurm, request: pytest.FixtureRequest) -> Iterator[LoginShell]:
    name = re.sub(r"\W", "-", request.node.name)[:40]
    made = LoginShell(forgetful, forgetful.shared / f"{name}-{os.urandom(2).hex()}")
    yield made
    forgetful.heal()


def _stage(shell: LoginShell, name: str) -> StageDir:
    store = Store(shell.folder / "store")
    (run_id,) = store.run_ids()
    (entry,) = (one for one in store.read_plan(run_id)["stages"] if one["name"] == name)
    return store.stage_dir(entry["kind"], entry["key"])


def test_twenty_submits_at_once_make_one_set_of_jobs(shell: LoginShell) -> None:
    pids = [shell.start("submit", shell.recipe, log=f"out{n}") for n in range(20)]
    codes = [shell.wait(pid) for pid in pids]
    outputs = [(shell.folder / f"out{n}").read_text() for n in range(20)]
    assert codes == [0] * 20, outputs[next(n for n, code in enumerate(codes) if code)]
    assert len(shell.jobs()) == NUM_JOBS
    assert shell.sent()["sbatch"] == NUM_SBATCH
    # All of them tell the same jobs, whoever made them.
    jobs = {tuple(re.findall(r"^\S+ +(?:run|attach) +(\S+)", out, re.M)) for out in outputs}
    assert len(jobs) == 1


def test_a_submission_killed_after_any_sbatch_is_continued_and_nothing_is_doubled(
    shell: LoginShell,
) -> None:
    """Killed before it could write down the job that it had just made, each time further on."""
    sent = 0
    for accepted in range(1, NUM_SBATCH + 1):
        code, _ = shell.run("submit", shell.recipe, SHIM_KILL_AFTER=str(1))
        assert code == -signal.SIGKILL
        sent += shell.sent()["sbatch"]
        assert sent == accepted
    code, out = shell.run("submit", shell.recipe)
    assert (code, shell.sent()["sbatch"]) == (0, 0)
    assert "run " not in out.partition("\n")[2].partition("status:")[0]
    assert len(shell.jobs()) == len(set(shell.jobs())) == NUM_JOBS


@pytest.mark.parametrize("n", range(1, NUM_SBATCH + 1))
def test_a_submission_killed_after_the_nth_sbatch_is_completed_by_the_next(
    shell: LoginShell, n: int
) -> None:
    code, _ = shell.run("submit", shell.recipe, SHIM_KILL_AFTER=str(n))
    assert (code, shell.sent()["sbatch"]) == (-signal.SIGKILL, n)
    assert shell.run("submit", shell.recipe)[0] == 0
    assert shell.sent()["sbatch"] == NUM_SBATCH - n
    assert len(shell.jobs()) == len(set(shell.jobs())) == NUM_JOBS


def test_a_refused_job_takes_those_before_it_back(shell: LoginShell) -> None:
    recipe = Path(shell.recipe)
    text = recipe.read_text()
    bad = text + "    resources: {constraint: nosuchfeature}\n"  # of the probe, the last stage
    recipe.write_text(bad)
    code, out = shell.run("submit", shell.recipe)
    assert code == 3
    assert "error: stage probe: sbatch: exit code 1" in out
    assert "Invalid feature specification (resources.constraint is nosuchfeature)" in out
    assert "what had been submitted before it was taken back: index-home/part-000 (job" in out
    assert shell.jobs() == []
    assert shell.sent()["sbatch"] == NUM_SBATCH
    recipe.write_text(text)
    assert shell.run("submit", shell.recipe)[0] == 0
    assert len(shell.jobs()) == NUM_JOBS


def test_jobs_that_could_never_start_are_refused_before_anything_is_submitted(
    shell: LoginShell,
) -> None:
    over = [f"stages.probe.resources.{one}" for one in ("nodes=3", "cpus_per_task=9")]
    code, out = shell.run("submit", shell.recipe, *(f"+{one}" for one in over))
    assert code == 2
    assert "nothing was submitted" in out
    assert "probe: resources.nodes is 3; partition main has 2" in out
    assert shell.sent()["sbatch"] == 0


def test_a_controller_that_is_away_is_waited_for(
    shell: LoginShell, forgetful: PrivateSlurm
) -> None:
    """It hangs while the second job is submitted: that sbatch is not answered, and makes a job."""
    assert shell.run("plan", shell.recipe)[0] == 0
    pid = shell.start("submit", shell.recipe)
    log = shell.folder / "commands"
    deadline = time.monotonic() + 120
    while "sbatch" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    forgetful.signal_controller(signal.SIGSTOP)
    try:
        while "Ctrl-C is safe" not in (shell.folder / "out").read_text():
            assert time.monotonic() < deadline, (shell.folder / "out").read_text()
            time.sleep(0.1)
    finally:
        forgetful.signal_controller(signal.SIGCONT)
    assert shell.wait(pid) == 0, (shell.folder / "out").read_text()
    assert len(shell.jobs()) == len(set(shell.jobs())) == NUM_JOBS


def test_a_child_of_a_parent_that_failed_and_is_forgotten_refuses_in_one_line(
    shell: LoginShell, forgetful: PrivateSlurm
) -> None:
    """SLURM runs a job whose dependency it has forgotten; two ways to come to one by hand."""
    begin = "~cluster.resources.extra.begin"
    whole = "data.home.index.shards=1"
    code, out = shell.run("submit", shell.recipe, begin, whole)
    assert code == 0, out
    index = _stage(shell, "index-home")
    child = _stage(shell, "pretrain")
    submitted = index.submission(1)
    assert submitted is not None and submitted.handle is not None
    parent = submitted.handle.job_id
    forgetful.wait_for(lambda: not forgetful.live(), 120)
    forgetful.wait_for(lambda: not forgetful.job(parent), 120)
    (script,) = child.logs.glob("*_submission.sh")
    text = script.read_text()
    assert f"--dependency=afterok:{parent}" in text
    alone = script.with_name("alone.sh")
    alone.write_text(re.sub(r"(?m)^#SBATCH --dependency=.*\n", "", text))
    jobs = [forgetful.sbatch(str(one)) for one in (script, alone)]
    forgetful.wait_for(lambda: not forgetful.live() & set(jobs), 120)
    for job in jobs:
        log = (child.logs / f"{job}_0_log.out").read_text()
        (line,) = (one for one in log.splitlines() if "the upstream" in one)
        assert "is not a folder" in line or "failed:" in line
        assert f"`orchestrate why {shell_run(shell)}:index-home`" in line
    assert child.result() is None
    ended = fsio.read_json(sorted(child.attempts.iterdir())[-1] / "end.json")
    assert (ended["exit_code"], ended["cause"]) == (66, "input")


def shell_run(shell: LoginShell) -> str:
    (run_id,) = Store(shell.folder / "store").run_ids()
    return run_id
