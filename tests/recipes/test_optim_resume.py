"""LARS and LAMB in a training on two ranks that is stopped, against one that is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.engine import checkpoint
from tests.recipes.engine_worker import run_jobs

NAMES = ("lars", "lamb")
STOPPED = 75


def job(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    config = {
        "max_steps": 6,
        "batch_size": 8,
        "micro_batch": 2,
        "optimizer": {
            "name": name,
            "lr": 0.1,
            "lr_batch": 4,
            "decay_norm_and_bias": False,
            "schedule": "restarts",
            "restart_epochs": 1,
            "warmup_steps": 1,
        },
        "checkpoint": {"minutes": None},
    }
    return {"folder": str(folder), "world_size": 2, "config": config, **changes}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `alone-NAME` and `stopped-NAME`, of which the latter went on after step 4."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = []
    for name in NAMES:
        jobs += [
            job(folder / f"alone-{name}", name),
            job(folder / f"stopped-{name}", name, stop_at=4),
            job(folder / f"stopped-{name}", name, restart=1),
        ]
    assert run_jobs(folder, jobs) == [[0, 0], [STOPPED, STOPPED], [0, 0]] * len(NAMES)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_training_ends_bit_equal_to_one_left_alone(places, name):
    found = [
        checkpoint.newest(places / f"{kind}-{name}" / "checkpoints")
        for kind in ("alone", "stopped")
    ]
    assert [one.step for one in found if one is not None] == [6, 6]
    files = [one.description["files"] for one in found if one is not None]
    assert files[0] == files[1]
    assert checkpoint.steps(places / f"stopped-{name}" / "checkpoints") == [4, 6]
