"""The training loop: accumulation, stopping together, checkpoints, metrics, exact resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recipes.contract import DivergedError, InputError, Preempted, Progress, StageContext
from recipes.data.loader import Batch
from recipes.engine import deepspeed_engine, distributed, faults, optim, state
from recipes.engine.config import TrainFields
from recipes.engine.contract import Batches, TrainOutcome
from recipes.engine.resume import Saver
from recipes.engine.schedule import base_lr, lr_factor, total_steps
from recipes.engine.speed import Speed

_REPLACED = "data/replaced"  # share of samples whose file could not be read

OnEpoch = Callable[[int], Mapping[str, float] | None]


def train(
    ctx: StageContext,
    model: nn.Module,
    batches: Callable[[int], Batches],
    config: TrainFields,
    param_groups: Sequence[optim.ParamGroup] | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainOutcome:
    """Train a model to the end of its schedule, from its newest checkpoint if it has one.

    All ranks call it. Afterwards the model holds the final weights, on this rank's device; a final
    checkpoint is committed, so that a crash after it repeats no training.

    Args:
        ctx: gives checkpoint folder, seed, device, stop flag and where to log.
        model: has `loss(batch) -> LossOutput`, see `recipes.engine.contract.Trainable`. Build it
            with torch seeded equally on all ranks.
        batches: optimizer step to this rank's micro-batches from that step on.
        config: length, batch, optimizer, precision, checkpoints.
        param_groups: default all parameters at one rate (`optim.param_groups`).
        on_epoch: called on all ranks with the number of epochs done, after each and at the end;
            it may evaluate; the metrics it returns are logged. A stop inside it is honoured. What a
            kill took away is called again after the resume.

    Raises:
        Preempted: a stop was requested; all ranks saved together.
        DivergedError: loss, gradient or weights are not finite.
        InputError: there are checkpoints and none may be used.
        ConfigurationError: the batch does not fit the rank count.
    """
    device = distributed.init(ctx)
    _prepare_torch(config, device)
    groups = param_groups or optim.param_groups(model, config.optimizer)
    engine = deepspeed_engine.start(model, groups, config, device)
    return _Training(ctx, engine, batches, config, on_epoch, device).run()


class _Training:
    """One run of the loop on one rank."""

    def __init__(
        self,
        ctx: StageContext,
        engine: deepspeed_engine.Engine,
        batches: Callable[[int], Batches],
        config: TrainFields,
        on_epoch: OnEpoch | None,
        device: torch.device,
    ) -> None:
        self._ctx, self._engine, self._config = ctx, engine, config
        self._on_epoch, self._device = on_epoch, device
        self._meter = state.Meter()
        self._metrics: dict[str, float] = {}
        self._history = state.History()
        self._evaluated = 0
        self._saver = Saver(ctx.checkpoint_dir, engine, config)
        self._step, loop = self._saver.restore()
        if loop is not None:
            self._load(loop)
        self._source = batches(self._step)
        self._total = total_steps(config, self._source.steps_per_epoch)
        self._accumulation = config.accumulation(ctx.world_size)
        self._speed = Speed(config.batch_size)

    def run(self) -> TrainOutcome:
        """Train to the end; see `train`."""
        try:
            return self._run()
        finally:
            self._saver.close()

    def _run(self) -> TrainOutcome:
        if self._step < self._total:
            self._saver.check_space()
        micro_batches = iter(self._source)
        while True:
            self._end_epoch()
            if self._step >= self._total:
                break
            self._engine.train_mode()
            self._run_step(micro_batches)
        return TrainOutcome(
            steps=self._step, metrics=dict(self._metrics), history=self._history.entries
        )

    @property
    def _epoch(self) -> int:
        return self._step // self._source.steps_per_epoch

    def _run_step(self, micro_batches: Iterator[Batch]) -> None:
        self._speed.begin_step()
        _call(self._engine.model, "set_epoch", self._epoch)
        losses, rows = self._accumulate(micro_batches)
        norm = self._engine.gradient_norm()
        values = [*losses, *([] if norm is None else [float(norm)])]
        broken = not all(math.isfinite(value) for value in values)
        stop, broken_anywhere, due, writing = distributed.any_of(
            [self._ctx.stop_requested(), broken, self._saver.due(), self._saver.pending]
        )
        if not writing:
            self._saver.settle()
        if broken_anywhere:
            self._diverged(rows if broken else [])
        lr = self._lr()
        step_norm = self._engine.step(lr)
        if step_norm is not None and not math.isfinite(step_norm):
            self._diverged(rows)
        self._step += 1
        self._speed.end_step()
        _call(self._engine.model, "after_step", self._step)
        faults.hit("step", self._step)
        self._log(lr, step_norm if norm is None else float(norm))
        self._report(losses[-1])
        if stop:
            self._save(wait=True)
            raise Preempted(self._step)
        every = self._config.checkpoint.steps or self._total
        if due or self._step % every == 0 or self._step == self._total:
            self._save(wait=self._step == self._total)

    def _accumulate(self, micro_batches: Iterator[Batch]) -> tuple[list[float], list[Tensor]]:
        """Run the micro-batches of one step; returns their losses and table rows."""
        losses, rows = [], []
        for part in range(self._accumulation):
            if part:
                self._engine.end_micro_batch()
            with self._speed.waiting():
                batch = next(micro_batches, None)
            if batch is None:
                raise InputError(f"the data ended at step {self._step} of {self._total}")
            number = part * self._ctx.world_size + self._ctx.rank
            state.seed_micro_batch(self._ctx.seed, self._step, number)
            loss, metrics = self._engine.backward(_to_device(batch, self._device))
            replaced = torch.full((), len(batch.problems) / len(batch), device=self._device)
            self._meter.add({"loss": loss, **metrics, _REPLACED: replaced})
            losses.append(loss)
            rows.append(batch.videos)
        return torch.stack(losses).tolist(), rows

    def _lr(self) -> float:
        optimizer = self._config.optimizer
        per_epoch = self._source.steps_per_epoch
        rate = base_lr(optimizer, self._config.batch_size)
        return rate * lr_factor(optimizer, self._step, self._total, per_epoch)

    def _log(self, lr: float, norm: float | None) -> None:
        if self._step % self._config.log_every and self._step != self._total:
            return
        means = self._meter.take()
        replaced = means.pop(_REPLACED)
        named = {f"train/{name}": value for name, value in means.items()}
        self._metrics = {**named, "train/lr": lr, "train/epoch": self._epoch, _REPLACED: replaced}
        if norm is not None:
            self._metrics["train/grad_norm"] = norm
        self._history.add(self._step, self._metrics)
        self._ctx.log_metrics(self._step, {**self._metrics, **self._speed.split()})

    def _report(self, loss: float | None) -> None:
        due = self._speed.report_due() or self._step == self._total
        if not distributed.is_main() or not due:
            return
        per_epoch = self._source.steps_per_epoch
        self._ctx.report_progress(
            Progress(
                phase="train",
                step=self._step,
                steps=self._total,
                epoch=self._epoch,
                epochs=math.ceil(self._total / per_epoch),
                loss=loss,
                clips_per_second=self._speed.clips_per_second,
                seconds_left=self._speed.seconds_left(self._total - self._step),
                data_wait_share=self._speed.data_wait_share,
            )
        )

    def _end_epoch(self) -> None:
        """Call `on_epoch` where an epoch or the training has just ended and it was not called."""
        ended = self._step % self._source.steps_per_epoch == 0 or self._step == self._total
        if self._on_epoch is None or not ended or self._step <= self._evaluated:
            return
        try:
            metrics = self._on_epoch(math.ceil(self._step / self._source.steps_per_epoch))
        except Preempted:
            self._save(wait=True)
            raise Preempted(self._step) from None
        self._evaluated = self._step
        if metrics:
            self._ctx.log_metrics(self._step, metrics)

    def _save(self, *, wait: bool) -> None:
        # As text, so that the background writes what it was now.
        logged = {"metrics": self._metrics, "history": self._history.state()}
        loop = {
            "meter": self._meter.state(),
            "logged": json.dumps(logged),
            "evaluated": self._evaluated,
        }
        self._saver.save(self._step, loop, wait=wait)

    def _load(self, loop: Mapping[str, Any]) -> None:
        self._meter.load(loop["meter"], self._device)
        logged = json.loads(loop["logged"])
        self._metrics = dict(logged["metrics"])
        self._history.load(logged["history"])
        self._evaluated = int(loop["evaluated"])

    def _diverged(self, rows: Sequence[Tensor]) -> None:
        self._saver.finish()
        own = torch.cat([*rows]) if rows else torch.empty(0, dtype=torch.int64)
        everywhere = sorted(set(distributed.gather_rows(own).tolist()))
        raise DivergedError(
            f"loss or gradient is not finite at step {self._step + 1} (epoch {self._epoch}). "
            f"Videos of the batch, as rows of the training table: "
            f"{', '.join(map(str, everywhere))}. The last checkpoint is kept; lower optimizer.lr, "
            "lengthen the warm-up or set clip_grad"
        )


def _prepare_torch(config: TrainFields, device: torch.device) -> None:
    """Threads as the job was given them; repeatable kernels on the CPU, and on CUDA where asked."""
    threads = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    if threads:
        torch.set_num_threads(int(threads))
    repeat = device.type == "cpu" or config.deterministic
    if repeat:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(repeat, warn_only=not config.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not repeat


def _to_device(batch: Batch, device: torch.device) -> Batch:
    """Clips and labels go to the device; seeds and rows are read on the CPU."""
    clips = batch.clips.to(device, non_blocking=True)
    return replace(batch, clips=clips, labels=batch.labels.to(device, non_blocking=True))


def _call(model: nn.Module, name: str, value: int) -> None:
    """Call an optional method of the model."""
    method = getattr(model, name, None)
    if method is not None:
        method(value)
