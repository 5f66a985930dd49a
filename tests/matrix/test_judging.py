"""What the matrix calls lost, and what it calls done twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster import fsio
from tests.matrix.cells import PAIRWISE
from tests.matrix.pipeline import Verdict, lost_seconds, steps_repeated
from tests.matrix.run import as_line, page, read_lines

FIRST, SECOND = "s001r000", "s001r001"


def points(attempt: str, steps: range, begin: float) -> list[dict[str, Any]]:
    """One step a second."""
    return [
        {"attempt": attempt, "step": step, "time": begin + i, "metrics": {}}
        for i, step in enumerate(steps)
    ]


def test_what_is_lost_lies_between_the_last_step_that_was_kept_and_the_next_one() -> None:
    # Steps 9 and 10 were reached at 108 and 109 s and done again; 8 was kept at 107 s.
    both = points(FIRST, range(1, 11), 100) + points(SECOND, range(9, 25), 130)
    assert lost_seconds(both, [FIRST, SECOND]) == 130 - 107


def test_a_first_attempt_that_kept_nothing_is_lost_from_its_first_step_on() -> None:
    both = points(FIRST, range(1, 4), 100) + points(SECOND, range(1, 25), 130)
    assert lost_seconds(both, [FIRST, SECOND]) == 30


def test_going_on_behind_the_last_commit_is_right_and_before_it_is_not(tmp_path: Path) -> None:
    folder = fsio.make_dir(tmp_path / "attempts" / FIRST)
    fsio.write_json(folder / "exit.json", {"step": 8})
    for begin, wrong in ((9, 0), (11, 0), (8, 1), (1, 1), (12, 1)):
        both = points(FIRST, range(1, 11), 100) + points(SECOND, range(begin, 25), 130)
        assert len(steps_repeated(tmp_path, both, [FIRST, SECOND])) == wrong, begin


def test_a_cell_that_ran_again_counts_as_it_ended_last(tmp_path: Path) -> None:
    cell = PAIRWISE[0]
    results = tmp_path / "results.jsonl"
    for problems in (["a job is left"], []):
        verdict = Verdict(
            cell=cell, problems=problems, attempts=2, steps=[10, 24], lost_seconds=17.4, seconds=60
        )
        with results.open("a", encoding="utf-8") as stream:
            stream.write(as_line(verdict, "abc") + "\n")
        told = page(read_lines(results))
        assert ("**failed**" in told) == bool(problems)
    assert "1 of 64 cells, 1 ok" in told and "| 17 |" in told
