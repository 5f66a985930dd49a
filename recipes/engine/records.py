"""What a training writes down as it goes: metrics, progress, speed, and who or what holds it up."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from recipes.contract import Progress, StageContext
from recipes.engine import distributed, flops, speed, state
from recipes.engine.config import TrainFields
from recipes.engine.contract import Batches
from recipes.engine.schedule import base_lr
from recipes.engine.shortage import Supply, shortage
from recipes.engine.stragglers import Stragglers

log = logging.getLogger(__name__)

_REPLACED = "data/replaced"  # share of samples whose file could not be read
_SKIPPED = "train/skipped_steps"
_HOST_BYTES = 64  # of a host's name
_TELLING_SECONDS = 1.0  # a shorter window says nothing about a shortage


class Records:
    """Everything one rank notes of a training; `add` and `log` are called on all ranks."""

    def __init__(
        self,
        ctx: StageContext,
        config: TrainFields,
        source: Batches,
        total: int,
        clock: speed.Clock,
    ) -> None:
        self._ctx, self._config, self._source, self._total = ctx, config, source, total
        self._meter, self._history = state.Meter(), state.History()
        self.metrics: dict[str, float] = {}
        self.skipped = 0
        self.speed = speed.Speed(config.batch_size, ctx.world_size, clock)
        self.shortage: str | None = None
        self._short_epoch = -1
        self._flops_per_clip: float | None = None
        self._stragglers: Stragglers | None = None
        self._usage_before = _usage(source)
        self._window_began = time.perf_counter()
        self._started = False

    @property
    def history(self) -> list[tuple[int, dict[str, float]]]:
        """(step, metrics) of what was logged, thinned."""
        return self._history.entries

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor], replaced: float) -> None:
        """Count a micro-batch; nothing waits for the device."""
        share = torch.full((), replaced, device=loss.device)
        self._meter.add({"loss": loss, **metrics, _REPLACED: share})

    def counted(self, flops_per_clip: float, parameters: int) -> None:
        """The forward pass of a clip takes so many operations: say what is going to run."""
        self._flops_per_clip = flops_per_clip
        if distributed.is_main():
            steps = self._source.steps_per_epoch
            print(
                announcement(
                    self._config,
                    self._ctx.world_size,
                    parameters=parameters,
                    flops_per_clip=flops_per_clip,
                    steps=self._total,
                    steps_per_epoch=steps,
                ),
                flush=True,
            )

    def log(
        self, step: int, lr: float, norm: Tensor | None, scale: float | None, device: torch.device
    ) -> None:
        """Log the means since the last time, where it is due.

        Args:
            step: optimizer steps done.
            lr: of the last one.
            norm: of its gradient; None where it was left out.
            scale: of the fp16 loss.
            device: this rank's.
        """
        if step % self._config.log_every and step != self._total:
            return
        epoch = step // self._source.steps_per_epoch
        means = self._meter.take()
        replaced = means.pop(_REPLACED, None)
        self.metrics = {f"train/{name}": value for name, value in means.items()}
        self.metrics |= {"train/lr": lr, "train/epoch": epoch}
        if replaced is not None:
            self.metrics[_REPLACED] = replaced
        if norm is not None:
            self.metrics["train/grad_norm"] = float(norm)
        if scale is not None:
            self.metrics["train/loss_scale"] = scale
        if self.skipped:
            self.metrics[_SKIPPED] = self.skipped
        self._history.add(step, self.metrics)
        self.speed.close_window()
        figures = self._figures(device, epoch)
        self._ctx.log_metrics(step, {**self.metrics, **figures})

    def end_step(self) -> None:
        """A step ended. While the first one waits for its data, the reading processes start."""
        self.speed.end_step()
        if not self._started:
            self._started = True
            self._usage_before, self._window_began = _usage(self._source), time.perf_counter()

    def report(self, step: int, loss: Tensor) -> None:
        """Tell how far it is, on rank 0, about once a second and at the end."""
        if not distributed.is_main() or not (self.speed.report_due() or step == self._total):
            return
        began, per_epoch = time.monotonic(), self._source.steps_per_epoch
        self._ctx.report_progress(
            Progress(
                phase="train",
                step=step,
                steps=self._total,
                epoch=step // per_epoch,
                epochs=math.ceil(self._total / per_epoch),
                loss=float(loss),
                clips_per_second=self.speed.clips_per_second,
                seconds_left=self.speed.seconds_left(self._total - step),
                data_wait_share=self.speed.data_wait_share,
            )
        )
        self.speed.reported(time.monotonic() - began)

    def state(self) -> dict[str, Any]:
        """For the checkpoint: plain JSON; all but the meter is equal on all ranks."""
        # As text, equal content is equal bytes.
        logged = {"metrics": self.metrics, "history": self._history.state()}
        return {
            "meter": self._meter.state(),
            "logged": json.dumps(logged),
            "skipped": self.skipped,
        }

    def load(self, content: Mapping[str, Any], device: torch.device) -> None:
        """Continue from `state`."""
        self._meter.load(content["meter"], device)
        logged = json.loads(content["logged"])
        self.metrics = dict(logged["metrics"])
        self._history.load(logged["history"])
        self.skipped = int(content["skipped"])

    def _figures(self, device: torch.device, epoch: int) -> dict[str, float]:
        """Speed and memory of the last window; what all ranks say of it goes into warnings."""
        split = self.speed.split()
        supply, usage = self._supply(split), _usage(self._source)
        if not split:
            return {}
        held = speed.memory(device, usage.pids if usage else ())
        rate = split["speed/clips_per_second_per_device"]
        if self._flops_per_clip is not None:
            split |= flops.achieved(self._flops_per_clip, rate, device, self._config.precision)
        own = speed.own_seconds(self.speed.window, self._config.zero_stage)
        mine = [own, *supply, *held.values()]
        table = _from_all(mine, device)
        self._warn(table, split, epoch)
        largest = table[:, 1 + len(supply) :].amax(0).tolist()
        return {**split, **dict(zip(held, largest, strict=True))}

    def _supply(self, split: Mapping[str, float]) -> list[float]:
        """Shares of this rank's last window, for `Supply`: wait, transfer, busy, computing."""
        now, usage = time.perf_counter(), _usage(self._source)
        passed, self._window_began = now - self._window_began, now
        busy = computing = 0.0
        if usage is not None and self._usage_before is not None and usage.pids:
            done = usage.effort - self._usage_before.effort
            busy = min(1.0, done.busy / (passed * len(usage.pids)))
            computing = min(1.0, done.computing / done.busy) if done.busy else 0.0
        self._usage_before = usage
        step = split.get("speed/step_seconds", 0.0)
        transfer = split.get("speed/transfer_seconds", 0.0) / step if step else 0.0
        return [split.get("speed/data_wait_share", 0.0), transfer, busy, computing]

    def _warn(self, table: Tensor, split: Mapping[str, float], epoch: int) -> None:
        """Say who is slow and what is short; `table` has a row a rank."""
        if not distributed.is_main():
            return
        partly = self._config.zero_stage >= 2
        if self._stragglers is not None:
            seconds = split["speed/step_seconds"] * self.speed.window_steps if partly else None
            for sentence in self._stragglers.look(table[:, 0].tolist(), seconds):
                log.warning("%s", sentence)
        total = split["speed/step_seconds"] * self.speed.window_steps
        workers = getattr(self._source, "workers", None)
        if workers is None or epoch == self._short_epoch or total < _TELLING_SECONDS:
            return
        wait, transfer, busy, computing = table[:, 1:5].mean(0).tolist()
        said = shortage(
            Supply(
                wait_share=wait,
                transfer_share=transfer,
                workers=workers,
                cores=_cores(),
                busy_share=busy,
                computing_share=computing,
                node_load=os.getloadavg()[0] / (os.cpu_count() or 1),
                prepared_share=float(getattr(self._source, "prepared_share", 0.0)),
            )
        )
        if said is not None:
            self.shortage, self._short_epoch = said, epoch
            log.warning("%s", said)

    def meet(self, device: torch.device) -> None:
        """Learn the hosts of all ranks, for messages; a collective."""
        name = socket.gethostname().encode()[:_HOST_BYTES].ljust(_HOST_BYTES)
        table = _from_all(list(name), device)
        hosts = [bytes(int(value) for value in row).decode().strip() for row in table.tolist()]
        self._stragglers = Stragglers(hosts)


def announcement(
    config: TrainFields,
    world_size: int,
    *,
    parameters: int,
    flops_per_clip: float,
    steps: int,
    steps_per_epoch: int,
) -> str:
    """What is going to run, in three lines.

    Args:
        config: of the training.
        world_size: ranks.
        parameters: of the model, all of them.
        flops_per_clip: of a forward pass.
        steps: optimizer steps of the whole training.
        steps_per_epoch: of one pass over the data.
    """
    parts = config.accumulation(world_size)
    training = flops.TRAINING * flops_per_clip / 1e9
    batch = f"{world_size} rank{'s' * (world_size > 1)} x micro-batch {config.micro_batch}"
    batch += f" x {parts} accumulated" if parts > 1 else ""
    zero = f", ZeRO {config.zero_stage}" if config.zero_stage else ""
    offload = f", offload {config.offload}" if config.offload != "none" else ""
    return (
        f"training {parameters / 1e6:.1f} M parameters, {flops_per_clip / 1e9:.2f} GFLOP a clip "
        f"forward, {training:.2f} to train on it\n"
        f"batch {config.batch_size} = {batch}; {config.precision}{zero}{offload}; "
        f"{config.optimizer.name}, lr {base_lr(config.optimizer, config.batch_size):g}\n"
        f"{steps} steps, {steps_per_epoch} an epoch: {steps / steps_per_epoch:.4g} epochs"
    )


def _from_all(values: list[float] | list[int], device: torch.device) -> Tensor:
    """(ranks, values) of all ranks, on the CPU; a collective."""
    table = torch.zeros(distributed.world_size(), len(values), dtype=torch.float64, device=device)
    table[distributed.rank()] = torch.tensor(values, dtype=torch.float64)
    return distributed.sum_ranks(table).cpu()


def _usage(source: Batches) -> Any:
    """What the reading processes did so far; None where the batches know of none."""
    usage = getattr(source, "usage", None)
    return None if usage is None else type(usage)(effort=usage.effort, pids=tuple(usage.pids))


def _cores() -> int:
    """Processor cores this rank may use."""
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0)
    return asked or len(os.sched_getaffinity(0))
