"""What the files of a stage say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cluster import fsio
from tests.tracking.fabricate import Stage, make_pipeline
from tracking.stagefiles import StageFiles, State


@pytest.fixture
def pretrain(tmp_path: Path) -> Stage:
    """A submitted pretraining stage that has not started."""
    return make_pipeline(tmp_path, "r1", "http://127.0.0.1:1").stages["pretrain"]


def _state(stage: Stage) -> State:
    return StageFiles(stage.path).state()


def test_a_submitted_stage_waits(pretrain: Stage) -> None:
    assert _state(pretrain) == State(name="waiting")


def test_a_started_stage_runs(pretrain: Stage) -> None:
    pretrain.start("s001r000")
    assert _state(pretrain) == State(name="running")


def test_a_result_is_success_whatever_came_after(pretrain: Stage) -> None:
    pretrain.start("s001r000")
    pretrain.result("s001r000", {}, {}, 10)
    assert _state(pretrain) == State(name="succeeded", final=True)


def test_a_result_of_another_key_is_no_success(pretrain: Stage) -> None:
    pretrain.result("s001r000", {}, {}, 10)
    result = fsio.read_json(pretrain.path / "result.json")
    fsio.write_json(pretrain.path / "result.json", {**result, "key": "0" * 64})
    assert _state(pretrain).name == "waiting"


def test_a_preempted_stage_will_go_on(pretrain: Stage) -> None:
    pretrain.start("s001r000")
    pretrain.end("s001r000", "preempted", 60, 75)
    assert _state(pretrain).name == "requeued"


@pytest.mark.parametrize(
    ("code", "decision", "name"),
    [
        (72, None, "failed"),  # divergence is not tried again
        (70, "stop", "failed"),
        (74, None, "requeued"),  # a lost peer is
        (74, "stop", "failed"),  # until the epilogue has had enough
        (71, None, "failed"),
        (74, "requeue", "requeued"),
    ],
)
def test_a_failure_is_final_when_it_will_not_be_tried_again(
    pretrain: Stage, code: int, decision: str | None, name: str
) -> None:
    pretrain.start("s001r000")
    pretrain.end("s001r000", "failed", 60, code, cause="communication", message="peer n2 lost")
    if decision is not None:
        pretrain.exit("s001r000", decision, code)
    reason = "communication: peer n2 lost"
    assert _state(pretrain) == State(name=name, reason=reason, final=name == "failed")


def test_a_killed_attempt_is_judged_by_its_epilogue(pretrain: Stage) -> None:
    pretrain.start("s001r000")
    pretrain.exit("s001r000", "stop", 137)
    assert _state(pretrain) == State(name="failed", reason="exit code 137", final=True)


def test_cancelling_counts_once_the_attempt_has_ended(pretrain: Stage) -> None:
    pretrain.start("s001r000")
    fsio.write_json(pretrain.path / "cancel.json", {"user": "ada", "host": "login01", "at": 1.0})
    assert _state(pretrain).name == "running"
    pretrain.end("s001r000", "preempted", 60, 75)
    assert _state(pretrain) == State(name="cancelled", reason="by ada", final=True)


def test_a_new_submission_makes_an_old_failure_history(pretrain: Stage) -> None:
    pretrain.start("s001r000")
    pretrain.end("s001r000", "failed", 60, 70)
    fsio.write_json(pretrain.path / "submission-2.intent.json", {"n": 2})
    assert _state(pretrain).name == "waiting"


def test_the_committed_step_is_that_of_the_newest_whole_checkpoint(pretrain: Stage) -> None:
    files = StageFiles(pretrain.path)
    assert files.committed_step() == -1  # its configuration asks for checkpoints
    pretrain.checkpoint(40)
    pretrain.checkpoint(60)
    fsio.make_dir(pretrain.path / "checkpoints" / "step_000000080")  # no manifest
    assert files.committed_step() == 60


def test_a_stage_that_keeps_no_checkpoints_holds_nothing_back(tmp_path: Path) -> None:
    probe = make_pipeline(tmp_path, "r1", None).stages["probe"]
    assert StageFiles(probe.path).committed_step() == math.inf


def test_the_target_comes_from_the_claim_until_the_submission_is_recorded(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path, "r1", "http://127.0.0.1:1")
    stage = pipeline.stages["probe"]
    claim = {"n": 2, "tracking": pipeline.tracking("probe", "http://127.0.0.1:2")}
    fsio.write_json(stage.path / "submission-2.intent.json", claim)
    files = StageFiles(stage.path)
    target = files.target(2)
    assert target is not None
    assert target.uri == "http://127.0.0.1:2"
    assert target.run_dir == pipeline.run_dir
    first = files.target(1)
    assert first is not None
    assert first.uri == "http://127.0.0.1:1"


def test_an_untracked_stage_has_no_target(tmp_path: Path) -> None:
    stage = make_pipeline(tmp_path, "r1", "http://127.0.0.1:1").stages["probe"]
    stage.submission(2, None)
    assert StageFiles(stage.path).target(2, "http://127.0.0.1:3") is None


def test_a_server_given_later_serves_a_submission_that_named_none(tmp_path: Path) -> None:
    stage = make_pipeline(tmp_path, "r1", None).stages["probe"]
    assert StageFiles(stage.path).target(1) is None
    target = StageFiles(stage.path).target(1, "http://127.0.0.1:3")
    assert target is not None
    assert target.uri == "http://127.0.0.1:3"
