"""Tests of matrix cells, references, edges, order and cycles."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.graph import Fault, Graph, Node, connect
from orchestrator.references import MAX_CELLS, GraphFault, cells, parse_reference
from recipes.contract import InputSlot

ENCODER = InputSlot(("encoder",), required=False)
RESULTS = InputSlot(("result",), required=False, many=True)


def _node(name: str, *refs: str, results: tuple[str, ...] = (), **changes: Any) -> Node:
    inputs = {"encoder": refs} if refs else {}
    if results:
        inputs["results"] = results
    fields: dict[str, Any] = {
        "name": name,
        "inputs": inputs,
        "slots": {"encoder": ENCODER, "results": RESULTS},
        "outputs": {"encoder": "encoder", "table": "dataset"},
    }
    return Node(**{**fields, **changes})


def _connected(*nodes: Node) -> Graph:
    graph, faults = connect(nodes)
    assert faults == []
    return graph


def _fault(*nodes: Node) -> Fault:
    _, (fault,) = connect(nodes)
    return fault


def test_cells_are_named_by_their_values_in_the_order_of_the_lists() -> None:
    found = cells("finetune", {"target": ["ucf101", "hmdb51"], "split": [1, 2]})
    assert list(found) == [
        "finetune/ucf101-1",
        "finetune/ucf101-2",
        "finetune/hmdb51-1",
        "finetune/hmdb51-2",
    ]
    assert found["finetune/hmdb51-1"] == {"target": "hmdb51", "split": 1}


def test_a_stage_without_a_matrix_is_its_own_cell() -> None:
    assert cells("pretrain", None) == {"pretrain": {}}


def test_numbers_and_booleans_make_names_too() -> None:
    assert list(cells("a", {"lr": [0.1, 1e-3], "on": [True]})) == ["a/0.1-true", "a/0.001-true"]


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ({"a": ["x/y"]}, "is none"),
        ({"a": [""]}, "is none"),
        ({"a": [-1]}, "is none"),
        ({"a": ["x" * 65]}, "is none"),
        ({"a": [1, 1]}, "two cells"),
        ({"a": ["1-2", "1"], "b": ["3", "2-3"]}, "two cells"),
        ({"a": list(range(40)), "b": list(range(40))}, f"at most {MAX_CELLS}"),
    ],
)
def test_a_matrix_that_makes_no_proper_cells_is_refused(matrix: Any, words: str) -> None:
    with pytest.raises(GraphFault, match=words):
        cells("stage", matrix)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("pretrain.encoder", {"stage": "pretrain", "artifact": "encoder"}),
        ("pre.train.encoder", {"stage": "pre.train", "artifact": "encoder"}),
        ("sweep/0.1.encoder", {"stage": "sweep/0.1", "artifact": "encoder"}),
        ("finetune/*.result", {"stage": "finetune/*", "artifact": "result"}),
        (
            "run:k400-1a2b3c4d:pretrain.encoder",
            {"run": "k400-1a2b3c4d", "stage": "pretrain", "artifact": "encoder"},
        ),
        ("file:/models/encoder.safetensors", {"file": "/models/encoder.safetensors"}),
    ],
)
def test_a_reference_is_read_from_its_text(text: str, fields: dict[str, str]) -> None:
    found = parse_reference(text)
    for name in ("stage", "run", "file", "artifact"):
        assert getattr(found, name) == fields.get(name, "")


@pytest.mark.parametrize(
    "text",
    [
        "pretrain",
        ".encoder",
        "pretrain.",
        "run:pretrain.encoder",
        "run:a b:pretrain.encoder",
        "file:encoder.safetensors",
        "file:/a/../../etc/passwd",
        "file:/a\nb.safetensors",
        "models:dpc@best",
        "models:/dpc",
        "models:/dpc@",
        "models:/a/b@best",
        "models:/dpc@best/file",
    ],
)
def test_a_text_that_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(GraphFault):
        parse_reference(text)


def test_an_input_makes_an_edge_and_the_upstream_comes_first() -> None:
    graph = _connected(_node("probe", "pretrain.encoder"), _node("pretrain"))
    assert graph.order == ("pretrain", "probe")
    assert graph.upstream("probe") == ("pretrain",)
    (edge,) = graph.edges["probe"]["encoder"]
    assert (edge.upstream, edge.artifact, edge.kind) == ("pretrain", "encoder", "encoder")


def test_stages_without_edges_between_them_keep_the_order_of_the_recipe() -> None:
    assert _connected(_node("c"), _node("a"), _node("b", "c.encoder")).order == ("c", "a", "b")


def test_a_pattern_takes_all_cells_but_never_the_stage_itself() -> None:
    graph = _connected(
        _node("tune/a"),
        _node("tune/b"),
        _node("report", results=("tune/*.result", "*.result")),
        _node("other"),
    )
    found = [edge.reference.text for edge in graph.edges["report"]["results"]]
    assert found == ["tune/a.result", "tune/b.result", "other.result"]


def test_an_artifact_named_twice_is_taken_once() -> None:
    graph = _connected(_node("a/1"), _node("report", results=("a/*.result", "a/1.result")))
    assert len(graph.edges["report"]["results"]) == 1


def test_every_stage_leaves_a_result() -> None:
    graph = _connected(_node("a", outputs={}), _node("report", results=("a.result",)))
    assert graph.edges["report"]["results"][0].kind == "result"


def test_what_lies_outside_the_recipe_makes_an_edge_without_upstream() -> None:
    graph = _connected(
        _node("probe", "run:k400-1a2b:pretrain.encoder"),
        _node("other", "file:/models/encoder.safetensors"),
    )
    assert graph.upstream("probe") == graph.upstream("other") == ()
    assert graph.edges["other"]["encoder"][0].kind == "encoder"


@pytest.mark.parametrize(
    ("nodes", "slot", "words", "hint"),
    [
        (
            [_node("probe", "pretrian.encoder"), _node("pretrain")],
            "encoder",
            "name of a",
            "pretrain",
        ),
        ([_node("a"), _node("probe", "a.encodr")], "encoder", "leaves", "`encoder`"),
        ([_node("a"), _node("probe", "a.table")], "encoder", "is of kind dataset", "`a.encoder`"),
        ([_node("a"), _node("probe", "a.result")], "encoder", "is of kind result", "`a.encoder`"),
        ([_node("a/1"), _node("probe", "a.encoder")], "encoder", "one cell of", "`a/1`"),
        ([_node("probe", "b/*.encoder")], "encoder", "matches none", "stages: probe"),
        ([_node("a/1"), _node("a/2"), _node("p", "a/*.encoder")], "encoder", "not 2", ""),
        ([_node("probe", "file:/x/table.csv")], "encoder", "ends in .safetensors", ""),
        ([_node("probe", results=("file:/x/result.json",))], "results", "cannot be", ""),
    ],
)
def test_a_wrong_input_is_named_with_stage_slot_and_remedy(
    nodes: list[Node], slot: str, words: str, hint: str
) -> None:
    fault = _fault(*nodes)
    assert fault.slot == slot
    assert words in fault.expected
    assert hint in fault.hint


def test_an_unknown_slot_is_refused_with_the_nearest_one() -> None:
    fault = _fault(_node("a"), _node("probe", inputs={"encodr": ("a.encoder",)}))
    assert "`encoder`" in fault.hint


def test_a_required_input_that_is_missing_is_named() -> None:
    fault = _fault(_node("probe", slots={"data": InputSlot(("dataset",))}))
    assert fault.expected == "an input `data`: an artifact of kind dataset"


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_cycle_is_named_with_all_its_stages(length: int) -> None:
    names = [f"s{n}" for n in range(length)]
    nodes = [_node(name, f"{names[n - 1]}.encoder") for n, name in enumerate(names)]
    outside = _node("outside", f"{names[0]}.encoder")
    fault = _fault(outside, *nodes)
    assert fault.stage in names
    chain = str(fault.value).split(" needs ")
    assert sorted(chain[:-1]) == sorted(names)
    assert chain[0] == chain[-1]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 25), seed=st.integers(0, 10_000))
def test_every_upstream_comes_before_its_consumers_in_any_graph(count: int, seed: int) -> None:
    rng = random.Random(seed)
    names = [f"s{n}" for n in range(count)]
    nodes = []
    for position, name in enumerate(names):
        chosen = rng.sample(names[:position], rng.randint(0, min(position, 4)))
        nodes.append(_node(name, results=tuple(f"{each}.result" for each in chosen)))
    rng.shuffle(nodes)
    graph = _connected(*nodes)
    assert sorted(graph.order) == sorted(names)
    for name in names:
        for upstream in graph.upstream(name):
            assert graph.order.index(upstream) < graph.order.index(name)
