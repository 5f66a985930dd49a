"""A stage's inputs are verified at its start, whatever the scheduler said."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import fsio
from orchestrator.inputs import verify_inputs
from orchestrator.store import StageDir
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
    with pytest.raises(InputError, match=r"content of .*encoder\.safetensors changed"):
        verify_inputs(_consumer(upstream), _spec(), digests=True)


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


def test_a_failed_upstream_is_refused_at_once_with_its_message(upstream: StageDir) -> None:
    upstream.result_file.unlink()
    folder = fsio.make_dir(upstream.attempts / "s001r000")
    fsio.write_json(folder / "end.json", {"outcome": "failed", "message": "no such video"})
    with pytest.raises(InputError, match="failed: no such video"):
        verify_inputs(_consumer(upstream), _spec(), digests=True)


def test_a_missing_result_is_waited_for_and_then_refused(
    upstream: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.result_file.unlink()
    monkeypatch.setenv("ORCHESTRATE_INPUT_WAIT_SECONDS", "0")
    with pytest.raises(InputError, match="the upstream has not finished"):
        verify_inputs(_consumer(upstream), _spec(), digests=True)


def test_an_upstream_that_was_never_submitted_is_named(tmp_path: Path) -> None:
    stage = StageDir(fsio.make_dir(tmp_path / "stages" / "probe-bbbbbbbbbbbb"))
    with pytest.raises(InputError, match="was never submitted"):
        verify_inputs(stage, _spec(), digests=True)
