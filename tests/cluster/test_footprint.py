"""How many commands each verb sends to the scheduler; the numbers of docs/footprint.md."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.shims import NUM_SBATCH, LoginShell
from tests.slurm_cluster import PrivateSlurm, missing_programs

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("submit_faults")]

TABLE = Path(__file__).parents[2] / "docs" / "footprint.md"
RUNS = 20


@pytest.fixture(scope="module")
def shell() -> Iterator[LoginShell]:
    if missing_programs():
        pytest.skip("a private SLURM is needed")
    with PrivateSlurm() as cluster:
        yield LoginShell(cluster, cluster.shared / "footprint")


@pytest.fixture(scope="module")
def sent(shell: LoginShell) -> dict[str, Counter[str]]:
    """What each verb sent, in the order in which a person gives them."""
    found: dict[str, Counter[str]] = {}

    def run(row: str, *words: str) -> None:
        code, out = shell.run(*words)
        assert code == 0, out
        found[row] = shell.sent()

    run("validate", "validate", shell.recipe)
    run("plan", "plan", shell.recipe)
    run("submit", "submit", shell.recipe)
    run("submit again", "submit", shell.recipe)
    run("status", "status")
    run("why", "why", "latest:probe")
    run("logs", "logs", "latest:probe")
    run("resume of nothing", "resume")
    run("sync", "sync")
    _many_runs(shell)
    run("list, of 20 runs", "list")
    run("cancel", "cancel", "latest", "--yes")
    run("resume", "resume")
    run("cancel", "cancel", "latest", "--yes")
    run("retry", "retry", "latest:probe")
    run("doctor", "doctor")
    return found


def _many_runs(shell: LoginShell) -> None:
    """Nineteen more views of the same stages."""
    (run,) = (shell.folder / "store" / "runs").iterdir()
    for number in range(1, RUNS):
        copy = run.with_name(f"{run.name}-{number}")
        shutil.copytree(run, copy)
        for file in ("run.json", "plan.json"):
            text = (copy / file).read_text().replace(f'"{run.name}"', f'"{copy.name}"')
            (copy / file).write_text(text)


def test_no_verb_sends_more_than_the_table_says(sent: dict[str, Counter[str]]) -> None:
    stated = _stated()
    wrong = {row: dict(seen) for row, seen in sent.items() if not seen <= stated[row]}
    assert not wrong, f"measured, and less in {TABLE}"


def test_a_submission_is_one_sbatch_a_job_and_a_constant_number_of_questions(
    sent: dict[str, Counter[str]],
) -> None:
    seen = sent["submit"]
    assert seen["sbatch"] == NUM_SBATCH
    assert seen.total() - NUM_SBATCH <= 8


def test_nobody_asks_about_one_job_at_a_time(sent: dict[str, Counter[str]]) -> None:
    for row in ("status", "why", "list, of 20 runs"):
        assert sent[row]["squeue"] == 1
    assert all(seen["sacct"] == 0 for seen in sent.values())


def _stated() -> dict[str, Counter[str]]:
    """The table of the page, n being the calls of sbatch that this recipe takes."""
    rows = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3:
            counts = re.findall(r"(\d+|n) ([a-z]+)", cells[1])
            found = {cmd: NUM_SBATCH if n == "n" else int(n) for n, cmd in counts}
            rows[cells[0]] = Counter(found)
    return rows
