"""What a recipe says of training: length, batch, optimizer, precision, checkpoints; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recipes.config import Strict
from recipes.engine.ds_keys import DeepSpeedKeys

NonNegative = Annotated[float, Field(ge=0.0)]


class OptimizerConfig(Strict):
    """Optimizer and learning-rate schedule.

    `adam` adds `weight_decay` to the gradient (L2), `adamw`, `lars` and `lamb` decay the weights
    themselves. `lars` and `lamb` scale the step of every tensor by the ratio of the norms of weight
    and update; they leave norms and biases out of that. Betas and epsilon are PyTorch's defaults,
    for `lamb` its authors'.

    `lr` is the rate itself, or, with `lr_batch`, the rate for that many clips in a batch: it is
    scaled to `batch_size` by `lr_rule` (Goyal et al. 2017, linear; Krizhevsky 2014, square root).

    The rate rises linearly over the warm-up (`warmup_steps`, else `warmup_epochs`), then follows
    `schedule`: constant, cosine down to `min_lr_ratio` of `lr` at the end of training, step: times
    `gamma` at each of `milestones` (epochs), or restarts: cosine periods of `restart_epochs`, each
    `restart_factor` times as long as the one before (Loshchilov and Hutter 2017).
    """

    name: Literal["adam", "adamw", "sgd", "lars", "lamb"] = "adam"
    lr: float = Field(1e-3, gt=0.0)
    lr_batch: int | None = Field(None, ge=1, description="clips in a batch that lr is given for")
    lr_rule: Literal["linear", "sqrt"] = "linear"
    weight_decay: NonNegative = 1e-5
    decay_norm_and_bias: bool = Field(True, description="False: no decay of norms and biases")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="sgd, lars")
    nesterov: bool = Field(False, description="sgd only")
    betas: tuple[float, float] = Field((0.9, 0.999), description="adam, adamw, lamb")
    trust_coefficient: float = Field(0.001, gt=0.0, description="lars only")
    warmup_epochs: NonNegative = 0.0
    warmup_steps: int | None = Field(None, ge=0, description="overrides warmup_epochs")
    schedule: Literal["constant", "cosine", "step", "restarts"] = "constant"
    milestones: tuple[NonNegative, ...] = Field((), description="epochs, schedule step only")
    gamma: float = Field(0.1, gt=0.0, le=1.0, description="schedule step only")
    restart_epochs: float | None = Field(None, gt=0.0, description="schedule restarts only")
    restart_factor: float = Field(1.0, ge=1.0, description="schedule restarts only")
    min_lr_ratio: float = Field(0.0, ge=0.0, le=1.0, description="schedules cosine and restarts")

    @model_validator(mode="after")
    def _fits_together(self) -> OptimizerConfig:
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule step needs milestones: the epochs at which the rate drops")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError("milestones must rise")
        if self.schedule == "restarts" and self.restart_epochs is None:
            raise ValueError(
                "schedule restarts needs restart_epochs: the length of the first period"
            )
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @model_validator(mode="after")
    def _all_has_an_effect(self) -> OptimizerConfig:
        """A key that would do nothing is a mistake, if only about another key."""
        name, schedule = f"optimizer {self.name}", f"schedule {self.schedule}"
        idle = [
            ("milestones", bool(self.milestones) and self.schedule != "step", schedule),
            (
                "restart_epochs",
                self.restart_epochs is not None and self.schedule != "restarts",
                schedule,
            ),
            (
                "restart_factor",
                self.restart_factor != 1.0 and self.schedule != "restarts",
                schedule,
            ),
            (
                "min_lr_ratio",
                self.min_lr_ratio != 0.0 and self.schedule not in ("cosine", "restarts"),
                schedule,
            ),
            ("nesterov", self.nesterov and self.name != "sgd", name),
            ("lr_rule", self.lr_rule != "linear" and self.lr_batch is None, "no lr_batch"),
        ]
        for key, found, because in idle:
            if found:
                raise ValueError(f"{key} has no effect with {because}: remove it")
        return self


class CheckpointConfig(Strict):
    """When to save besides at a stop and at the end: by time, by optimizer steps, or both.

    By time, saves come as often as 1 % of the time standing still and 10 % of the time writing
    allow, a minute apart at least, and at the latest when `minutes` of work would be lost. Ten is
    about Young's optimum for a save of 5 s and a preemption every 4 h or rarer.
    """

    minutes: float | None = Field(10.0, gt=0.0)
    steps: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=2, description="a damaged newest one needs another to fall back to")
    keep_every: int | None = Field(
        None, ge=1, description="checkpoints of multiples of this many steps are never deleted"
    )
    asynchronous: bool = Field(True, description="written while training goes on")

    @model_validator(mode="after")
    def _kept_ones_are_written(self) -> CheckpointConfig:
        every, steps = self.keep_every, self.steps
        if every is not None and steps is None:
            raise ValueError(f"keep_every {every} needs steps, for example {every}: when to save")
        if every is not None and steps is not None and every % steps:
            raise ValueError(
                f"keep_every {every} must be a multiple of steps {steps}: no other ones are saved"
            )
        return self


class LossScaleConfig(Strict):
    """Dynamic scaling of the fp16 loss (Micikevicius et al. 2018); PyTorch's defaults.

    The scale is halved where a gradient overflows, which skips that step, and doubled after
    `growth_interval` steps without one.
    """

    initial: float = Field(65536.0, gt=0.0)
    growth_interval: int = Field(2000, ge=1)


class ProfileConfig(Strict):
    """Writes a torch trace of optimizer steps `first` to `last` (from 1) of rank 0."""

    first: int = Field(10, ge=1)
    last: int = Field(12, ge=1)

    @model_validator(mode="after")
    def _rises(self) -> ProfileConfig:
        if self.last < self.first:
            raise ValueError(f"last {self.last} lies before first {self.first}")
        return self


class TrainFields(Strict):
    """Fields every stage that trains has at its top level.

    `batch_size` is global: clips that make one optimizer step over all devices. `micro_batch` is
    the clips in one forward on one device, which batch-norm and losses within a device depend on.
    Accumulation = batch_size / (micro_batch * world size), a whole number.

    A video that cannot be read is replaced by another, always the same one. So is one on which two
    decoding processes in a row end or need more than `read_seconds`: raise it where files come from
    a slow network. Long videos are given more by themselves.
    """

    epochs: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; instead of epochs")
    batch_size: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    loss_scale: LossScaleConfig = LossScaleConfig()
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="to the CPU's memory: the optimizer's state; all: the weights too"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again in backward instead of keeping them"
    )
    compile: bool = Field(False, description="torch.compile of the model")
    channels_last: bool = Field(False, description="memory format of 3-D convolutions on CUDA")
    sync_batch_norm: bool = Field(False, description="batch statistics over all ranks")
    ema_decay: float | None = Field(
        None, gt=0.0, lt=1.0, description="export a moving average of the weights"
    )
    clip_grad: float | None = Field(None, gt=0.0, description="largest L2 norm of the gradient")
    deterministic: bool = Field(False, description="slower CUDA kernels that repeat bit by bit")
    skip_non_finite: int = Field(
        0,
        ge=0,
        description="steps in a row with a loss or gradient that is not finite to leave out",
    )
    deepspeed: DeepSpeedKeys = Field(
        DeepSpeedKeys(),
        description="further keys of DeepSpeed's configuration, as it documents them",
    )
    checkpoint: CheckpointConfig = CheckpointConfig()
    workers: int = Field(2, ge=0, description="decoding processes a rank; 0: the rank, unprotected")
    read_seconds: float = Field(
        20.0, gt=0.0, description="for a sample; a decoding process that takes longer is replaced"
    )
    max_replaced_share: float = Field(
        0.2, ge=0.0, le=1.0, description="of samples whose file cannot be read; more ends training"
    )
    log_every: int = Field(10, ge=1, description="optimizer steps between metrics")
    profile: ProfileConfig | None = None

    @model_validator(mode="after")
    def _length_and_batch(self) -> TrainFields:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give epochs or max_steps, one of the two")
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch {self.micro_batch}"
            )
        steps = self.max_steps
        if self.profile is not None and steps is not None and self.profile.last > steps:
            raise ValueError(f"profile.last {self.profile.last} lies behind max_steps {steps}")
        return self

    @model_validator(mode="after")
    def _precision_fits(self) -> TrainFields:
        if self.loss_scale != LossScaleConfig() and self.precision != "fp16":
            raise ValueError(
                f"loss_scale has no effect with precision {self.precision}: only fp16 needs it"
            )
        return self

    @model_validator(mode="after")
    def _zero_stage_fits(self) -> TrainFields:
        """What depends on whether ZeRO holds optimizer state (1), gradients (2), weights (3)."""
        stage = self.zero_stage
        if self.offload == "optimizer" and stage == 0:
            raise ValueError("offload optimizer needs zero_stage 1, 2 or 3; here it is 0")
        if self.offload == "all" and stage != 3:
            raise ValueError(
                f"offload all moves weights, so it needs zero_stage 3; here it is {stage}"
            )
        if self.optimizer.name in ("lars", "lamb") and stage:
            raise ValueError(
                f"optimizer {self.optimizer.name} needs zero_stage 0; here it is {stage}: ZeRO "
                "joins tensors into one, so the norms of single tensors that it goes by are gone"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_keys_fit(self) -> TrainFields:
        keys, zero, stage = self.deepspeed, self.deepspeed.zero_optimization, self.zero_stage
        if zero is not None and not stage:
            raise ValueError(
                "deepspeed.zero_optimization has no effect with zero_stage 0: remove it"
            )
        if keys.communication_data_type and stage and self.precision != "fp32":
            raise ValueError(
                f"deepspeed.communication_data_type has no effect with zero_stage {stage} and "
                f"precision {self.precision}: gradients go as fp32; remove it"
            )
        return self

    def accumulation(self, world_size: int) -> int:
        """Micro-batches one rank runs for one optimizer step.

        Raises:
            ValueError: the global batch cannot be shared out; says which rank counts would do.
        """
        clips = self.micro_batch * world_size
        if self.batch_size % clips:
            whole = self.batch_size // self.micro_batch
            fits = [n for n in range(1, whole + 1) if whole % n == 0]
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch {self.micro_batch} x "
                f"{world_size} ranks; rank counts that fit: {', '.join(map(str, fits))}"
            )
        return self.batch_size // clips


# Dotted paths of fields that change how fast or how observably a stage trains, never the result.
TRAIN_TRANSIENT = frozenset(
    {"checkpoint", "workers", "read_seconds", "max_replaced_share", "log_every", "profile"}
)
