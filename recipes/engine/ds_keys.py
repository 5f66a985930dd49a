"""What a recipe's `deepspeed:` block may pass on to DeepSpeed 0.19, by name and type; torch-free.

A test compares the names with those the installed DeepSpeed reads, so a new release of it cannot
bring a key that is neither passed on nor refused with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from recipes.config import Strict


def _whole(value: Any) -> Any:
    """5e8, which DeepSpeed's documentation writes, as the whole number it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Elements = Annotated[
    int,
    BeforeValidator(_whole),
    Field(ge=0, description="a number of tensor elements, not of bytes"),
]

_BATCH = "batch_size, micro_batch and the number of ranks say it"
_CHECKPOINTS = "checkpoints are written by the training loop: see checkpoint"
_DATA = "data is read by the recipe's own loader: see data, clip and workers"
_OFFLOAD = "use offload"
_OPTIMIZER = "use optimizer"
_PARALLEL = "training here is data parallel only"
_PRECISION = "use precision"
_SUMS = "gradients are summed as fp32, so it makes no difference when they are divided"
_SPEED = "the training loop measures and reports its speed: see log_every and profile"
_KERNELS = "it needs kernels that DeepSpeed compiles on the node, which is not done here"


class _Keys(Strict):
    """Keys that are passed on as they are where they are given, and others that are refused."""

    REFUSED: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_refused(cls, value: Any) -> Any:
        given = value if isinstance(value, Mapping) else {}
        found = [reason for key in given if (reason := cls._reason(str(key)))]
        if found:
            raise ValueError("no place for " + "; ".join(found))
        return value

    @classmethod
    def _reason(cls, key: str) -> str:
        """Why a key is refused, misspelled or not; empty if it is not or nobody knows it."""
        known = [*cls.model_fields, *cls.REFUSED]
        meant = next(iter(get_close_matches(key, known, n=1, cutoff=0.8)), "")
        if meant not in cls.REFUSED:
            return ""
        spelled = key if key == meant else f"{key} ({meant}?)"
        return f"{spelled}: {cls.REFUSED[meant]}"

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys not given, so that a stage's identity does not depend on their list."""
        return {key: value for key, value in serialize(self).items() if value is not None}


class ZeroKeys(_Keys):
    """`deepspeed.zero_optimization`: how ZeRO moves data; what is not given stays as it is here.

    Those that begin with `stage3_` or are said to be for stage 3 do nothing at the other stages.
    """

    REFUSED: ClassVar[Mapping[str, str]] = {
        "stage": "use zero_stage",
        "offload_optimizer": _OFFLOAD,
        "offload_param": _OFFLOAD,
        "cpu_offload": _OFFLOAD,
        "cpu_offload_param": _OFFLOAD,
        "cpu_offload_use_pin_memory": _OFFLOAD,
        "compute_grad_norm": "the norm is always computed: it tells that training diverged",
        "elastic_checkpoint": _CHECKPOINTS,
        "load_from_fp32_weights": _CHECKPOINTS,
        "pipeline_loading_checkpoint": _CHECKPOINTS,
        "gather_16bit_weights_on_model_save": _CHECKPOINTS,
        "stage3_gather_16bit_weights_on_model_save": _CHECKPOINTS,
        "stage3_gather_fp16_weights_on_model_save": _CHECKPOINTS,
        "leaf_module": "it is for mixtures of experts",
        "legacy_stage1": "DeepSpeed has removed it",
        "save_muon_momentum_buffer_in_memory": _OPTIMIZER,
        "zenflow": "it changes when weights are updated, which the training loop does not know",
        "zero_hpz_partition_size": "the training loop's checkpoints know one partition of weights",
        "zero_quantized_weights": _KERNELS,
        "zero_quantized_nontrainable_weights": _KERNELS,
        "zero_quantized_gradients": _KERNELS,
    }

    contiguous_gradients: bool | None = None
    reduce_scatter: bool | None = None
    reduce_bucket_size: Elements | None = Field(None, gt=0)
    use_multi_rank_bucket_allreduce: bool | None = None
    allgather_partitions: bool | None = None
    allgather_bucket_size: Elements | None = Field(None, multiple_of=2)
    overlap_comm: bool | None = Field(
        None, description="reduce gradients while backward goes on; read docs/training.md first"
    )
    sub_group_size: Elements | None = Field(None, gt=0, description="stage 3")
    stage3_prefetch_bucket_size: Elements | None = None
    stage3_param_persistence_threshold: Elements | None = None
    stage3_model_persistence_threshold: Elements | None = None
    stage3_max_live_parameters: Elements | None = None
    stage3_max_reuse_distance: Elements | None = None
    stage3_module_granularity_threshold: Elements | None = None
    stage3_use_all_reduce_for_fetch_params: bool | None = None
    stage3_allgather_sequential: bool | None = None
    ignore_unused_parameters: bool | None = None
    round_robin_gradients: bool | None = None
    parameter_alignment: bool | None = None
    memory_efficient_linear: bool | None = Field(None, description="stage 3")
    override_module_apply: bool | None = Field(None, description="stage 3")
    log_trace_cache_warnings: bool | None = Field(None, description="stage 3")
    enable_sanity_checks: bool | None = Field(None, description="stage 3")


class DeepSpeedKeys(_Keys):
    """`deepspeed`: keys of DeepSpeed's configuration that the recipe has no field of its own for.

    What a field of the recipe decides is refused here, so that nothing is said twice.
    """

    REFUSED: ClassVar[Mapping[str, str]] = {
        "train_batch_size": "use batch_size",
        "train_micro_batch_size_per_gpu": "use micro_batch",
        "gradient_accumulation_steps": _BATCH,
        "managed_gradient_accumulation": _BATCH,
        "gradient_clipping": "use clip_grad",
        "gradient_allreduce_op": "the gradient is the mean over the clips of a batch",
        "prescale_gradients": _SUMS,
        "gradient_predivide_factor": _SUMS,
        "fp16": _PRECISION,
        "bf16": _PRECISION,
        "bfloat16": _PRECISION,
        "torch_autocast": _PRECISION,
        "data_types": _PRECISION,
        "optimizer": _OPTIMIZER,
        "scheduler": "use optimizer.schedule",
        "zero_allow_untested_optimizer": "it follows from optimizer",
        "zero_force_ds_cpu_optimizer": "it follows from offload",
        "activation_checkpointing": "use activation_checkpointing beside this block",
        "compile": "use compile beside this block",
        "checkpoint": _CHECKPOINTS,
        "datastates_ckpt": _CHECKPOINTS,
        "data_efficiency": _DATA,
        "dataloader_drop_last": _DATA,
        "vocabulary_size": _DATA,
        "sequence_parallel_size": _PARALLEL,
        "seq_parallel_communication_data_type": _PARALLEL,
        "data_parallel_size": _PARALLEL,
        "tensor_parallel": _PARALLEL,
        "expert_parallel": _PARALLEL,
        "use_data_before_expert_parallelism": _PARALLEL,
        "pipeline": _PARALLEL,
        "hybrid_engine": "it is for inference",
        "weight_quantization": "it is for inference",
        "aio": "offload goes to the CPU's memory, not to disk",
        "autotuning": "micro_batch is part of the result, so nothing may choose it",
        "disable_allgather": "DeepSpeed does nothing with it",
        "disable_python_gc": "garbage would pile up, as nothing here collects it",
        "steps_per_print": "use log_every",
        "wall_clock_breakdown": _SPEED,
        "memory_breakdown": _SPEED,
        "flops_profiler": _SPEED,
        "comms_logger": _SPEED,
        "timers": _SPEED,
        "dump_state": _SPEED,
        "log_level": "DeepSpeed's messages are kept to warnings",
        "tensorboard": "metrics go to MLflow: see tracking",
        "wandb": "metrics go to MLflow: see tracking",
        "csv_monitor": "metrics go to MLflow: see tracking",
        "comet": "metrics go to MLflow: see tracking",
    }

    zero_optimization: ZeroKeys | None = None
    communication_data_type: Literal["fp32", "fp16", "bf16"] | None = Field(
        None, description="gradients between ranks; nothing but precision fp32 or zero_stage 0"
    )
