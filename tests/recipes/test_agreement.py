"""What all ranks say of a step, at once or one step late, and what the loop makes of it then."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from recipes.engine import checkpoint, loop
from recipes.engine.agreement import Agreement, Verdict
from recipes.engine.resume import Saver
from tests.recipes.test_engine_loop import Regression, config, go

CPU = torch.device("cpu")


def late(device: torch.device = CPU) -> Agreement:
    """As on CUDA; only the way over the device is missing."""
    agreement = Agreement(device)
    agreement.lag = 1
    return agreement


def said(agreement: Agreement, step: int, *, now: bool = False, **flags: bool) -> Verdict:
    flags = {"stop": False, "due": False, "pending": False, **flags}
    broken = torch.tensor(step == 3)
    return agreement.reach(step, broken=broken, rows=[torch.tensor([step])], now=now, **flags)


def test_without_a_lag_a_step_is_answered_at_once():
    agreement = Agreement(CPU)
    assert said(agreement, 1, due=True).due
    assert not said(agreement, 2).due
    assert said(agreement, 3).broken


def test_an_answer_that_is_late_comes_once_and_with_the_next_where_that_is_needed_now():
    agreement = late()
    assert said(agreement, 1, stop=True) == Verdict()
    second = said(agreement, 2, due=True)
    assert (second.step, second.stop, second.due) == (1, True, False)
    third = said(agreement, 3, now=True)
    assert (third.step, third.due, third.broken) == (3, True, True)
    assert [rows.tolist() for rows in third.rows] == [[3]]
    assert said(agreement, 4) == Verdict()


def test_a_save_that_is_due_is_taken_once_though_the_answer_is_a_step_late(tmp_path, monkeypatch):
    saves: list[int] = []
    real = Saver.save

    def save(self: Saver, step: int, *args: Any, **options: Any) -> None:
        saves.append(step)
        real(self, step, *args, **options)

    monkeypatch.setattr(loop, "Agreement", late)
    monkeypatch.setattr(Saver, "save", save)
    settings = config(max_steps=30, checkpoint={"minutes": 1e-9, "keep": 40})
    go(tmp_path, Regression(), settings)
    assert saves[0] == 2, "asked for in step 1"
    assert all(after > before + 1 for before, after in pairwise(saves[:-1])), saves
    assert checkpoint.steps(tmp_path / "checkpoints") == saves


@pytest.mark.parametrize("broken", [1, 2])
def test_the_step_named_is_the_first_that_was_broken(broken):
    verdicts = [Verdict(step=n, broken=n >= broken) for n in (1, 2)]
    assert verdicts[0].or_else(verdicts[1]).step == broken
