"""The retrieval stage and its configuration, on real files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from recipes.contract import Artifact, ConfigurationError, InputError
from recipes.data.table import load_table
from recipes.evaluation.recall import nearest
from recipes.stages.retrieval.config import RECALL_AT, RetrievalConfig
from recipes.stages.retrieval.run import run
from tests.recipes.evaluation_support import BUILT, CLIP, context, copies, encoder_file, synthetic

DATA = {"format": "synthetic"}
COLOR: dict[str, Any] = {"encoder": "mean_color", "clip": CLIP.model_dump()}
QUICK: dict[str, Any] = {"windows": 1, "workers": 0}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return synthetic(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory, drawn: Artifact) -> Artifact:
    return copies(tmp_path_factory.mktemp("copies"), drawn, 12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return encoder_file(tmp_path_factory.mktemp("encoder"))


def test_a_gallery_of_the_queries_gives_full_recall(
    tmp_path: Path, same: Artifact, trained: Artifact
) -> None:
    ctx = context(tmp_path, {"data": same, "encoder": trained})
    result = run(ctx, RetrievalConfig(data=DATA, **QUICK))
    assert result.metrics["R@1"] == 1.0
    assert result.metrics["frozen"] == 1.0
    with (tmp_path / "outputs" / "neighbours.csv").open() as stream:
        first = [line for line in csv.DictReader(stream) if line["rank"] == "1"]
    assert len(first) == 12
    for line in first:
        assert line["query"].removeprefix("test-") == line["neighbour"].removeprefix("train-")


def test_mean_colours_find_the_same_videos_too(tmp_path: Path, same: Artifact) -> None:
    result = run(context(tmp_path, {"data": same}), RetrievalConfig(data=DATA, **COLOR, **QUICK))
    assert result.metrics["R@1"] == 1.0
    assert result.summary["method"] == "mean_color"
    assert result.summary["backbone"] is None
    assert "euclidean" in result.summary["note"]
    assert "frozen" not in result.metrics


def test_mean_colours_are_those_of_the_pixels_and_neighbours_euclidean(
    tmp_path: Path, drawn: Artifact
) -> None:
    config = RetrievalConfig(data=DATA, windows=2, workers=0, **COLOR)
    result = run(context(tmp_path, {"data": drawn}), config)
    stored = load_file(tmp_path / "outputs" / "features.safetensors")
    gallery, queries = stored["gallery.features"].numpy(), stored["query.features"].numpy()
    assert gallery.shape == (16, 3)
    assert queries.min() > 0.2
    assert queries.max() < 0.8
    closest = np.square(queries[:, None] - gallery[None]).sum(2).argmin(1)
    right = stored["gallery.labels"].numpy()[closest] == stored["query.labels"].numpy()
    assert right.mean() == pytest.approx(result.metrics["R@1"])


def test_recall_follows_from_the_stored_features(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    ctx = context(tmp_path, {"data": drawn, "encoder": trained})
    result = run(ctx, RetrievalConfig(data=DATA, **QUICK))
    stored = load_file(tmp_path / "outputs" / "features.safetensors")
    rows = nearest(stored["query.features"], stored["gallery.features"], 10)
    hits = stored["gallery.labels"][rows] == stored["query.labels"][:, None]
    for k in (1, 5, 10):
        assert result.metrics[f"R@{k}"] == pytest.approx(float(hits[:, :k].any(1).double().mean()))
    assert result.metrics["R@1"] <= result.metrics["R@5"] <= result.metrics["R@10"]
    assert result.metrics["chance"] == pytest.approx(0.25)
    assert result.metrics["chance_R@10"] > 0.9


def test_cut_offs_above_the_gallery_are_left_out_by_default(
    tmp_path: Path, drawn: Artifact
) -> None:
    result = run(context(tmp_path, {"data": drawn}), RetrievalConfig(data=DATA, **COLOR, **QUICK))
    names = {name for name in result.metrics if name.startswith("R@") and name[2:].isdigit()}
    assert names == {"R@1", "R@5", "R@10"}


def test_a_cut_off_above_the_gallery_that_was_asked_for_is_an_error(
    tmp_path: Path, drawn: Artifact
) -> None:
    config = RetrievalConfig(data=DATA, recall_at=(1, 17), **COLOR, **QUICK)
    with pytest.raises(InputError, match="gallery of 16 training videos"):
        run(context(tmp_path, {"data": drawn}), config)


def test_the_picture_has_a_row_for_each_query(
    tmp_path: Path, drawn: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes.stages.retrieval import run as module

    shown: list[Any] = []
    save = module.save_neighbours
    monkeypatch.setattr(
        module,
        "save_neighbours",
        lambda path, rows, title: shown.append(rows) or save(path, rows, title),
    )
    config = RetrievalConfig(data=DATA, num_queries=3, num_neighbours=4, **COLOR, **QUICK)
    run(context(tmp_path, {"data": drawn}), config)
    (rows,) = shown
    assert [len(row) for row in rows] == [5, 5, 5]
    table = load_table(drawn, "test")
    assert [row[0].caption for row in rows] == [
        table.classes[table.labels[number]] for number in (0, 4, 9)
    ]
    for row in rows:
        assert row[0].right is None
        assert [tile.right for tile in row[1:]] == [
            tile.caption == row[0].caption for tile in row[1:]
        ]
        assert all(tile.frame.shape == (96, 96, 3) for tile in row)
    assert (tmp_path / "outputs" / "figures" / "neighbours.png").stat().st_size > 10_000


def test_no_picture_is_drawn_where_none_is_wanted(tmp_path: Path, drawn: Artifact) -> None:
    config = RetrievalConfig(data=DATA, num_queries=0, **COLOR, **QUICK)
    run(context(tmp_path, {"data": drawn}), config)
    assert not (tmp_path / "outputs" / "figures").exists()


def test_random_weights_are_a_baseline_with_calibrated_statistics(
    tmp_path: Path, drawn: Artifact
) -> None:
    config = RetrievalConfig(data=DATA, **BUILT, **QUICK)
    result = run(context(tmp_path, {"data": drawn}), config)
    assert result.summary["method"] == "random"
    assert "calibrated" in result.summary["note"]
    features = load_file(tmp_path / "outputs" / "features.safetensors")["query.features"]
    assert bool(torch.isfinite(features).all())


def test_an_encoder_beside_mean_colour_is_refused(
    tmp_path: Path, drawn: Artifact, trained: Artifact
) -> None:
    ctx = context(tmp_path, {"data": drawn, "encoder": trained})
    with pytest.raises(ConfigurationError, match="uses no input"):
        run(ctx, RetrievalConfig(data=DATA, **COLOR, **QUICK))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"encoder": "mean_color"}, "needs clip"),
        ({**COLOR, "backbone": {"name": "r2d3d_tiny"}}, "does not build a network"),
        ({**COLOR, "calibrate_batchnorm": True}, "would change what"),
        ({"recall_at": [5, 1]}, "must rise"),
        ({"recall_at": [1, 1]}, "must rise"),
        ({"recall_at": [0]}, "greater than or equal to 1"),
        ({"recall_at": []}, "at least 1 item"),
    ],
)
def test_what_a_retrieval_cannot_be_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RetrievalConfig.model_validate({"data": DATA, **config})


def test_the_default_cut_offs_are_those_of_the_literature() -> None:
    assert (
        RetrievalConfig.model_validate({"data": DATA}).recall_at == RECALL_AT == (1, 5, 10, 20, 50)
    )
