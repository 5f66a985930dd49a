"""A training on videos some of which are gone: it ends, and its metrics and its log say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.contract import Artifact, InputError
from recipes.stages.pretrain.config import PretrainConfig
from recipes.stages.pretrain.run import run
from tests.recipes.data_files import index, write_set
from tests.recipes.evaluation_support import Recorder, context


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Nine training videos of which one went after they were indexed."""
    folder = tmp_path_factory.mktemp("broken")
    file = write_set(folder / "set")
    artifact = index(folder / "index", format="csv", name="small", file=str(file))
    (folder / "set" / "odd" / "005.mp4").unlink()
    return artifact


def config(**changes: Any) -> PretrainConfig:
    given: dict[str, Any] = {
        "data": {"format": "csv", "name": "small", "file": "videos.csv"},
        "method": {"name": "dpc", "pred_steps": 1},
        "backbone": {"name": "r2d3d_tiny"},
        "clip": {"blocks": 3, "frames": 2, "size": 32},
        "epochs": 2,
        "batch_size": 3,
        "micro_batch": 3,
        "workers": 1,
        "log_every": 3,
    }
    return PretrainConfig.model_validate(given | changes)


def test_the_share_of_replaced_samples_is_a_metric_and_the_log_names_the_file(
    broken: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    result = run(context(tmp_path, {"data": broken}, recorder), config())
    assert result.steps == 6
    shares = [values["data/replaced"] for _, values in recorder.metrics]
    assert shares == pytest.approx([1 / 9, 1 / 9])
    lines = [line for line in caplog.messages if "odd/005.mp4: No such file" in line]
    assert len(lines) == 2
    assert all("; replaced by" in line for line in lines)


def test_more_than_is_allowed_ends_the_training_with_advice(
    broken: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"mend the files, or raise data\.version"):
        run(context(tmp_path, {"data": broken}), config(max_replaced_share=0.0))
