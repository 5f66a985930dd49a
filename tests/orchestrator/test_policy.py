"""What recipes say of trying again, and nodes that a run does without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster import fsio
from cluster.causes import RULES, rules_of
from cluster.contract import Resources
from cluster.unrecorded import record_lost
from orchestrator.policy import PolicySpec, bad_nodes, combined, without
from orchestrator.store import StageDir, Store

KEY = "0123456789ab" + "0" * 52


def spec(**said: Any) -> PolicySpec:
    return PolicySpec.model_validate(said)


def test_a_policy_that_says_nothing_is_the_table() -> None:
    policy = combined(PolicySpec(), PolicySpec())
    assert policy == {"max_restarts_without_progress": 3, "causes": {}}
    assert rules_of(policy) == dict(RULES)


def test_a_stage_says_more_than_the_cluster_and_only_where_it_says_something() -> None:
    general = spec(
        max_restarts_without_progress=5,
        causes={"hang": {"exclude_node": False}, "killed": {"retry": "stop"}},
    )
    own = spec(causes={"hang": {"retry": "free"}})
    policy = combined(own, general)
    assert policy["max_restarts_without_progress"] == 5
    rules = rules_of(policy)
    assert (rules["hang"].retry, rules["hang"].exclude_node) == ("free", False)
    assert rules["killed"].retry == "stop"
    assert combined(spec(max_restarts_without_progress=3), general)[
        "max_restarts_without_progress"
    ] == 3  # fmt: skip


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ({"causes": {"hnag": {"retry": "free"}}}, "hang"),
        ({"causes": {"hang": {"retry": "always"}}}, "counted"),
        ({"causes": {"hang": {"tries": 3}}}, "Extra inputs"),
        ({"causes": {"cancelled": {"retry": "free"}}}, "what a person has said stands"),
        ({"causes": {"hang": {"more_memory": True}}}, "out_of_host_memory only"),
        ({"max_restarts_without_progress": 0}, "greater than or equal to 1"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(said: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        PolicySpec.model_validate(said)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two stages of the run `ours`; the first was computed for `theirs` before."""
    store = Store(tmp_path / "store")
    entries = [{"name": name, "kind": name, "key": KEY} for name in ("pretrain", "probe")]
    fsio.make_dir(store.run_dir("ours"))
    fsio.write_json(store.run_dir("ours") / "plan.json", {"stages": entries})
    fsio.write_json(store.run_dir("ours") / "run.json", {"submitted_at": 1.0})
    for kind, n, run in [("pretrain", 1, "theirs"), ("pretrain", 2, "ours"), ("probe", 1, "ours")]:
        store.stage_dir(kind, KEY).claim(n, "a-name", {"run_id": run})
    return store


def ended(store: Store, kind: str, attempt: str, exclude: list[str] | None) -> None:
    folder = fsio.make_dir(store.stage_dir(kind, KEY).attempts / attempt)
    fsio.write_json(folder / "exit.json", {} if exclude is None else {"exclude": exclude})


def test_the_nodes_a_run_lost_attempts_to_are_those_of_its_own_submissions(store: Store) -> None:
    assert bad_nodes("ours", store) == ()
    ended(store, "pretrain", "s001r000", ["n1"])
    ended(store, "pretrain", "s002r000", ["n2"])
    ended(store, "pretrain", "s002r001", None)
    ended(store, "probe", "s001r000", ["n3", "n2"])
    assert bad_nodes("ours", store) == ("n2", "n3")
    assert bad_nodes("unknown", store) == ()


def test_later_jobs_of_the_run_do_without_them_as_far_as_the_partition_can() -> None:
    plain = Resources(nodes=2)
    assert without(["n2"], plain, 8).exclude == "n2"
    assert without(["n2"], Resources(exclude="n[5-6]"), 8).exclude == "n[5-6],n2"
    assert without(["n5"], Resources(exclude="n[5-6]"), 8).exclude == "n[5-6]"
    assert without(["n2"], plain, 2) == plain
    assert without(["n2"], plain, None) == plain
    assert without([], plain, 8) == plain


def run_entry(stage: StageDir) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "ORCHESTRATE"))}
    command = [sys.executable, "-m", "orchestrator.entry", str(stage.path), "--submission", "1"]
    return subprocess.run(command, env=clean, capture_output=True, text=True, check=False)


def test_a_job_that_comes_back_after_a_cancel_leaves_at_once(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "pretrain-0123456789ab")
    stage.claim(1, "a-name", {"run_id": "r", "resources": {}})
    stage.write_spec({"key": KEY, "kind": "pretrain", "config": {}, "inputs": {}})
    fsio.write_json(stage.cancel_file, {"user": "ann", "host": "login1", "at": 1.0})
    done = run_entry(stage)
    assert done.returncode == 77, done.stderr
    assert "was cancelled by ann on login1; `orchestrate resume` goes on" in done.stdout
    assert not stage.attempts.exists()


def test_an_attempt_lost_with_its_node_is_recorded_by_the_next_one(tmp_path: Path) -> None:
    stage = tmp_path / "pretrain-0123456789ab"
    fsio.make_dir(stage / "checkpoints" / "step_000000007")
    fsio.write_json(stage / "checkpoints" / "step_000000007" / "manifest.json", {})
    for name, files in {
        "s001r000": ["start"],  # of another submission
        "s002r000": ["start", "exit"],
        "s002r001": ["start", "end"],
        "s002r002": ["start"],
        "s002r003": [],
        "s002r004": ["start"],  # this one
    }.items():
        folder = fsio.make_dir(stage / "attempts" / name)
        for file in files:
            fsio.write_json(folder / f"{file}.json", {"host": "n1"})
    for _ in range(2):
        record_lost(stage, 2, 4)
    written = {
        path.parent.name for path in stage.glob("attempts/*/exit.json")
        if "recorded_by" in fsio.read_json(path)
    }  # fmt: skip
    assert written == {"s002r002"}
    record = fsio.read_json(stage / "attempts" / "s002r002" / "exit.json")
    assert (record["cause"], record["policy"], record["decision"]) == (
        "node_failure",
        "free",
        "requeue",
    )
    assert (record["step"], record["recorded_by"]) == (7, "s002r004")
    assert record["reason"].startswith("lost with its node, or killed")
