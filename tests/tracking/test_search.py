"""The searches of the documentation, word for word, find what they say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mlflow
import pytest

from tests.tracking.fabricate import finish_all, make_pipeline
from tracking.sync import sync_run

DOCS = Path(__file__).parents[2] / "docs" / "tracking.md"
DEMO = {"data-ucf101", "pretrain", "probe", "report"}
FOUND = {
    "all pipelines": {"demo-1a2b3c4d", "other"},
    "the stages of one run": DEMO,
    "good probes": {"probe"},
    "what failed, and why": {"broken"},
    "what was preempted": {"broken"},
    "trained with one learning rate": {"pretrain", "broken"},
    "linear probes on UCF101": {"probe"},
    "everything that read a dataset": {"data-ucf101", "pretrain", "probe"},
}


def _searches() -> dict[str, str]:
    table = DOCS.read_text(encoding="utf-8").partition("| Question | Search |")[2]
    rows = re.findall(r"^\| ([^|]+) \| ``(.+)`` \|$", table.partition("\n\n")[0], re.MULTILINE)
    return dict(rows)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> str:
    """A finished pipeline, and one whose only stage was preempted and then failed."""
    store = tmp_path_factory.mktemp("search") / "store"
    store.mkdir(mode=0o700)
    shutil.copy(empty_database, store / "mlflow.db")
    uri = f"sqlite:///{store}/mlflow.db"
    demo = make_pipeline(store, "demo-1a2b3c4d", uri)
    finish_all(demo)
    other = make_pipeline(store, "other", uri, ["pretrain"])
    stage = other.stages["pretrain"]
    stage.submission(1, {**other.tracking("pretrain"), "stage": "broken"})
    stage.start("s001r000")
    stage.end("s001r000", "preempted", 5, 75)
    stage.start("s001r001")
    stage.end("s001r001", "failed", 9, 72, cause="diverged", message="NaN")
    for run in (demo, other):
        assert sync_run(store, run.run_id).problems == ()
    return uri


def test_every_search_of_the_documentation_is_tested() -> None:
    assert _searches().keys() == FOUND.keys()


@pytest.mark.parametrize("question", FOUND)
def test_a_search_of_the_documentation_finds_what_it_says(
    question: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    query = _searches()[question]
    found = mlflow.search_runs(search_all_experiments=True, filter_string=query)
    assert set(found["tags.mlflow.runName"]) == FOUND[question]
    listed = mlflow.search_runs(
        search_all_experiments=True, filter_string=query, output_format="list"
    )
    assert len(listed) == len(found) == len(FOUND[question])
