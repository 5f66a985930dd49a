"""Stages whose work is divided: their parts, what they cost to plan, and when nobody needs them."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from cluster.contract import ArrayRequest, JobRequest
from cluster.slurm import SlurmExecutor
from orchestrator.jobs import requests_to_show
from orchestrator.plan import Plan, StageFacts, decide, make_plan
from orchestrator.store import Store
from orchestrator.view import emit, plan_view
from tests.orchestrator.recipes_for_tests import check_golden, keys, load_text, nothing_exists

RECIPE = """\
name: small
data:
  home: {format: folder, name: home, root: /videos, index: {shards: 4}, prepare: null}
stages:
  probe:
    kind: probe
    data: ${data.home}
    encoder: random
    backbone: {name: r2d3d_tiny}
    clip: {blocks: 4, frames: 5, stride: 1, size: 32}
"""
WHOLE = "index-home"
PARTS = [f"index-home/part-{n:03}" for n in range(4)]


def _plan(folder: Path, *overrides: str) -> Plan:
    return make_plan(load_text(folder, RECIPE, overrides), nothing_exists, has_gpus=False)


def _decided(plan: Plan, facts: dict[str, StageFacts]) -> dict[str, str]:
    known = {(s.kind, s.key): facts.get(s.name, StageFacts()) for s in plan.stages}
    decided = decide(plan, lambda kind, key: known[kind, key])
    return {stage.name: stage.action for stage in decided.stages}


def test_a_divided_index_has_parts_and_merges_them(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    assert [stage.name for stage in plan.stages] == [*PARTS, WHOLE, "probe"]
    for number, name in enumerate(PARTS):
        part = plan.stage(name)
        assert (part.kind, part.part_of) == ("index_part", WHOLE)
        assert (part.config["part"], part.config["parts"]) == (number, 4)
        assert part.resources == plan.stage(WHOLE).resources
    assert plan.stage(WHOLE).upstream == tuple(PARTS)
    assert [ref.ref for ref in plan.stage(WHOLE).inputs["parts"]] == [f"{p}.part" for p in PARTS]
    assert plan.stage("probe").upstream == (WHOLE,)
    assert plan.stage(WHOLE).part_of is None


def test_how_many_share_the_work_is_in_no_key_but_the_parts_own(tmp_path: Path) -> None:
    four, one = _plan(tmp_path), _plan(tmp_path, "data.home.index.shards=1")
    assert keys(one) == {name: keys(four)[name] for name in keys(one)}
    assert four.run_id == one.run_id
    eight = keys(_plan(tmp_path, "data.home.index.shards=8"))
    assert not {eight[name] for name in PARTS} & {keys(four)[name] for name in PARTS}


def test_a_finished_index_needs_no_parts(tmp_path: Path) -> None:
    actions = _decided(_plan(tmp_path), {WHOLE: StageFacts(result=True)})
    assert actions == {WHOLE: "reuse", "probe": "run"}


def test_parts_with_a_result_stay_in_sight_when_the_index_is_finished(tmp_path: Path) -> None:
    facts = {WHOLE: StageFacts(result=True), PARTS[1]: StageFacts(result=True)}
    plan = _plan(tmp_path)
    assert _decided(plan, facts) == {PARTS[1]: "reuse", WHOLE: "reuse", "probe": "run"}


def test_an_index_at_work_without_these_parts_is_joined_without_them(tmp_path: Path) -> None:
    """It was submitted undivided, or divided by another number."""
    fact = StageFacts(running=True, merges=frozenset({"another part"}))
    actions = _decided(_plan(tmp_path), {WHOLE: fact})
    assert actions == {WHOLE: "attach", "probe": "run"}


def test_an_index_that_waits_for_its_parts_keeps_them(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    waiting = StageFacts(running=True, merges=frozenset(plan.stage(p).key for p in PARTS))
    actions = _decided(plan, {WHOLE: waiting, PARTS[0]: StageFacts(running=True)})
    assert actions[PARTS[0]] == actions[WHOLE] == "attach"
    assert actions[PARTS[3]] == "run"
    actions = _decided(plan, {WHOLE: waiting})  # all of them broke, and it is not yet told
    assert actions[PARTS[0]] == "run"


def test_only_the_parts_that_are_missing_run(tmp_path: Path) -> None:
    facts = {name: StageFacts(result=True) for name in PARTS[:3]}
    actions = _decided(_plan(tmp_path), facts)
    assert [actions[name] for name in (*PARTS, WHOLE)] == ["reuse"] * 3 + ["run"] * 2


def test_a_plan_of_divided_work_is_the_golden_one(tmp_path: Path) -> None:
    facts = {name: StageFacts(result=True) for name in PARTS[:3]}
    plan = _plan(tmp_path, "data.home.index.shards=12")
    known = {(s.kind, s.key): facts.get(s.name, StageFacts()) for s in plan.stages}
    stream = io.StringIO()
    emit(plan_view(decide(plan, lambda kind, key: known[kind, key]), "slurm"), stream)
    check_golden("plan_divided.txt", re.sub(r"\b[0-9a-f]{8}\b", "<key>", stream.getvalue()))


def test_the_parts_are_shown_as_the_one_array_they_become(tmp_path: Path) -> None:
    shown = dict(requests_to_show(_plan(tmp_path), Store(tmp_path / "store")))
    assert list(shown) == ["index-home/part-*", WHOLE, "probe"]
    array, whole = shown["index-home/part-*"], shown[WHOLE]
    assert isinstance(array, ArrayRequest) and isinstance(whole, JobRequest)
    assert [task.task for task in array.tasks] == [0, 1, 2, 3]
    assert [handle.job_id for handle in whole.after] == ["<index-home/part-*>"]
    script = SlurmExecutor().render(array)
    assert script.count(") target=(") == 4 and "#SBATCH --array=0-3\n" in script


@pytest.mark.parametrize("shards", [2, 1000])
def test_parts_are_numbered_and_sorted_by_name(tmp_path: Path, shards: int) -> None:
    plan = _plan(tmp_path, f"data.home.index.shards={shards}")
    names = [stage.name for stage in plan.stages if stage.part_of]
    assert len(names) == shards and names == sorted(names)
    assert names[-1] == f"index-home/part-{shards - 1:03}"
