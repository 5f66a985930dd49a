"""A stage's inputs are verified at its start, whatever the scheduler said."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import fsio
from cluster.contract import JobHandle
from orchestrator.inputs import verify_inputs
from orchestrator.store import StageDir, Submission
from recipes.contract import InputError

KEY = "a" * 64


@pytest.fixture
def upstream(tmp_path: Path) -> StageDir:
    """A finished pretraining with one encoder."""
    stage = StageDir(fsio.make_dir(tmp_path / "stages" / "pretrain-aaaaaaaaaaaa"))
    fsio.make_dir(stage.outputs)
    encoder = stage.outputs / "encoder.safetensors"
    encoder.write_bytes(b"weights")
    record = {
        "kind": "encoder",
        "path": "outputs/encoder.safetensors",
        "sha256": fsio.sha256_file(encoder),
        "bytes": 7,
        "meta": {"method": "dpc"},
    }
    fsio.write_json(stage.result_file, {"key": KEY, "artifacts": {"encoder": record}})
    return stage


def _spec(key: str = KEY, artifact: str = "encoder") -> dict[str, object]:
    entry = {
        "ref": f"pretrain.{artifact}",
        "stage": "pretrain-aaaaaaaaaaaa",
        "key": key,
        "artifact": artifact,
        "kind": "encoder",
    }
    return {"key": "b" * 64, "inputs": {"encoder": [entry]}}


def _consumer(upstream: StageDir) -> StageDir:
    return StageDir(fsio.make_dir(upstream.path.parent / "probe-bbbbbbbbbbbb"))


def test_a_sound_input_is_handed_over_with_its_description(upstream: StageDir) -> None:
    (artifact,) = verify_inputs(_consumer(upstream), _spec(), digests=True)["encoder"]
    assert artifact.path == upstream.outputs / "encoder.safetensors"
    assert artifact.meta["method"] == "dpc"
    assert artifact.ref == "pretrain.encoder"


def test_a_result_is_an_input_with_its_whole_content(upstream: StageDir) -> None:
    spec = _spec(artifact="result")
    (artifact,) = verify_inputs(_consumer(upstream), spec, digests=True)["encoder"]
    assert artifact.kind == "result"
    assert artifact.meta["key"] == KEY


def test_a_changed_byte_is_refused(upstream: StageDir) -> None:
    (upstream.outputs / "encoder.safetensors").write_bytes(b"weighty")
    with pytest.raises(InputError, match=r"encoder\.safetensors has another content"):
        verify_inputs(_consumer(upstream), _spec(), digests=True)


@pytest.mark.usefixtures("at_once")
def test_a_truncated_file_is_refused_even_without_reading_it(upstream: StageDir) -> None:
    (upstream.outputs / "encoder.safetensors").write_bytes(b"weigh")
    with pytest.raises(InputError, match="has 5 bytes, recorded were 7"):
        verify_inputs(_consumer(upstream), _spec(), digests=False)


def test_another_key_is_refused(upstream: StageDir) -> None:
    with pytest.raises(InputError, match="expected cccccccccccc"):
        verify_inputs(_consumer(upstream), _spec(key="c" * 64), digests=True)


def test_an_artifact_the_upstream_never_left_is_named(upstream: StageDir) -> None:
    with pytest.raises(InputError, match="the upstream left encoder, not 'features'"):
        verify_inputs(_consumer(upstream), _spec(artifact="features"), digests=True)


@pytest.fixture
def unfinished(upstream: StageDir) -> StageDir:
    """The pretraining while it has no result, submitted once as job 17 of the run demo-1."""
    upstream.result_file.unlink()
    details = {"run_id": "demo-1", "stage": "pretrain"}
    assert upstream.claim(1, "pretrain-s1", details)
    upstream.record_submission(
        Submission(
            n=1,
            job_name="pretrain-s1",
            handle=JobHandle(executor="slurm", cluster="c", job_id="17", submitted_at=1.0),
            dependencies=(),
            resources={},
            tracking=None,
            code=None,
            **details,
        )
    )
    return upstream


def _attempt(stage: StageDir, name: str = "s001r000", **parts: dict[str, object]) -> None:
    folder = fsio.make_dir(stage.attempts / name)
    for part, value in parts.items():
        fsio.write_json(folder / f"{part}.json", value)


def _refusal(upstream: StageDir, **spec: str) -> str:
    """The refusal of a consumer; always one line."""
    with pytest.raises(InputError) as refused:
        verify_inputs(_consumer(upstream), _spec(**spec), digests=True)
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for."""
    monkeypatch.setenv("ORCHESTRATE_INPUT_WAIT_SECONDS", "0")


FAILED: dict[str, object] = {"outcome": "failed", "message": "no such video\nsecond line"}


def test_a_failed_upstream_is_refused_at_once_with_its_message(unfinished: StageDir) -> None:
    _attempt(unfinished, end=FAILED, exit={"decision": "stop", "reason": "user_code"})
    text = _refusal(unfinished)
    assert "pretrain-aaaaaaaaaaaa failed: no such video (" in text
    assert "attempts/s001r000/end.json" in text
    assert text.endswith("`orchestrate why demo-1:pretrain`")


def test_an_upstream_that_was_stopped_without_a_word_is_told_with_the_decision(
    unfinished: StageDir,
) -> None:
    _attempt(unfinished, start={}, exit={"decision": "stop", "reason": "3 attempts in vain"})
    assert "was stopped: 3 attempts in vain (" in _refusal(unfinished)


def test_a_cancelled_upstream_is_refused_at_once_and_names_who_did_it(
    unfinished: StageDir,
) -> None:
    fsio.write_json(unfinished.cancel_file, {"user": "ann", "host": "login1"})
    text = _refusal(unfinished)
    assert "was cancelled by ann on login1" in text
    assert text.endswith("`orchestrate resume demo-1`")


@pytest.mark.usefixtures("at_once")
def test_an_upstream_whose_job_never_began_may_be_gone_from_the_scheduler(
    unfinished: StageDir,
) -> None:
    text = _refusal(unfinished)
    assert "has not begun (job 17): it waits, or its job is gone" in text


@pytest.mark.usefixtures("at_once")
def test_an_upstream_that_left_no_record_of_its_end_is_told_apart(unfinished: StageDir) -> None:
    _attempt(unfinished, start={"host": "n1"})
    assert "its newest attempt runs or left no record of its end (job 17)" in _refusal(unfinished)


@pytest.mark.usefixtures("at_once")
def test_an_interrupted_upstream_is_told_with_its_step(unfinished: StageDir) -> None:
    _attempt(unfinished, end={"outcome": "preempted", "step": 480}, exit={"decision": "requeue"})
    text = _refusal(unfinished)
    assert "was interrupted at step 480 and has not gone on" in text
    assert text.endswith("`orchestrate resume demo-1`")


@pytest.mark.usefixtures("at_once")
def test_a_failure_of_an_older_submission_is_not_that_of_the_newest(unfinished: StageDir) -> None:
    _attempt(unfinished, end=FAILED, exit={"decision": "stop"})
    assert unfinished.claim(2, "pretrain-s2", {"run_id": "demo-1", "stage": "pretrain"})
    assert "has not begun" in _refusal(unfinished)


def test_a_result_that_is_seen_late_is_waited_for(
    unfinished: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the end of an attempt that went on is seen before it, and the file comes last."""
    _attempt(unfinished, end=FAILED, exit={"decision": "requeue"})
    encoder = unfinished.outputs / "encoder.safetensors"
    record = {"kind": "encoder", "path": "outputs/encoder.safetensors", "bytes": 7, "meta": {}}
    record["sha256"] = fsio.sha256_file(encoder)
    encoder.unlink()
    steps = [
        lambda: fsio.write_json(
            unfinished.result_file, {"key": KEY, "artifacts": {"encoder": record}}
        ),
        lambda: encoder.write_bytes(b"wei"),
        lambda: encoder.write_bytes(b"weights"),
    ]
    monkeypatch.setattr("orchestrator.inputs.time.sleep", lambda seconds: steps.pop(0)())
    (artifact,) = verify_inputs(_consumer(unfinished), _spec(), digests=True)["encoder"]
    assert artifact.bytes == 7 and not steps


@pytest.mark.usefixtures("at_once")
def test_a_file_that_is_gone_is_refused_with_the_command_that_makes_it_anew(
    upstream: StageDir,
) -> None:
    assert upstream.claim(1, "pretrain-s1", {"run_id": "demo-1", "stage": "pretrain"})
    (upstream.outputs / "encoder.safetensors").unlink()
    text = _refusal(upstream)
    assert "encoder.safetensors is missing" in text
    assert text.endswith("`orchestrate retry demo-1:pretrain --clear`")


@pytest.mark.usefixtures("at_once")
def test_an_upstream_that_was_never_submitted_is_named(tmp_path: Path) -> None:
    stage = StageDir(fsio.make_dir(tmp_path / "stages" / "probe-bbbbbbbbbbbb"))
    with pytest.raises(InputError, match="was never submitted"):
        verify_inputs(stage, _spec(), digests=True)
