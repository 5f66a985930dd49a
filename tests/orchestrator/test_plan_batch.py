"""A batch that the ranks cannot share out evenly is refused before anyone queues."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from tests.orchestrator.recipes_for_tests import SMALL

RECIPE = (
    SMALL
    + """\
  finetune:
    kind: finetune
    matrix: {batch: [16, 12]}
    data: ${data.motion}
    inputs: {encoder: pretrain.encoder}
    epochs: 1
    batch_size: ${matrix.batch}
    micro_batch: 4
cluster: {executor: local, resources: {device: cpu, nodes: 1, tasks_per_node: 2}}
"""
)


@pytest.mark.parametrize("command", ["plan", "submit"])
def test_stage_keys_and_rank_counts_are_named_and_nothing_is_written_or_submitted(
    tmp_path: Path, command: str
) -> None:
    file, store = tmp_path / "recipe.yaml", tmp_path / "store"
    file.write_text(RECIPE)
    overrides = ["stages.pretrain.batch_size=20"]
    result = CliRunner().invoke(app, [command, str(file), *overrides, "--store", str(store)])
    assert result.exit_code == 2
    blocks = result.stderr.split("error: ")[1:]
    assert [block.split()[0] for block in blocks] == [
        "stages.pretrain.batch_size",
        "stages.finetune/12.batch_size",
    ]
    for block, batch, fits in zip(blocks, (20, 12), ("1, 5", "1, 3"), strict=True):
        assert "1 nodes x 2 ranks = 2 ranks" in block
        assert f"batch_size {batch} is no multiple of micro_batch 4 x 2 ranks" in block
        assert f"rank counts that fit: {fits}\n" in block
        for key in ("resources.nodes", "resources.gpus_per_node", "batch_size", "micro_batch"):
            assert key in block
    assert not store.exists()


def test_the_same_recipe_with_ranks_that_fit_is_planned(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    words = ["plan", str(file), "cluster.resources.tasks_per_node=1", "--store", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 0
