"""The graph of a pipeline, for a terminal, a picture and the parent's page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cluster import fsio
from tests.tracking.fabricate import finish_all, make_pipeline
from tracking.lineage import (
    Node,
    as_markdown,
    as_svg,
    figure,
    headline,
    key_metrics,
    read_pipeline,
)
from tracking.pipeline import pipeline_status
from tracking.stagefiles import State


def _node(name: str, state: str, *upstream: str, attempts: int = 1) -> Node:
    return Node(
        name=name,
        kind="probe",
        key="k",
        folder=Path(),
        state=State(name=state),
        upstream=upstream,
        attempts=attempts if state not in ("waiting", "planned") else 0,
    )


def test_a_pipeline_is_read_from_its_plan_and_its_stages(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path, "r1", "http://127.0.0.1:1")
    finish_all(pipeline)
    nodes = read_pipeline(pipeline.run_dir, {"report": State(name="running")})
    assert [(node.name, node.upstream) for node in nodes] == [
        ("data-ucf101", ()),
        ("pretrain", ("data-ucf101",)),
        ("probe", ("data-ucf101", "pretrain")),
        ("report", ("probe",)),
    ]
    assert [node.state.name for node in nodes] == [*["succeeded"] * 3, "running"]
    assert nodes[2].metrics["top1"] == 0.54


def test_the_parts_of_a_stage_are_no_nodes_of_the_graph(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path, "r1", "http://127.0.0.1:1")
    plan = fsio.read_json(pipeline.run_dir / "plan.json")
    for entry in plan["stages"]:
        entry["part_of"] = "probe" if entry["name"] == "pretrain" else None
    fsio.write_json(pipeline.run_dir / "plan.json", plan)
    nodes = {node.name: node.upstream for node in read_pipeline(pipeline.run_dir)}
    assert nodes["probe"] == ("data-ucf101",) and "pretrain" not in nodes


def test_the_picture_has_a_box_for_each_stage_and_a_line_for_each_input() -> None:
    nodes = [
        _node("data", "succeeded"),
        _node('pretrain <&> "dpc" with a very long name', "failed", "data"),
        _node("probe", "waiting", "data", 'pretrain <&> "dpc" with a very long name'),
    ]
    root = ET.fromstring(as_svg(nodes))  # noqa: S314  (our own text)
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}path")) == 3
    boxes = root.findall(f"{name}g")
    assert len(boxes) == 3
    colours = {box[1].get("fill") for box in boxes}
    assert len(colours) == 3
    assert [box[3].text for box in boxes] == ["succeeded", "failed", "waiting"]
    size = (float(root.get("width", 0)), float(root.get("height", 0)))
    for box in boxes:
        x, y = float(box[1].get("x", -1)), float(box[1].get("y", -1))
        assert 0 <= x <= size[0] - 224
        assert 0 <= y <= size[1] - 58


def test_boxes_of_a_wide_pipeline_do_not_overlap() -> None:
    cells = [_node(f"finetune/{n}", "waiting", "pretrain") for n in range(12)]
    svg = as_svg([_node("pretrain", "running"), *cells])
    root = ET.fromstring(svg)  # noqa: S314  (our own text)
    places = [(box[1].get("x"), box[1].get("y")) for box in root if box.tag.endswith("}g")]
    assert len(set(places)) == 13


def test_the_table_keeps_hostile_text_in_its_cell() -> None:
    state = State(name="failed", reason="a | b\nc " + "x" * 500)
    node = Node(name="probe", kind="probe", key="k", folder=Path(), state=state)
    row = as_markdown([node], "http://127.0.0.1:1").splitlines()[2]
    assert "a \\| b c xxx" in row
    assert len(row) < 250


def test_numbers_are_short() -> None:
    assert [figure(one) for one in (13320.0, 0.123456, 1e-7, float("nan"))] == [
        "13320",
        "0.1235",
        "1e-07",
        "nan",
    ]
    assert headline({"loss": 1.5, "top1": 0.5, "a": 2}) == "top1 0.5"
    assert headline({}) == ""


def test_what_a_stage_was_run_for_comes_first_and_bookkeeping_is_left_out() -> None:
    metrics = {"chance": 0.25, "R@10": 0.8, "R@1_high": 0.4, "R@5": 0.7, "R@1": 0.3, "num_test": 9}
    assert list(key_metrics(metrics)) == ["R@1", "R@5", "R@10"]
    assert list(key_metrics({"b": 1, "a": 2})) == ["a", "b"]


def test_a_baseline_stands_beside_what_it_is_compared_with() -> None:
    nodes = [
        _node("data", "succeeded"),
        _node("pretrain", "succeeded", "data"),
        _node("probe_random", "succeeded", "data"),
        _node("probe", "succeeded", "data", "pretrain"),
        _node("report", "succeeded", "probe", "probe_random"),
    ]
    root = ET.fromstring(as_svg(nodes))  # noqa: S314  (our own text)
    places = {box[2].text: box[1].get("x") for box in root if box.tag.endswith("}g")}
    assert places["probe"] == places["probe_random"] != places["pretrain"]


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (("succeeded", "succeeded", "succeeded"), "FINISHED"),
        (("succeeded", "running", "waiting"), "RUNNING"),
        (("succeeded", "requeued", "waiting"), "RUNNING"),
        (("succeeded", "failed", "waiting"), "FAILED"),  # the last one will never start
        (("succeeded", "cancelled", "waiting"), "KILLED"),
        (("succeeded", "failed", "succeeded"), "FAILED"),
        (("planned", "planned", "planned"), "RUNNING"),
    ],
)
def test_a_pipeline_ends_when_nothing_of_it_can_go_on(
    states: tuple[str, str, str], status: str
) -> None:
    names = ("data", "pretrain", "probe")
    before: list[tuple[str, ...]] = [(), ("data",), ("pretrain",)]
    nodes = [
        _node(name, state, *upstream)
        for name, state, upstream in zip(names, states, before, strict=True)
    ]
    assert pipeline_status(nodes) == status


def test_a_failure_does_not_end_a_pipeline_whose_other_branch_still_runs() -> None:
    nodes = [
        _node("pretrain", "succeeded"),
        _node("probe", "failed", "pretrain"),
        _node("finetune", "running", "pretrain"),
    ]
    assert pipeline_status(nodes) == "RUNNING"
