"""The only module that imports DeepSpeed: one engine around a model."""

from __future__ import annotations

import importlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from recipes.data.loader import Batch
from recipes.engine import (
    distributed,
    fragments,
    full_weights,
    modes,
    optim,
    out_of_memory,
)
from recipes.engine.config import TrainFields
from recipes.engine.contract import Trainable
from recipes.engine.ds_config import ds_config
from recipes.engine.loss_scale import LossScale
from recipes.engine.reduction import Reduction


def start(
    model: nn.Module, groups: Sequence[optim.ParamGroup], config: TrainFields, device: torch.device
) -> Engine:
    """Wrap a model for training. The process group must exist (`distributed.init`).

    Raises:
        ConfigurationError: the global batch cannot be shared out over the ranks, a mode was asked
            for that the model does not have, or a trainable parameter is not in one group.
        OutOfMemoryError: the model does not fit.
    """
    world_size = distributed.world_size()
    optim.refuse_ungrouped(model, groups)
    settings = ds_config(config, world_size)
    deepspeed = import_deepspeed(device)
    modes.prepare(model, config, world_size)
    with out_of_memory.explained(config, world_size):
        loss = _Loss(model).to(device)
        optimizer = optim.build(groups, config.optimizer, config.batch_size)
        raw, _, _, _ = deepspeed.initialize(model=loss, optimizer=optimizer, config=settings)
    return Engine(raw, loss, config, groups)


class Engine:
    """One DeepSpeed engine, with the few calls the loop makes."""

    def __init__(
        self, raw: Any, loss: _Loss, config: TrainFields, groups: Sequence[optim.ParamGroup]
    ) -> None:
        self.raw = raw
        self._loss, self._config = loss, config
        self._ratios = [group.lr_ratio for group in groups]
        self._parameters = [p for group in groups for p in group.params]
        self._scale = LossScale(config.loss_scale) if config.precision == "fp16" else None
        # In ZeRO 1 to 3 DeepSpeed's own scalers have the scaled gradient clipped, never hear of an
        # overflow and may grow between two groups of one step; see `ds_config`.
        raw.torch_autocast_z0_gradscaler = None
        raw.enable_backward_allreduce = config.zero_stage > 0
        self._reduction: Reduction | None = None
        if config.zero_stage == 0 and distributed.world_size() > 1:
            dtype = config.deepspeed.communication_data_type or "fp32"
            self._reduction = Reduction(self.model.parameters(), dtype)
        if config.zero_stage:
            raw.optimizer.torch_autocast_gradscaler = None

    @property
    def model(self) -> nn.Module:
        """The model, as the method built it."""
        return self._loss.model

    @property
    def spans_ranks(self) -> bool:
        """Whether the loss changes with the number of ranks."""
        return modes.spans_ranks(self.model, self._config)

    def train_mode(self) -> None:
        """Switch dropout and batch statistics on."""
        self.raw.train()

    def backward(
        self, batch: Batch, between: Callable[[], None] | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Forward and backward of one micro-batch; returns its loss and metrics, detached.

        `between` is called when the forward pass has been made. The last micro-batch of a step also
        reduces the gradients over the ranks.

        Raises:
            OutOfMemoryError: as every other call that computes.
        """
        with self._explained():
            loss = self.raw(batch)
            if between is not None:
                between()
            if self._reduction is not None:
                self._reduction.expect(last=self.raw.is_gradient_accumulation_boundary())
            self.raw.backward(self._scaled(loss))
            if self._reduction is not None:
                self._reduction.finish()
        return loss.detach(), self._loss.metrics

    def announce_reduction(self, enter: Callable[[], Any], leave: Callable[[Any], Any]) -> None:
        """Have `enter` called where a backward pass only waits for other ranks' gradients.

        `leave` gets what that returned where the pass goes on.
        """
        if self._reduction is not None:
            self._reduction.on_last = enter
            return
        reduce = self.raw.allreduce_gradients

        def told(*arguments: Any, **options: Any) -> Any:
            before = enter()
            try:
                return reduce(*arguments, **options)
            finally:
                leave(before)

        self.raw.allreduce_gradients = told

    def end_micro_batch(self) -> None:
        """Count a micro-batch that is not the last of its step."""
        self.raw.step()

    def gradient_norm(self) -> Tensor | None:
        """L2 norm of the reduced gradient before clipping; None where only the step finds it out.

        Between the last backward and `step`.
        """
        if self._config.zero_stage or self._scale is not None:
            return None
        return nn.utils.get_total_norm(self._gradients())

    def step(self, lr: float) -> float | None:
        """Apply the gradient, clipped; returns its norm before that where `gradient_norm` did not.

        A gradient that is not finite is left out on every rank alike. The norm is infinite then;
        but None where an fp16 loss was scaled too high, which is not the model's fault: the next
        one is scaled by half.
        """
        for group, ratio in zip(self.raw.optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = lr * ratio
        with self._explained():
            if self._config.zero_stage:
                return self._step_zero()
            return self._step_plain()

    def skip(self) -> None:
        """Drop the gradient of this step's micro-batches in place of `step`; every rank calls it.

        Weights, optimizer state and loss scale stay as they are.
        """
        if not self._config.zero_stage:
            self.raw.zero_grad()
            self.raw.micro_steps += 1
            return
        # All that ZeRO collected is dropped where DeepSpeed finds the norm not finite: it is told
        # that (zero/stage_1_and_2.py and zero/stage3.py, step).
        name = "_get_norm_groups" if self._config.zero_stage == 3 else "scaled_global_norm"
        broken = torch.tensor(-1.0)
        answer = [broken] if self._config.zero_stage == 3 else broken
        setattr(self.raw.optimizer, name, lambda: answer)
        try:
            self.raw.step()
        finally:
            delattr(self.raw.optimizer, name)

    def loss_scale(self) -> float | None:
        """What the next fp16 loss is multiplied with; None in other precisions."""
        return None if self._scale is None else self._scale.value

    def scaler_state(self) -> dict[str, float]:
        """The loss scale for a checkpoint, plain numbers; empty where there is none."""
        return {} if self._scale is None else self._scale.state()

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Continue from what `scaler_state` gave; that of another precision says nothing here."""
        if self._scale is not None and state:
            self._scale.load(state)

    def weights_finite(self) -> bool:
        """Whether the weights are finite that this rank holds: its share of them under ZeRO.

        Without what ZeRO pads its shares with, which may be anything.
        """
        held = fragments.slots(self.raw, self.model)
        return all(bool(torch.isfinite(slot.read(slot.owner)).all()) for slot in held)

    def full_weights(self) -> AbstractContextManager[None]:
        """Within it, `model` is whole on every rank and may be evaluated, but not changed."""
        if self._config.zero_stage == 3:
            return full_weights.whole(self.model, self.raw.optimizer)
        return nullcontext()

    def gather_weights(self) -> None:
        """Make `model` an ordinary module again, whole on every rank, when training is over.

        A collective. The engine is of no use afterwards under ZeRO 3.
        """
        if self._config.zero_stage == 3:
            full_weights.make_plain(self.model, self.raw.optimizer)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    def _scaled(self, loss: Tensor) -> Tensor:
        """What to derive; ZeRO scales by itself, and heeds that in the norm and in clipping."""
        if self._scale is None:
            return loss
        if self._config.zero_stage:
            self.raw.optimizer.override_loss_scale(self._scale.value)
            return loss
        return loss * self._scale.value

    def _step_plain(self) -> float | None:
        if self._scale is None:
            self.raw.step()
            return None
        gradients = self._gradients()
        norm = float(nn.utils.get_total_norm(gradients)) / self._scale.value
        if not math.isfinite(norm):
            self.skip()
            return self._after_overflow()
        torch._foreach_mul_(gradients, 1.0 / self._scale.value)
        self.raw.step()
        self._scale.stepped()
        return norm

    def _step_zero(self) -> float | None:
        self.raw.step()
        if self.raw.optimizer.overflow:
            return self._after_overflow()
        if self._scale is not None:
            self._scale.stepped()
        return float(self.raw.get_global_grad_norm())

    def _after_overflow(self) -> float | None:
        if self._scale is not None and self._scale.overflowed():
            return None
        return math.inf

    def _explained(self) -> AbstractContextManager[None]:
        return out_of_memory.explained(self._config, distributed.world_size())


class _Loss(nn.Module):
    """Gives DeepSpeed the forward pass it expects: a batch in, a scalar out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.metrics: Mapping[str, Tensor] = {}

    def forward(self, batch: Batch) -> Tensor:
        """The model's loss; its metrics stay in `metrics`."""
        model: Trainable = self.model  # type: ignore[assignment]
        output = model.loss(batch)
        self.metrics = {name: value.detach() for name, value in output.metrics.items()}
        return output.loss


def prepare_environment(device: torch.device) -> None:
    """Tell DeepSpeed, which reads the environment, what this rank computes on.

    It takes LOCAL_RANK for the number of the device. Where SLURM shows every rank only its own GPU,
    that GPU has number 0 whatever the rank, so the device counts; a number left by an MPI launcher
    would be compared with it.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("LOCAL_RANK", "0")
    else:
        os.environ["LOCAL_RANK"] = str(device.index)
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this device.

    On a CPU its communication module would compile a C++ extension at start-up (28 s, and an error
    where there is no compiler); Gloo does the same work. The import goes by name because
    `deepspeed.comm` rebinds its attribute `torch` to PyTorch.
    """
    prepare_environment(device)
    deepspeed = importlib.import_module("deepspeed")
    if device.type == "cpu":
        communication: Any = importlib.import_module("deepspeed.comm.torch")
        communication.build_shm_op = lambda: None
    # Said at every start about calls of DeepSpeed's own.
    for call in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", f".*{call}.*", FutureWarning)
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return deepspeed
