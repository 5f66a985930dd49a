"""What a stage knows of the recipe, run and code it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster import fsio
from orchestrator.origin import origin_of
from orchestrator.store import StageDir, Store
from recipes.contract import Origin

SPEC = {"key": "k" * 64}


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    found = Store(tmp_path).stage_dir("pretrain", "k" * 64)
    found.path.mkdir(parents=True)
    return found


def claim(stage: StageDir, code: str | None) -> None:
    details = {"run_id": "tiny-1", "stage": "pretrain", "code": code}
    assert stage.claim(1, "job", details)


def record(store: Path, **code: Any) -> None:
    folder = Store(store).run_dir("tiny-1")
    folder.mkdir(parents=True)
    fsio.write_json(folder / "run.json", {"recipe": "tiny", "code": code})


def test_it_is_read_from_the_claim_and_the_run(stage: StageDir, tmp_path: Path) -> None:
    claim(stage, "/store/code/abc123")
    record(tmp_path, path="/store/code/abc123", version="9c1e4a7+dirty")
    assert origin_of(stage, 1, SPEC) == Origin(
        recipe="tiny",
        run="tiny-1",
        stage="pretrain",
        key="k" * 64,
        code="abc123",
        version="9c1e4a7+dirty",
    )


def test_the_version_of_other_code_is_not_taken(stage: StageDir, tmp_path: Path) -> None:
    claim(stage, "/store/code/abc123")
    record(tmp_path, path="/store/code/def456", version="later")
    found = origin_of(stage, 1, SPEC)
    assert (found.code, found.version) == ("abc123", "")


def test_what_was_not_recorded_is_empty(stage: StageDir) -> None:
    assert origin_of(stage, 1, SPEC) == Origin(key="k" * 64)
    claim(stage, None)
    assert origin_of(stage, 1, SPEC) == Origin(key="k" * 64, run="tiny-1", stage="pretrain")
