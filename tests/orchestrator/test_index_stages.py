"""Index and preparation of data sets: added, shared, wired, kept out of keys they do not touch."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.plan import Plan, make_plan
from tests.orchestrator.recipes_for_tests import faults_of, load_text, nothing_exists

RECIPE = """\
name: small
data:
  home: {format: folder, name: home, root: /videos, prepare: {gop: 12}}
stages:
  pretrain:
    kind: pretrain
    data: ${data.home}
    method: {name: dpc, pred_steps: 2, augment: none}
    backbone: {name: r2d3d_tiny}
    clip: {blocks: 4, frames: 5, stride: 1, size: 32}
    max_steps: 10
    batch_size: 16
    micro_batch: 4
  probe:
    kind: probe
    data: ${data.home}
    inputs: {encoder: pretrain.encoder}
"""
INDEX = "index-home"
PREPARE = "prepare-home"


def _plan(folder: Path, *overrides: str, more: str = "") -> Plan:
    recipe = load_text(folder, RECIPE + more, overrides)
    return make_plan(recipe, nothing_exists, has_gpus=False)


def _names(plan: Plan) -> list[str]:
    return [stage.name for stage in plan.stages]


def _takes(plan: Plan, name: str, slot: str = "data") -> str:
    (ref,) = plan.stage(name).inputs[slot]
    return ref.ref


def test_prepared_data_are_indexed_then_prepared_then_consumed(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    assert _names(plan) == [INDEX, PREPARE, "pretrain", "probe"]
    assert _takes(plan, PREPARE, "dataset") == "index-home.dataset"
    assert _takes(plan, "pretrain") == _takes(plan, "probe") == "prepare-home.dataset"
    index = plan.stage(INDEX).config
    assert index["data"]["prepare"] is None
    assert index["mendable_ok"] is True


def test_data_that_are_not_prepared_are_consumed_from_their_index(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "data.home.prepare=null")
    assert _names(plan) == [INDEX, "pretrain", "probe"]
    assert _takes(plan, "pretrain") == "index-home.dataset"
    assert plan.stage(INDEX).config["mendable_ok"] is False


def test_another_preparation_never_indexes_anew(tmp_path: Path) -> None:
    one = _plan(tmp_path)
    other = _plan(tmp_path, "+data.home.prepare={short_side: 128, crf: 20}")
    assert one.stage(INDEX).key == other.stage(INDEX).key
    assert one.stage(PREPARE).key != other.stage(PREPARE).key
    assert one.stage("pretrain").key != other.stage("pretrain").key


def test_two_preparations_of_one_data_set_share_its_index(tmp_path: Path) -> None:
    small = "+stages.probe.data={format: folder, name: home, root: /videos, prepare: {gop: 1}}"
    plan = _plan(tmp_path, "~stages.probe.data", small)
    assert _names(plan) == [INDEX, PREPARE, "prepare-home-2", "pretrain", "probe"]
    assert _takes(plan, "prepare-home-2", "dataset") == "index-home.dataset"
    assert _takes(plan, "probe") == "prepare-home-2.dataset"


def test_the_same_data_prepared_and_not_have_an_index_each(tmp_path: Path) -> None:
    """An index that lets mendable videos pass does not serve who does not mend them."""
    raw = "+stages.probe.data={format: folder, name: home, root: /videos, prepare: null}"
    plan = _plan(tmp_path, "~stages.probe.data", raw)
    assert _takes(plan, "pretrain") == "prepare-home.dataset"
    assert _takes(plan, "probe") == "index-home-2.dataset"
    assert plan.stage("index-home-2").config["mendable_ok"] is False


def test_written_out_stages_are_used_instead_of_new_ones(tmp_path: Path) -> None:
    more = """\
  scan: {kind: index, data: '${data.home}', workers: 3}
  encode: {kind: prepare, data: '${data.home}', workers: 3}
"""
    plan = _plan(tmp_path, more=more)
    assert _names(plan) == ["scan", "encode", "pretrain", "probe"]
    assert _takes(plan, "encode", "dataset") == "scan.dataset"
    added = _plan(tmp_path)
    assert plan.stage("scan").key == added.stage(INDEX).key
    assert plan.stage("encode").key == added.stage(PREPARE).key
    assert plan.stage("probe").key == added.stage("probe").key


def test_a_written_out_index_may_refuse_videos_that_could_be_mended(tmp_path: Path) -> None:
    more = "  scan: {kind: index, data: '${data.home}', mendable_ok: false}\n"
    plan = _plan(tmp_path, more=more)
    assert plan.stage("scan").config["mendable_ok"] is False
    assert _takes(plan, PREPARE, "dataset") == "scan.dataset"


def test_an_input_that_is_written_out_is_kept(tmp_path: Path) -> None:
    more = "  scan: {kind: index, data: '${data.home}'}\n"
    plan = _plan(tmp_path, "+stages.probe.inputs.data=scan.dataset", more=more)
    assert _takes(plan, "probe") == "scan.dataset"
    assert _takes(plan, "pretrain") == "prepare-home.dataset"


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("+data.home.index={mode: demux}", {INDEX, PREPARE, "pretrain", "probe"}),
        ("+data.home.decoder=pyav", {INDEX, PREPARE, "pretrain", "probe"}),
        ("+data.home.prepare={crf: 20}", {PREPARE, "pretrain", "probe"}),
        ("+data.home.index={shards: 3}", set()),
        ("+data.home.prepare={shards: 3}", set()),
    ],
)
def test_a_change_of_data_changes_the_keys_it_has_to(
    tmp_path: Path, override: str, changed: set[str]
) -> None:
    names = {INDEX, PREPARE, "pretrain", "probe"}
    before, after = _plan(tmp_path), _plan(tmp_path, override)
    assert {n for n in names if before.stage(n).key != after.stage(n).key} == changed
    assert (before.run_id == after.run_id) == (not changed)


def test_a_consumer_of_one_table_has_one_key_whatever_its_data_say_of_it(tmp_path: Path) -> None:
    """Index and preparation enter by the input; a consumer's own copy of them does not count."""
    scan = "  scan: {kind: index, data: '${data.home}'}\n"
    take = "+stages.probe.inputs.data=scan.dataset"
    raw = "+stages.probe.data={format: folder, name: home, root: /videos, prepare: null}"
    one = _plan(tmp_path, take, more=scan)
    other = _plan(tmp_path, "~stages.probe.data", raw, take, more=scan)
    assert one.stage("probe").key == other.stage("probe").key


def test_a_preparation_is_divided_as_well_and_every_part_sees_the_whole_index(
    tmp_path: Path,
) -> None:
    plan = _plan(tmp_path, "+data.home.prepare.shards=2")
    parts = ["prepare-home/part-000", "prepare-home/part-001"]
    assert plan.stage(PREPARE).upstream == (INDEX, *parts)
    for name in parts:
        assert [ref.ref for ref in plan.stage(name).inputs["dataset"]] == [f"{INDEX}.dataset"]
        assert plan.stage(name).part_of == PREPARE


def test_the_kinds_of_parts_are_not_for_recipes(tmp_path: Path) -> None:
    text = RECIPE + "  part: {kind: index_part, data: '${data.home}', part: 0, parts: 2}\n"
    (fault,) = faults_of(tmp_path, text).errors
    assert "index_part" not in fault.expected
    assert "one of the stage kinds: index, " in fault.expected
