"""docs/training.md: its examples are valid, and it names every field of training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipes.engine.config import (
    CheckpointConfig,
    LossScaleConfig,
    OptimizerConfig,
    ProfileConfig,
    TrainFields,
)
from recipes.engine.ds_config import ds_config
from recipes.engine.ds_keys import DeepSpeedKeys
from recipes.stages.finetune.config import FinetuneConfig
from recipes.stages.pretrain.config import PretrainConfig

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [text for language, text in BLOCK.findall(PAGE) if language == "yaml"]
INLINE = re.findall(r"`([^`\n]+)`", BLOCK.sub("", PAGE))
DECIDED = {"epochs": 1, "batch_size": 8, "micro_batch": 8}


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_accepted_and_gives_deepspeed_a_configuration(example):
    config = TrainFields.model_validate(DECIDED | OmegaConf.to_container(OmegaConf.create(example)))
    assert ds_config(config, world_size=1)["train_batch_size"] == config.batch_size


@pytest.mark.parametrize(
    "model",
    [TrainFields, OptimizerConfig, CheckpointConfig, LossScaleConfig, ProfileConfig, DeepSpeedKeys],
)
def test_every_field_is_named(model):
    words = {word for code in [*EXAMPLES, *INLINE] for word in re.findall(r"\w+", code)}
    assert set(model.model_fields) - words == set()


def test_the_fields_that_change_no_result_are_those_the_page_names():
    paragraph = next(text for text in PAGE.split("\n\n") if "part of the stage's identity" in text)
    named = set(re.findall(r"`(\w+)`", paragraph))
    for kind in (PretrainConfig, FinetuneConfig):
        assert named == kind.TRANSIENT
