"""Several ranks, every ZeRO stage: stopped at every kind of place, and on other numbers of ranks.

Equality is that of the final checkpoint's files, bit by bit: weights, optimizer, random states,
buffers and running metrics of every rank are in there.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster import fsio
from recipes.engine import checkpoint
from tests.recipes import engine_resume_worker
from tests.recipes.engine_worker import run_jobs

STEPS = 5
# 20 videos in batches of 8 are two steps an epoch.
PLACES = {"inside an epoch": 1, "at the end of an epoch": 2, "after the last step": STEPS}
CASES = {
    "zero0-adam": (0, "adam"),
    "zero1-adamw": (1, "adamw"),
    "zero2-sgd": (2, "sgd"),
    "zero3-adam": (3, "adam"),
}
# With what is kept in the host's memory.
OFFLOADED = {
    "zero1-adamw-offload-optimizer": (1, "adamw", "optimizer"),
    "zero3-adam-offload-all": (3, "adam", "all"),
}
ALONE = [*product((4, 2, 1), CASES), *product((2,), OFFLOADED)]
# Ranks and the step to stop at; the same training goes on, and sees the same micro-batches.
JOURNEY = ((4, 1), (2, 2), (1, 3), (4, None))
# By name: the ZeRO stage of each leg, the optimizer, and the case it is compared with.
JOURNEYS = {
    **{case: ((stage,) * 4, optimizer, case) for case, (stage, optimizer) in CASES.items()},
    "zero1-2-3-0-adam": ((1, 2, 3, 0), "adam", "zero0-adam"),
    "zero3-1-0-2-adam": ((3, 1, 0, 2), "adam", "zero0-adam"),
}


class Legs(NamedTuple):
    """Trainings in one process group, by name."""

    world_size: int
    legs: dict[str, dict[str, Any]]


def leg(
    folder: Path,
    stage: int,
    optimizer: str,
    offload: str = "none",
    *,
    stop_at: int | None,
    **saving: Any,
) -> dict[str, Any]:
    config = {
        "max_steps": STEPS,
        "batch_size": 8,
        "micro_batch": 2,
        "log_every": 2,
        "zero_stage": stage,
        "offload": offload,
        "optimizer": {"name": optimizer, "lr": 0.01, "warmup_steps": 2},
        "checkpoint": {"minutes": None, **saving},
    }
    return {"folder": str(folder), "stop_at": stop_at, "config": config}


def plan(folder: Path) -> dict[str, Legs]:
    groups = {f"ranks-{n}": Legs(n, {}) for n, _ in ALONE}
    for ranks, case in ALONE:
        group = groups[f"ranks-{ranks}"]
        # The unbroken one saves in the background all the time.
        end = f"{ranks}-{case}"
        how = {**CASES, **OFFLOADED}[case]
        whole = leg(folder / f"whole-{end}", *how, stop_at=None, steps=1)
        group.legs[f"whole {case}"] = whole
        for place, step in [*PLACES.items(), ("to the end", None)]:
            group.legs[f"{place} {case}"] = leg(folder / f"broken-{end}", *how, stop_at=step)
    for number, (ranks, stop_at) in enumerate(JOURNEY):
        legs = {
            name: leg(folder / f"journey-{name}", stages[number], optimizer, stop_at=stop_at)
            for name, (stages, optimizer, _) in JOURNEYS.items()
        }
        legs["spans ranks"] = {
            **leg(folder / "spans-ranks", 1, "adam", stop_at=stop_at),
            "spans_ranks": True,
        }
        groups[f"journey-{number}"] = Legs(ranks, legs)
    return groups


class Seen(NamedTuple):
    """Where all was trained, and what each rank of each group tells of each leg."""

    folder: Path
    told: dict[str, list[dict[str, dict[str, Any]]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Train everything with one launch of four ranks."""
    folder = tmp_path_factory.mktemp("matrix")
    groups = plan(folder)
    jobs = [
        {
            "folder": str(folder),
            "name": name,
            "world_size": group.world_size,
            "legs": list(group.legs.values()),
        }
        for name, group in groups.items()
    ]
    codes = run_jobs(folder, jobs, worker=engine_resume_worker.__file__)
    assert codes == [[0] * group.world_size for group in groups.values()]
    told = {}
    for name, group in groups.items():
        files = [folder / f"{name}-{rank}.json" for rank in range(group.world_size)]
        told[name] = [dict(zip(group.legs, read_list(file), strict=True)) for file in files]
    return Seen(folder, told)


def read_list(path: Path) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(path.read_text())
    return told


def final(folder: Path) -> dict[str, Any]:
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    assert newest.step == STEPS
    files: dict[str, Any] = newest.description["files"]
    return files


def losses(folder: Path) -> list[float]:
    lines = [line for _, line in fsio.read_json_lines(folder / "metrics.jsonl")]
    return [line["metrics"]["train/loss"] for line in lines]


@pytest.mark.parametrize(("ranks", "case"), ALONE)
def test_stopped_at_every_kind_of_place_it_ends_bit_equal_to_the_unbroken_training(
    seen, ranks, case
):
    for told in seen.told[f"ranks-{ranks}"]:
        assert told[f"whole {case}"]["ended"] == "done"
        assert [told[f"{place} {case}"]["ended"] for place in PLACES] == ["stopped"] * 3
        end = told[f"to the end {case}"]
        assert end == {"ended": "done", "used": []}, "the last step is not repeated"
    whole, broken = (seen.folder / f"{kind}-{ranks}-{case}" for kind in ("whole", "broken"))
    assert final(broken) == final(whole)
    assert len(final(whole)) == ranks


@pytest.mark.parametrize("name", JOURNEYS)
def test_four_ranks_then_two_then_one_then_four_see_the_same_batches_and_losses(seen, name):
    used = []
    for number, (ranks, stop_at) in enumerate(JOURNEY):
        told = [told[name] for told in seen.told[f"journey-{number}"]]
        assert [one["ended"] for one in told] == ["stopped" if stop_at else "done"] * ranks
        used += [rows for turn in zip(*(one["used"] for one in told), strict=True) for rows in turn]
    case = JOURNEYS[name][2]
    alone = seen.told["ranks-1"][0][f"whole {case}"]["used"]
    assert used == alone
    for ranks in [ranks for ranks, other in ALONE if other == case]:
        whole = losses(seen.folder / f"whole-{ranks}-{case}")
        assert losses(seen.folder / f"journey-{name}") == pytest.approx(whole, rel=1e-4)


def test_a_loss_that_depends_on_the_number_of_ranks_refuses_another_one_in_one_line(seen):
    (four, two, one, again) = (
        [told["spans ranks"] for told in seen.told[f"journey-{number}"]] for number in range(4)
    )
    assert {told["ended"] for told in four} == {"stopped"}
    for ranks, told in ((2, two), (1, one)):
        message = (
            "ConfigurationError: step 1 was saved by 4 ranks and the loss depends on their number: "
            f"it cannot be continued by {ranks}. Ask for 4 ranks again"
        )
        assert told == [{"ended": message, "used": []}] * ranks
    assert {told["ended"] for told in again} == {"done"}
