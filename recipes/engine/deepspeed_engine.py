"""The only module that imports DeepSpeed: one engine around a model."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.data.loader import Batch
from recipes.engine import distributed, optim
from recipes.engine.config import TrainFields
from recipes.engine.contract import Trainable
from recipes.engine.ds_config import ds_config


def start(
    model: nn.Module, groups: Sequence[optim.ParamGroup], config: TrainFields, device: torch.device
) -> Engine:
    """Wrap a model for training. The process group must exist (`distributed.init`).

    Raises:
        ConfigurationError: the global batch cannot be shared out over the ranks.
    """
    settings = ds_config(config, distributed.world_size())
    deepspeed = import_deepspeed(device)
    optimizer = optim.build(groups, config.optimizer, config.batch_size)
    engine, _, _, _ = deepspeed.initialize(
        model=_Loss(model).to(device),
        optimizer=optimizer,
        config=settings,
    )
    # Otherwise every save drops two scripts beside the checkpoints.
    engine._copy_recovery_script = lambda path: None
    return Engine(engine, config, groups)


class Engine:
    """One DeepSpeed engine, with the few calls the loop makes."""

    def __init__(
        self, engine: Any, config: TrainFields, groups: Sequence[optim.ParamGroup]
    ) -> None:
        self._engine = engine
        self._config = config
        self._ratios = [group.lr_ratio for group in groups]

    @property
    def model(self) -> nn.Module:
        """The model, as the method built it."""
        model: nn.Module = self._engine.module.model
        return model

    def train_mode(self) -> None:
        """Switch dropout and batch statistics on."""
        self._engine.train()

    def backward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Forward and backward of one micro-batch; returns its loss and metrics, detached.

        The last micro-batch of a step also reduces the gradients over the ranks.
        """
        loss = self._engine(batch)
        self._engine.backward(loss)
        return loss.detach(), self._engine.module.metrics

    def end_micro_batch(self) -> None:
        """Count a micro-batch that is not the last of its step."""
        self._engine.step()

    def gradient_norm(self) -> Tensor | None:
        """L2 norm of the reduced gradient before clipping; None where only the step finds it out.

        Between the last backward and `step`.
        """
        if self._config.zero_stage:
            return None
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def step(self, lr: float) -> float | None:
        """Apply the gradient; returns its norm where ZeRO computed it, infinite if it skipped."""
        for group, ratio in zip(self._engine.optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = lr * ratio
        self._engine.step()
        if not self._config.zero_stage:
            return None
        if self._engine.optimizer.overflow:
            return float("inf")
        return float(self._engine.get_global_grad_norm())

    def save(self, directory: Path, tag: str) -> None:
        """Write this rank's share of weights and optimizer state into directory/tag."""
        self._engine.save_checkpoint(str(directory), tag=tag, save_latest=False)

    def load(self, directory: Path, tag: str) -> None:
        """Read what `save` wrote. It unpickles: the files' digests must have been checked.

        Raises:
            RuntimeError: the checkpoint does not fit the model; nothing is left out silently.
        """
        path, _ = self._engine.load_checkpoint(str(directory), tag=tag)
        if path is None:
            raise RuntimeError(f"DeepSpeed found nothing to load in {directory / tag}")


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
    # Said at every start about a call of DeepSpeed's own.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor.*", FutureWarning)
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return deepspeed
