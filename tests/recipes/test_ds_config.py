"""DeepSpeed's configuration: golden files, DeepSpeed's own reading of it, keys passed through."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from recipes.contract import ConfigurationError
from recipes.engine.config import TrainFields
from recipes.engine.deepspeed_engine import import_deepspeed
from recipes.engine.ds_config import ds_config
from recipes.engine.ds_keys import DeepSpeedKeys, ZeroKeys
from tests.recipes.train_fields import fields

GOLDEN = Path(__file__).parent / "golden" / "ds_config"

CASES: dict[str, dict[str, Any]] = {
    "fp32_zero0": {},
    "fp32_zero1_sgd": {"zero_stage": 1, "optimizer": {"name": "sgd"}},
    "fp32_zero3_offload_all": {"zero_stage": 3, "offload": "all"},
    "bf16_zero0_lars_clipped": {
        "precision": "bf16",
        "clip_grad": 5.0,
        "optimizer": {"name": "lars"},
    },
    "bf16_zero2": {"precision": "bf16", "zero_stage": 2},
    "bf16_zero3": {"precision": "bf16", "zero_stage": 3},
    "fp16_zero0": {"precision": "fp16"},
    "fp16_zero1_offload_optimizer": {
        "precision": "fp16",
        "zero_stage": 1,
        "offload": "optimizer",
    },
    "fp16_zero2_no_accumulation_clipped": {
        "precision": "fp16",
        "zero_stage": 2,
        "micro_batch": 4,
        "clip_grad": 0.5,
    },
    "fp16_zero3_offload_optimizer": {
        "precision": "fp16",
        "zero_stage": 3,
        "offload": "optimizer",
    },
    "keys_passed_through": {
        "zero_stage": 3,
        "deepspeed": {
            "communication_data_type": "bf16",
            "zero_optimization": {
                "reduce_bucket_size": 1000,
                "overlap_comm": True,
                "stage3_param_persistence_threshold": 0,
            },
        },
    },
}
OFFLOADS = {0: ["none"], 1: ["none", "optimizer"], 2: ["none", "optimizer"]}
EVERY = [
    (precision, stage, offload, clip)
    for precision, stage, clip in itertools.product(["fp32", "bf16", "fp16"], range(4), [None, 0.5])
    for offload in OFFLOADS.get(stage, ["none", "optimizer", "all"])
]


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_is_the_golden_one(name):
    text = json.dumps(ds_config(fields(**CASES[name]), world_size=2), indent=2) + "\n"
    file = GOLDEN / f"{name}.json"
    if os.environ.get("ORCHESTRATE_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_every_golden_file_belongs_to_a_case():
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(CASES)


def test_the_same_fields_give_the_same_configuration_which_nobody_shares():
    config = fields(**CASES["keys_passed_through"])
    first = ds_config(config, world_size=2)
    kept = copy.deepcopy(first)
    first["zero_optimization"]["stage"] = 1
    assert ds_config(config, world_size=2) == kept


def test_a_batch_that_does_not_fit_the_ranks_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="rank counts that fit"):
        ds_config(fields(), world_size=3)


@pytest.fixture(scope="module")
def deepspeed_config() -> Iterator[Any]:
    """DeepSpeed's class that reads a configuration."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DS_ACCELERATOR", "LOCAL_RANK"):
            patch.setenv(name, os.environ.get(name, ""))
        patch.setenv("LOCAL_RANK", "0")
        import_deepspeed(torch.device("cpu"))
        from deepspeed.runtime import config

        yield config


def test_deepspeed_reads_out_of_it_what_the_recipe_says(deepspeed_config):
    for precision, stage, offload, clip in EVERY:
        config = fields(precision=precision, zero_stage=stage, offload=offload, clip_grad=clip)
        read = deepspeed_config.DeepSpeedConfig(ds_config(config, world_size=1))
        case = (precision, stage, offload, clip)
        assert read.gradient_accumulation_steps == 4, case
        assert read.gradient_clipping == (clip or 0.0), case
        assert read.zero_config.stage == stage, case
        assert not read.zero_config.overlap_comm, case
        assert not (read.float16_config.enabled or read.bfloat16_config.enabled), case
        assert read.torch_autocast_enabled == (precision != "fp32"), case
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        assert read.torch_autocast_dtype == dtype, case
        moved = [read.zero_config.offload_optimizer, read.zero_config.offload_param]
        devices = ["cpu" if each else None for each in moved]
        wanted = {"none": [None, None], "optimizer": ["cpu", None], "all": ["cpu", "cpu"]}
        assert devices == wanted[offload], case


class _Noting(dict):
    """Notes which keys it is asked for."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.asked: set[str] = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def keys(self):
        return self


def test_each_key_that_deepspeed_reads_is_passed_on_or_refused_with_a_reason(deepspeed_config):
    noting = _Noting(ds_config(fields(), world_size=1))
    deepspeed_config.DeepSpeedConfig(noting)
    inner = {"data_sampling", "data_routing"}  # read of data_efficiency, which is empty
    removed = set(deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    known = set(DeepSpeedKeys.model_fields) | set(DeepSpeedKeys.REFUSED)
    assert noting.asked - removed - inner - known == set()
    # Read elsewhere: in `deepspeed.initialize` and by old spellings.
    elsewhere = {"bfloat16", "data_parallel_size", "sequence_parallel_size", "vocabulary_size"}
    assert known - noting.asked <= elsewhere


def test_each_key_of_zero_is_passed_on_or_refused_with_a_reason(deepspeed_config):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = {info.alias or name for name, info in DeepSpeedZeroConfig.model_fields.items()}
    ours = set(ZeroKeys.model_fields)
    shadowed = {"gather_16bit_weights_on_model_save"}  # the field that an alias refused above names
    assert ours | (set(ZeroKeys.REFUSED) - shadowed) == theirs
    assert not ours & set(ZeroKeys.REFUSED)


def test_deepspeed_takes_every_key_that_is_passed_on(deepspeed_config):
    keys = {
        name: True if "bool" in str(info.annotation) else 1000
        for name, info in ZeroKeys.model_fields.items()
    }
    config = fields(zero_stage=3, deepspeed={"zero_optimization": keys})
    read = deepspeed_config.DeepSpeedConfig(ds_config(config, world_size=1)).zero_config
    assert read.stage == 3
    given = {read.reduce_bucket_size, read.prefetch_bucket_size, read.sub_group_size}
    assert given == {1000}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"train_batch_size": 8}, "train_batch_size: use batch_size"),
        ({"gradient_clipping": 1.0}, "use clip_grad"),
        ({"fp16": {"enabled": True}}, "fp16: use precision"),
        ({"bf16": {}, "optimizer": {}}, "bf16: use precision; optimizer: use optimizer"),
        ({"scheduler": {}}, "use optimizer.schedule"),
        ({"gradient_cliping": 1.0}, r"gradient_cliping \(gradient_clipping\?\): use clip_grad"),
        ({"steps_per_print": 1}, "use log_every"),
        ({"zero_optimization": {"stage": 2}}, "stage: use zero_stage"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "use offload"),
        ({"zero_optimization": {"overlap": True}}, "not permitted"),
        ({"zero_optimisation": {}}, "not permitted"),
        ({"zero_optimization": {"reduce_bucket_size": "5e8"}}, "valid integer"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "greater than 0"),
        ({"communication_data_type": "fp8"}, "'fp32', 'fp16' or 'bf16'"),
    ],
)
def test_keys_that_the_recipe_decides_and_unknown_ones_are_refused(keys, problem):
    with pytest.raises(ValidationError, match=problem):
        fields(zero_stage=1, deepspeed=keys)


def test_numbers_of_elements_may_be_written_as_deepspeed_documents_them():
    config = fields(zero_stage=2, deepspeed={"zero_optimization": {"reduce_bucket_size": 5e8}})
    assert ds_config(config, 1)["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    with pytest.raises(ValidationError, match="valid integer"):
        fields(zero_stage=2, deepspeed={"zero_optimization": {"reduce_bucket_size": 0.5}})


def test_keys_without_effect_are_refused():
    with pytest.raises(ValidationError, match="no effect with zero_stage 0"):
        fields(deepspeed={"zero_optimization": {"overlap_comm": True}})
    keys = {"communication_data_type": "bf16"}
    with pytest.raises(ValidationError, match="no effect with zero_stage 1 and precision bf16"):
        fields(zero_stage=1, precision="bf16", deepspeed=keys)


def test_only_keys_that_were_given_are_part_of_a_stage():
    assert fields().model_dump(mode="json")["deepspeed"] == {}
    given = {"zero_optimization": {"overlap_comm": False}}
    config = fields(zero_stage=1, deepspeed=given)
    assert config.model_dump(mode="json")["deepspeed"] == given
    assert TrainFields.model_validate(config.model_dump(mode="json")) == config
