"""`orchestrate lineage`: what a number came from and what a dataset went into."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster import fsio
from orchestrator.lineage_view import lineage_view
from orchestrator.view import emit
from tests.tracking.conftest import Invoke
from tests.tracking.fabricate import Pipeline, finish_all, make_pipeline, record_inputs
from tracking.ancestry import Ancestry, Item, Number, Taken, as_svg

DATASET = fsio.sha256_text("table")


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """A finished run whose results say what they read."""
    made = make_pipeline(tmp_path / "store", "demo", None)
    finish_all(made)
    record_inputs(made)
    return made


def _encoder(pipeline: Pipeline) -> Path:
    return pipeline.stages["pretrain"].path / "outputs" / "encoder.safetensors"


def test_a_row_of_a_table_leads_to_the_encoder_the_checkpoint_the_dataset_and_the_commit(
    pipeline: Pipeline, orchestrate: Invoke
) -> None:
    pipeline.stages["pretrain"].checkpoint(195)
    result = orchestrate("lineage", "demo:report", "--up")
    assert (result.exit_code, result.stderr) == (0, "")
    report, probe, row, data, encoder, again = result.stdout.splitlines()
    assert report.startswith("demo:report  report  code 0123abc")
    assert "results: demo:probe  probe  top1 0.54" in probe
    assert row.endswith("row: linear ucf101 1 dpc top1 0.54")
    assert f"dataset ucf101  code 0123abc  dataset {DATASET[:12]}" in data
    assert "encoder: demo:pretrain  pretrain  train/loss 0.05102  code 0123abc" in encoder
    assert f"encoder {fsio.sha256_file(_encoder(pipeline))[:12]}" in encoder
    assert f"checkpoint {pipeline.stages['pretrain'].path}/checkpoints/step_000000195" in encoder
    assert again.endswith("(see above)")


def test_a_dataset_leads_to_every_number_and_to_what_must_be_run_again(
    pipeline: Pipeline, orchestrate: Invoke
) -> None:
    lines = orchestrate("lineage", DATASET[:32], "--down").stdout.splitlines()
    names = [line.strip("│├└─ ").split("  ")[0] for line in lines[:-1]]
    assert names == [
        "demo:data-ucf101",
        "data: demo:pretrain",
        "encoder: demo:probe",
        "results: demo:report",
        "row: linear ucf101 1 dpc top1 0.54",
        "data: demo:probe",
    ]
    order = "demo:data-ucf101, demo:pretrain, demo:probe, demo:report"
    assert lines[-1] == f"if it was wrong, run again 4 stages of 1 run, in order: {order}"


def test_a_thing_can_be_named_in_many_ways(
    pipeline: Pipeline, orchestrate: Invoke, tmp_path: Path
) -> None:
    stage = pipeline.stages["pretrain"]
    copy = tmp_path / "copy.bin"
    copy.write_bytes(_encoder(pipeline).read_bytes())
    digest = fsio.sha256_file(copy)
    ways = ["demo:pretrain", "demo:pre", stage.key, stage.key[:12], stage.path.name]
    ways += [str(stage.path), str(_encoder(pipeline)), str(copy), digest, digest[:8]]
    for way in ways:
        value = json.loads(orchestrate("lineage", way, "--json").stdout)
        assert value["found"] == [stage.path.name], way


def test_what_is_not_there_is_named_with_what_is_near(
    pipeline: Pipeline, orchestrate: Invoke, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.bin"
    stranger.write_bytes(b"unknown")
    for way, words in {
        "demo:pretrian": "did you mean `pretrain`?",
        "deno": "did you mean `demo`?",
        "encoder.safetensors": "no file or folder, no stage, and no key or digest",
        "00": "6 to 64 hexadecimal digits",
        "models:/dpc@best": "mlflow.db is not there",
        "0" * 12: "is no stage key and no digest in this store",
        str(stranger): "was neither made nor taken in this store",
    }.items():
        result = orchestrate("lineage", way)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
    assert not list(tmp_path.rglob("*.db"))  # a question writes nothing


def test_a_stage_that_two_runs_share_counts_for_both(
    pipeline: Pipeline, orchestrate: Invoke
) -> None:
    again = fsio.make_dir(pipeline.store / "runs" / "later")
    for name in ("plan.json", "run.json"):
        record = fsio.read_json(pipeline.run_dir / name)
        fsio.write_json(again / name, {**record, "created_at": 1.9e9})
    assert "4 stages of 2 runs" in orchestrate("lineage", "demo:data", "--down").stdout
    value = json.loads(orchestrate("lineage", "later:probe", "--json").stdout)
    (probe,) = [item for item in value["items"] if item["kind"] == "probe"]
    assert probe["names"] == ["demo:probe", "later:probe"]


def test_what_read_the_dataset_before_it_was_made_anew_is_told_from_what_read_it_after(
    pipeline: Pipeline, orchestrate: Invoke
) -> None:
    """The index was made once more and has another digest under the same key."""
    index, probe = pipeline.stages["data-ucf101"], pipeline.stages["probe"]
    new = fsio.sha256_text("another table")
    result = fsio.read_json(index.path / "result.json")
    result["artifacts"]["dataset"]["sha256"] = new
    fsio.write_json(index.path / "result.json", result)
    result = fsio.read_json(probe.path / "result.json")
    result["inputs"]["data"][0]["sha256"] = new
    fsio.write_json(probe.path / "result.json", result)
    up = orchestrate("lineage", "demo:pretrain", "--up").stdout
    assert f"dataset {DATASET[:12]} (has been made anew since)" in up

    def takers(digest: str) -> list[str]:
        value = json.loads(orchestrate("lineage", digest, "--json").stdout)
        return [item["name"] for item in value["items"] if item["id"] in value["descendants"]]

    assert takers(new) == ["demo:probe", "demo:report"]
    assert takers(DATASET) == ["demo:pretrain", "demo:probe", "demo:report"]


def test_a_file_from_outside_is_an_ancestor_and_can_be_asked_for(
    pipeline: Pipeline, orchestrate: Invoke, tmp_path: Path
) -> None:
    weights = tmp_path / "imagenet.safetensors"
    weights.write_bytes(b"weights from elsewhere")
    spec = fsio.read_json(pipeline.stages["pretrain"].path / "stage.json")
    item = {"file": str(weights), "sha256": fsio.sha256_file(weights)}
    spec["inputs"]["init"] = [{**item, "ref": str(weights), "artifact": "w", "kind": "encoder"}]
    fsio.write_json(pipeline.stages["pretrain"].path / "stage.json", spec)
    assert f"init: {weights}  file" in orchestrate("lineage", "demo:pretrain", "--up").stdout
    down = orchestrate("lineage", str(weights), "--down").stdout
    assert down.splitlines()[0].startswith(str(weights))
    assert down.rstrip().endswith("in order: demo:pretrain, demo:probe, demo:report")


def test_the_json_has_exactly_the_documented_fields(
    pipeline: Pipeline, orchestrate: Invoke
) -> None:
    value = json.loads(orchestrate("lineage", "demo:report", "--json").stdout)
    lists = {"found", "ancestors", "descendants", "redo", "items"}
    assert set(value) == {"schema_version", "asked", *lists}
    names = {"id", "name", "kind", "state", "key", "folder", "names", "code", "about"}
    assert set(value["items"][0]) == names | {"takes", "makes", "metrics", "numbers"}
    report = value["items"][-1]
    assert report["numbers"] == [{"stage": "probe", "text": "linear ucf101 1 dpc top1 0.54"}]
    assert set(report["takes"][0]) == {"slot", "source", "artifact", "sha256", "outdated"}
    assert [item["kind"] for item in value["items"]] == ["index", "pretrain", "probe", "report"]


def _svg(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314  (our own picture)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_and_the_picture_stand_by_themselves(
    pipeline: Pipeline, orchestrate: Invoke, tmp_path: Path
) -> None:
    page, picture = tmp_path / "lineage.html", tmp_path / "lineage.svg"
    result = orchestrate("lineage", "demo", "--html", str(page), "--svg", str(picture))
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [f"wrote {page}", f"wrote {picture}"]
    boxes = [one.text for one in _svg(picture.read_text()).iter() if one.text]
    assert {"data-ucf101", "pretrain", "probe", "report"} <= set(boxes)
    parser = _Text()
    parser.feed(page.read_text())
    assert DATASET[:12] in parser.text
    assert "linear ucf101 1 dpc top1 0.54" in parser.text
    assert "http" not in page.read_text().replace("http://www.w3.org/2000/svg", "")


def test_boxes_of_two_runs_have_names_of_their_own() -> None:
    items = [
        Item(id="a", name="r1:probe", kind="probe", state="succeeded"),
        Item(id="b", name="r2:probe", kind="probe", state="failed", takes=(_taken("a"),)),
        Item(id="c", name="r2:<b>", kind="report", state="failed", takes=(_taken("b"),)),
    ]
    picture = as_svg(Ancestry(items).around(["b"], ["up", "down"]))
    texts = [one.text for one in _svg(picture).iter() if one.text]
    assert {"r1:probe", "r2:probe", "<b>"} <= set(texts)


def _taken(source: str) -> Taken:
    return Taken(slot="encoder", source=source, artifact="encoder")


def test_every_row_of_a_report_is_shown_under_the_stage_that_it_is_of() -> None:
    numbers = (Number(stage="probe", text="linear 0.5"), Number(stage="run:r0:knn", text="R@1 0.4"))
    items = [
        Item(id="e", name="r1:pretrain", kind="pretrain", state="succeeded"),
        *(
            Item(
                id=id, name=name, names=(name,), kind="probe", state="failed", takes=(_taken("e"),)
            )
            for id, name in (("p", "r1:probe"), ("k", "r0:knn"))
        ),
        Item(
            id="r",
            name="r1:report",
            kind="report",
            state="succeeded",
            takes=(_taken("p"), _taken("k")),
            numbers=numbers,
        ),
    ]
    stream = StringIO()
    emit(lineage_view(Ancestry(items), ["e"], ["down"]), stream)
    lines = [line.strip("│├└─ ") for line in stream.getvalue().splitlines()]
    assert [line.split("  ")[0] for line in lines[1:-1]] == [
        *("encoder: r1:probe", "encoder: r1:report", "row: linear 0.5"),
        *("encoder: r0:knn", "encoder: r1:report", "row: R@1 0.4"),
    ]


def test_a_registered_model_leads_to_the_stage_that_made_it(
    tmp_path: Path, sqlite_uri: str, orchestrate: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    made = make_pipeline(tmp_path / "store", "demo", sqlite_uri)
    finish_all(made)
    assert orchestrate("sync").exit_code == 0
    client = MlflowClient(sqlite_uri)
    stage = made.stages["pretrain"]
    model_id = stage.tracking()["models"]["encoder"]
    client.create_registered_model("dpc")
    client.create_model_version("dpc", f"models:/{model_id}", model_id=model_id)
    client.set_registered_model_alias("dpc", "best", "1")
    for way in ("models:/dpc@best", "models:/dpc/1", f"models:/{model_id}"):
        value = json.loads(orchestrate("lineage", way, "--json").stdout)
        assert value["found"] == [stage.path.name], way
    result = orchestrate("lineage", "models:/dpc@worst")
    assert result.exit_code == 2
    assert "worst" in result.stderr
