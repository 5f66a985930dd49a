"""DeepSpeed's configuration from a recipe's training fields; pure and torch-free."""

from __future__ import annotations

from typing import Any

from recipes.contract import ConfigurationError
from recipes.engine.config import TrainFields


def ds_config(config: TrainFields, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe's training fields; pure.

    bf16 is autocast over fp32 weights: batch-norm statistics, which in bf16 stop moving, and the
    optimizer's weights stay fp32, and no second copy of the weights is needed. Gradients are
    reduced in fp32 (no module is declared safe for less).

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
        "zero_optimization": {"stage": config.zero_stage},
        # SGD is not on DeepSpeed's list of optimizers tested with ZeRO, plain as it is.
        "zero_allow_untested_optimizer": config.optimizer.name == "sgd",
    }
    if config.precision == "bf16":
        value["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    return value
