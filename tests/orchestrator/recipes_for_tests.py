"""Recipes, facts and golden files that several tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import RecipeErrors
from orchestrator.load import load_recipe
from orchestrator.planned import Plan, StageFacts
from orchestrator.schema import Recipe

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "golden"

SMALL = """\
name: small
data:
  motion: {format: synthetic, name: motion}
stages:
  pretrain:
    kind: pretrain
    data: ${data.motion}
    method: {name: dpc, pred_steps: 2, augment: none}
    backbone: {name: r2d3d_tiny}
    clip: {blocks: 4, frames: 5, stride: 1, size: 32}
    max_steps: 10
    batch_size: 16
    micro_batch: 4
  probe:
    kind: probe
    data: ${data.motion}
    inputs: {encoder: pretrain.encoder}
"""


def nothing_exists(kind: str, key: str) -> StageFacts:
    """Facts of an empty store."""
    return StageFacts()


def load_text(folder: Path, text: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from its text."""
    file = folder / "recipe.yaml"
    file.write_text(text)
    return load_recipe(file, overrides)


def faults_of(folder: Path, text: str, overrides: Sequence[str] = ()) -> RecipeErrors:
    """What is wrong with a recipe that must be wrong."""
    try:
        load_text(folder, text, overrides)
    except RecipeErrors as errors:
        return errors
    raise AssertionError("the recipe was accepted")


def check_golden(name: str, text: str) -> None:
    """Compare with a golden file; ORCHESTRATE_UPDATE_GOLDEN=1 writes it anew."""
    file = GOLDEN / name
    if os.environ.get("ORCHESTRATE_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def keys(plan: Plan) -> dict[str, str]:
    """Key of each stage by name."""
    return {stage.name: stage.key for stage in plan.stages}
