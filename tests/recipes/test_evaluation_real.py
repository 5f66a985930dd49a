"""The evaluating stages on real clips, where they are there."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from recipes.contract import Artifact
from recipes.data.config import CsvData
from recipes.stages.probe.config import ProbeConfig
from recipes.stages.probe.run import run as run_probe
from recipes.stages.retrieval.config import RetrievalConfig
from recipes.stages.retrieval.run import run as run_retrieval
from tests.recipes.evaluation_support import context, index

CLIPS = Path(
    os.environ.get("ORCHESTRATE_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")
)
PER_CLASS = {"train": 6, "test": 3}
CLIP = {"blocks": 2, "frames": 5, "stride": 3, "size": 64}


@pytest.fixture(scope="module")
def tennis(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Seven strokes, six training and three test clips each, no scene on both sides."""
    source = CLIPS / "tennis7.csv"
    if not source.exists():
        pytest.skip(f"the real clips are not at {CLIPS} (set ORCHESTRATE_TEST_DATA)")
    with source.open() as stream:
        rows = list(csv.DictReader(stream))
    chosen, counts = [], dict[tuple[str, str], int]()
    for row in rows:
        key = row["label"], row["split"]
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= PER_CLASS[row["split"]]:
            chosen.append(row)
    folder = tmp_path_factory.mktemp("tennis")
    with (folder / "list.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return index(folder, CsvData(name="tennis7", file=str(folder / "list.csv"), root=str(CLIPS)))


def _data(tennis: Artifact) -> dict[str, Any]:
    return {"format": "csv", "name": "tennis7", "file": "list.csv", "root": tennis.meta["root"]}


def test_neighbours_of_real_clips(tmp_path: Path, tennis: Artifact) -> None:
    config = RetrievalConfig(
        data=_data(tennis), encoder="mean_color", clip=CLIP, windows=2, workers=0, num_queries=2
    )
    result = run_retrieval(context(tmp_path, {"data": tennis}), config)
    assert result.metrics["num_test"] == 21.0
    assert result.metrics["num_gallery"] == 42.0
    assert result.metrics["chance"] == pytest.approx(1 / 7)
    assert {"R@1", "R@5", "R@10", "R@20"} <= set(result.metrics)
    assert "R@50" not in result.metrics
    assert (tmp_path / "outputs" / "figures" / "neighbours.png").stat().st_size > 50_000


def test_a_probe_of_random_weights_on_real_clips(tmp_path: Path, tennis: Artifact) -> None:
    config = ProbeConfig(
        data=_data(tennis),
        encoder="random",
        backbone={"name": "r2d3d_tiny"},
        clip=CLIP,
        windows=1,
        workers=0,
    )
    result = run_probe(context(tmp_path, {"data": tennis}), config)
    assert result.metrics["frozen"] == 1.0
    assert result.metrics["chance"] == pytest.approx(1 / 7)
    # 42 videos in 64 dimensions: the classifier fits them, whatever the test videos say.
    assert result.metrics["train_top1"] > 0.5
    assert "top5" in result.metrics
