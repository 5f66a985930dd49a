"""DeepSpeed's configuration from a recipe's training fields; pure and torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes.contract import ConfigurationError
from recipes.engine.config import TrainFields

# Elements of a gradient bucket: 100 MB of fp32. ZeRO allocates a bucket whole (DeepSpeed's default
# of 5e8 elements is 2 GB, whatever the size of the model), larger ones gain nothing once a message
# takes milliseconds, and any tensor of the backbones here (at most 17 M elements) fits.
BUCKET_ELEMENTS = 25_000_000

_TORCH_DTYPE = {"bf16": "bfloat16", "fp16": "float16"}
# DeepSpeed asks whether optimizers it has not tried with ZeRO are meant; it has tried Adam's.
_TRIED_WITH_ZERO = ("adam", "adamw")


def ds_config(config: TrainFields, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe's training fields.

    bf16 and fp16 are autocast over fp32 weights: batch-norm statistics, which in 16 bits stop
    moving, and the optimizer's weights stay fp32, and no second copy of the weights is needed.
    Gradients are reduced in fp32 (no module is declared safe for less).

    fp16 needs its loss scaled. DeepSpeed 0.19.8 does that by a `torch.amp.GradScaler` that is right
    in stage 0 only: in ZeRO 1 to 3 it is never told of an overflow, the scaled gradient is what is
    clipped, and it grows between the parameter groups of one step. There the scale must be set by
    `override_loss_scale`, which norm and clipping heed, in place of that scaler.

    Raises:
        ConfigurationError: the global batch cannot be shared out over the ranks.
    """
    try:
        accumulation = config.accumulation(world_size)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    value: dict[str, Any] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.clip_grad or 0.0,
        "steps_per_print": None,
        # It would wait for the device at the begin and the end of every step.
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": _zero(config),
        "zero_allow_untested_optimizer": config.optimizer.name not in _TRIED_WITH_ZERO,
        # PyTorch's fused optimizers run on the CPU too; DeepSpeed's own would be compiled there.
        "zero_force_ds_cpu_optimizer": False,
    }
    if config.precision in _TORCH_DTYPE:
        value["torch_autocast"] = {
            "enabled": True,
            "dtype": _TORCH_DTYPE[config.precision],
            "lower_precision_safe_modules": [],
        }
    return _merged(value, config.deepspeed.model_dump(mode="json"))


def _zero(config: TrainFields) -> dict[str, Any]:
    """ZeRO's part. Reducing during backward is off, also in stage 3, where DeepSpeed has it on:
    its buckets can be read before they are filled (DeepSpeed issues 5545, open, and 8061), and of
    the small models here most time does not go into reducing. A recipe can switch it on.
    """
    value: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage:
        value |= {
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        }
    if config.offload != "none":
        value["offload_optimizer"] = {"device": "cpu"}
    if config.offload == "all":
        value["offload_param"] = {"device": "cpu"}
    return value


def _merged(value: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with the keys of `extra`; a mapping there is merged into one that is here."""
    merged = dict(value)
    for key, new in extra.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            merged[key] = _merged(old, new)
        else:
            merged[key] = new
    return merged
