"""A person opens the MLflow UI and finds the pipeline."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cluster import fsio
from tests.tracking.browse import Walk, find_chromium, walk_through
from tests.tracking.fabricate import T0, finish_all, make_pipeline
from tracking.server import Server
from tracking.sync import sync_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium"),
]


def _picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), (30, 120, 200)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, mlflow_server: Server) -> Walk:
    """A walk through the pages of a finished pipeline."""
    pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
    store = tmp_path_factory.mktemp("browser") / "store"
    pipeline = make_pipeline(store, "clockwork", mlflow_server.url)
    finish_all(pipeline, _picture())
    stage = pipeline.stages["pretrain"]
    stage.submission(1, {**pipeline.tracking("pretrain"), "registered_model": "dpc-clockwork"})
    for step in range(30):
        values = {"system/cpu_utilization_percentage": 40.0 + step % 7}
        line = {"step": step, "time": T0 + 10 * step, "attempt": "s001r000", "metrics": values}
        fsio.append_json_line(stage.path / "system.jsonl", line)
    assert sync_run(store, pipeline.run_id).problems == ()
    pictures = store.parent / "pictures"
    return walk_through(mlflow_server.url, store, pipeline.run_id, pictures, "dpc-clockwork")


def test_the_run_table_of_the_experiment_shows_one_pipeline_that_unfolds_into_its_stages(
    walk: Walk,
) -> None:
    assert "recipe-clockwork" in walk.texts["runs"]
    folded, unfolded = walk.texts["runs"].splitlines(), walk.texts["nested"].splitlines()
    assert "clockwork" in folded
    assert "probe" not in folded
    assert {"clockwork", "data-ucf101", "pretrain", "probe", "report"} <= set(unfolded)


def test_the_views_of_an_experiment_show_what_people_look_for(walk: Walk) -> None:
    stages = walk.texts["stages"].splitlines()
    for column in ("orchestrate.kind", "orchestrate.state", "orchestrate.attempts"):
        assert column in stages
    assert {"pretrain", "probe", "succeeded"} <= set(stages)
    assert "4 matching runs" in walk.texts["stages"]  # without the pipeline itself
    results = walk.texts["results"].splitlines()
    assert {"probe", "linear probe", "top1"} <= set(results)
    assert "pretrain" not in results


def test_system_metrics_have_a_page_of_their_own(walk: Walk) -> None:
    assert "cpu_utilization_percentage" in walk.texts["system-pretrain"]
    assert "train/loss" not in walk.texts["system-pretrain"]


def test_the_registered_model_shows_its_version_and_alias(walk: Walk) -> None:
    assert "Version 1" in walk.texts["registered"]
    assert "newest" in walk.texts["registered"]


def test_the_parent_page_shows_status_stages_and_results(walk: Walk) -> None:
    text = walk.texts["parent"]
    assert "Finished" in text
    for shown in (
        "takes from",
        "data-ucf101, pretrain",
        "top1 0.54",
        "probe/top1",
        "probe/R_at_10",
    ):
        assert shown in text


def test_the_graph_of_the_pipeline_is_drawn(walk: Walk) -> None:
    assert "pipeline.svg" in walk.texts["pipeline"]
    assert _colours(walk.pictures["pipeline"]) >= {(0xDC, 0xF5, 0xE3)}  # a box that succeeded


def test_a_stage_page_leads_to_its_parent_and_its_upstream(walk: Walk) -> None:
    page = walk.texts["probe"]
    assert "Parent run" in page
    assert "pretrain.encoder" in page
    assert "ucf101" in page
    assert "optimizer.lr" in page
    upstream = walk.texts["upstream-probe"].splitlines()
    assert "pretrain" in upstream
    assert "pretrain-encoder" in walk.texts["upstream-probe"]


def test_curves_and_figures_are_shown(walk: Walk) -> None:
    assert "pretrain (train/loss)" in walk.texts["curves-pretrain"]
    assert "figures/probe.png" in walk.texts["figures-probe"]
    assert _colours(walk.pictures["figures-probe"]) >= {(30, 120, 200)}


def test_the_model_page_shows_where_an_encoder_came_from_and_what_was_measured_with_it(
    walk: Walk,
) -> None:
    lines = walk.texts["model-pretrain"].splitlines()
    assert "pretrain-encoder" in lines
    for shown in ("Source run", "Ready", "top1", "R_at_10", "probe", "0.54"):
        assert shown in lines


def _colours(picture: Path) -> set[tuple[int, ...]]:
    from PIL import Image

    with Image.open(picture) as image:
        counted = image.convert("RGB").getcolors(maxcolors=1 << 24) or []
    return {colour for _, colour in counted if isinstance(colour, tuple)}
