"""The training loop: accumulation, acting together, checkpoints, records, exact resume."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from recipes.contract import InputError, Phase, Preempted, StageContext
from recipes.data.loader import Batch
from recipes.engine import (
    batch_statistics,
    deepspeed_engine,
    distributed,
    ema,
    faults,
    flops,
    optim,
    speed,
    state,
)
from recipes.engine.agreement import Agreement, Verdict
from recipes.engine.config import TrainFields
from recipes.engine.contract import Batches, TrainOutcome
from recipes.engine.divergence import Tolerance
from recipes.engine.profile import Profile
from recipes.engine.records import Records
from recipes.engine.resume import SaveError, Saver
from recipes.engine.schedule import base_lr, lr_factor, total_steps
from recipes.engine.settings import prepare_torch

log = logging.getLogger(__name__)

OnEpoch = Callable[[int], Mapping[str, float] | None]

_PHASES: dict[Phase, speed.Phase] = {
    "idle": "idle",
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "agree": "communication",
    "optimize": "optimizer",
    "save": "checkpoint",
    "evaluate": "evaluation",
}


def train(
    ctx: StageContext,
    model: nn.Module,
    batches: Callable[[int], Batches],
    config: TrainFields,
    param_groups: Sequence[optim.ParamGroup] | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainOutcome:
    """Train a model to the end of its schedule, from its newest checkpoint if it has one.

    All ranks call it. Afterwards the model holds the final weights, or their moving average if the
    recipe asks for one, on this rank's device; a final checkpoint is committed, so that a crash
    after it repeats no training.

    Args:
        ctx: gives checkpoint folder, seed, device, stop flag and where to log.
        model: has `loss(batch) -> LossOutput`, see `recipes.engine.contract.Trainable`. Build it
            with torch seeded equally on all ranks.
        batches: optimizer step to this rank's micro-batches from that step on.
        config: length, batch, optimizer, precision, checkpoints.
        param_groups: default all parameters at one rate (`optim.param_groups`).
        on_epoch: called on all ranks with the number of epochs done, after each and at the end;
            it may evaluate, with averaged weights where there are any; the metrics it returns are
            logged. A stop inside it is honoured. What a kill took away is called again after the
            resume.

    Raises:
        Preempted: a stop was requested; all ranks saved together, or could not and said so.
        SaveError: the last checkpoint could not be written.
        DivergedError: loss, gradient, weights or batch statistics are not finite.
        InputError: there are checkpoints and none may be used.
        ConfigurationError: the batch does not fit the rank count.
    """
    device = distributed.init(ctx)
    prepare_torch(config, device)
    groups = param_groups or optim.param_groups(model, config.optimizer)
    engine = deepspeed_engine.start(model, groups, config, device)
    training = _Training(ctx, engine, batches, config, on_epoch, device)
    try:
        return training.run()
    finally:
        training.close()


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What came of one micro-batch."""

    loss: Tensor
    metrics: Mapping[str, Tensor]
    rows: Tensor
    replaced: float


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
        self._clock, self._agreement = speed.Clock(device), Agreement(device)
        self._profile = Profile(
            config.profile if distributed.is_main() else None, ctx.output_dir / "figures", device
        )
        self._ema: ema.Ema | None = None
        if config.ema_decay is not None:
            with engine.full_weights():
                self._ema = ema.attach(engine.model, config.ema_decay)
        self._saver = Saver(ctx.checkpoint_dir, engine, config, ctx.stop_requested, ctx.fence)
        self._step, loop = self._saver.restore()
        self._source = batches(self._step)
        self._total = total_steps(config, self._source.steps_per_epoch)
        _call(engine.model, "set_length", self._total)
        self._accumulation = config.accumulation(ctx.world_size)
        self._records = Records(ctx, config, self._source, self._total, self._clock)
        self._records.meet(device)
        self._tolerance = Tolerance(config.skip_non_finite, self._source)
        may_leave_out = config.skip_non_finite > 0 or config.precision == "fp16"
        self._statistics = batch_statistics.Kept(engine.model) if may_leave_out else None
        self._evaluated = 0
        self._acted = self._saved = self._step  # checkpoints were last dealt with, begun
        self._counted = False
        if loop is not None:
            self._load(loop)
        engine.announce_reduction(lambda: self._clock.enter("communication"), self._clock.enter)

    def run(self) -> TrainOutcome:
        """Train to the end; see `train`."""
        if self._step < self._total:
            self._saver.check_space()
        micro_batches = iter(self._source)
        self._engine.train_mode()
        while True:
            self._end_epoch()
            if self._step >= self._total:
                break
            self._run_step(micro_batches)
        self._at("idle")
        self._finish_weights()
        return TrainOutcome(
            steps=self._step,
            metrics=dict(self._records.metrics),
            history=self._records.history,
            shortage=self._records.shortage,
        )

    def close(self) -> None:
        """Let go of everything that runs beside training; no collective."""
        try:
            self._profile.end_step(self._step, last=True)
        except Exception as error:  # it must not stand for what ended training
            log.warning("no trace of the last steps: %s", error)
        if self._saver.committing:
            self._at("save")
            self._saver.close()
        self._ctx.beat("idle", self._step)

    @property
    def _epoch(self) -> int:
        return self._step // self._source.steps_per_epoch

    def _at(self, phase: Phase) -> None:
        """Tell the watchdog and the clock what comes next."""
        self._ctx.beat(phase, self._step)
        self._clock.enter(_PHASES[phase])

    def _run_step(self, micro_batches: Iterator[Batch]) -> None:
        self._records.speed.begin_step()
        self._profile.begin_step(self._step + 1)
        _call(self._engine.model, "set_epoch", self._epoch)
        if self._statistics is not None:
            self._statistics.keep()
        parts = self._accumulate(micro_batches)
        norm = self._engine.gradient_norm()
        verdict = self._agree(parts, norm)
        self._at("optimize")
        lr = self._lr()
        if verdict.broken:
            self._leave_out(verdict.step, verdict.rows)
            self._engine.skip()
            norm = None
        else:
            norm = self._update(lr, norm, parts)
        self._step += 1
        self._clock.enter("logging")
        faults.hit("step", self._step)
        scale = self._engine.loss_scale()
        self._records.log(self._step, lr, norm, scale, self._device)
        self._records.report(self._step, parts[-1].loss)
        self._records.end_step()
        self._profile.end_step(self._step, last=self._step == self._total)
        self._care_for_checkpoints(verdict)

    def _accumulate(self, micro_batches: Iterator[Batch]) -> list[_Part]:
        """Run the micro-batches of one step."""
        parts = []
        for number in range(self._accumulation):
            if number:
                self._engine.end_micro_batch()
            self._at("data")
            batch = next(micro_batches, None)
            if batch is None:
                raise InputError(f"the data ended at step {self._step} of {self._total}")
            self._clock.enter("transfer")
            place = number * self._ctx.world_size + self._ctx.rank
            state.seed_micro_batch(self._ctx.seed, self._step, place)
            replaced = len(batch.problems) / len(batch)
            loss, metrics = self._backward(_to_device(batch, self._device))
            part = _Part(loss=loss, metrics=metrics, rows=batch.videos, replaced=replaced)
            parts.append(part)
        return parts

    def _backward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Forward and backward; the first time it is counted what the forward pass costs."""
        self._at("forward")
        if self._counted:
            return self._engine.backward(batch, between=lambda: self._at("backward"))
        self._counted = True
        rehearse = self._config.compile
        with flops.counted(self._engine, batch, rehearse=rehearse) as counter:
            if rehearse:  # what a method keeps for the step it forgets again
                _call(self._engine.model, "set_epoch", self._epoch)

            def between() -> None:
                counter.stop()
                self._at("backward")

            result = self._engine.backward(batch, between=between)
        self._records.counted(counter.flops / len(batch), flops.parameters(self._engine.model))
        return result

    def _agree(self, parts: Sequence[_Part], norm: Tensor | None) -> Verdict:
        """What all ranks have to know of this step, or on CUDA of the one before."""
        self._at("agree")
        numbers = [part.loss.float() for part in parts]
        numbers += [] if norm is None else [norm.float()]
        step = self._step + 1
        return self._agreement.reach(
            step,
            stop=self._ctx.stop_requested(),
            due=self._saver.due(),
            pending=self._saver.pending,
            broken=~torch.isfinite(torch.stack(numbers)).all(),
            rows=[part.rows for part in parts],
            now=self._save_follows(step) or self._config.skip_non_finite > 0,
        )

    def _update(self, lr: float, norm: Tensor | None, parts: Sequence[_Part]) -> Tensor | None:
        """Take the step; returns the gradient's norm, None where the step was left out."""
        found = self._engine.step(lr)
        if norm is None and found is None:
            self._drop()  # the fp16 scale was too high and is halved now
            return None
        if found is not None and not math.isfinite(found):
            self._leave_out(self._step + 1, [part.rows for part in parts])
            return None
        self._tolerance.stepped()
        for part in parts:
            self._records.add(part.loss, part.metrics, part.replaced)
        step = self._step + 1
        self._follow(step)
        return torch.tensor(found) if norm is None else norm

    def _follow(self, step: int) -> None:
        """Let what follows the weights do so; under ZeRO 3 they are gathered only for that."""
        if self._ema is None and not hasattr(self._engine.model, "after_step"):
            return
        with self._engine.full_weights():
            if self._ema is not None:
                self._ema.update(step)
            _call(self._engine.model, "after_step", step)

    def _leave_out(self, step: int, rows: Sequence[Tensor]) -> None:
        """Count a step that changes nothing, or end training if there were too many."""
        if self._tolerance.exhausted:
            self._at("save")
            self._saver.finish()
        self._tolerance.left_out(step, rows)
        self._drop()

    def _drop(self) -> None:
        """Count a step that was left out, and undo what its forward passes have changed."""
        self._records.skipped += 1
        if self._statistics is not None:
            self._statistics.put_back()

    def _lr(self) -> float:
        optimizer = self._config.optimizer
        per_epoch = self._source.steps_per_epoch
        rate = base_lr(optimizer, self._config.batch_size)
        return rate * lr_factor(optimizer, self._step, self._total, per_epoch)

    def _end_epoch(self) -> None:
        """Call `on_epoch` where an epoch or the training has just ended and it was not called."""
        ended = self._step % self._source.steps_per_epoch == 0 or self._step == self._total
        if self._on_epoch is None or not ended or self._step <= self._evaluated:
            return
        self._at("evaluate")
        averaged = nullcontext() if self._ema is None else self._ema.applied()
        try:
            with self._engine.full_weights(), averaged:
                metrics = self._on_epoch(math.ceil(self._step / self._source.steps_per_epoch))
        except Preempted:
            raise self._stopped() from None
        self._engine.train_mode()
        self._evaluated = self._step
        if metrics:
            self._ctx.log_metrics(self._step, metrics)

    def _save_follows(self, step: int) -> bool:
        every = self._config.checkpoint.steps or self._total
        return step % every == 0 or step == self._total

    def _care_for_checkpoints(self, verdict: Verdict) -> None:
        """Save where it is time, or go on with a save under way as soon as no rank writes."""
        if verdict.stop:
            raise self._stopped()
        # What was said before that save was begun is about that one.
        due = verdict.due and self._step > self._saved + self._agreement.lag
        if due or self._save_follows(self._step):
            self._save(wait=self._step == self._total)
        elif not verdict.pending and self._step > self._acted + self._agreement.lag:
            self._clock.enter("checkpoint")
            self._saver.settle()
            self._acted = self._step

    def _stopped(self) -> Preempted:
        """Save for the last time; where that fails, the checkpoint before is what is gone on from.

        All ranks were asked to stop, and the next attempt may find a disk with room.
        """
        try:
            self._save(wait=True)
        except SaveError as error:
            log.error("%s; the next attempt goes on from step %d", error, self._saver.committed)
            return Preempted(self._saver.committed)
        return Preempted(self._step)

    def _save(self, *, wait: bool) -> None:
        self._at("save")
        loop = {
            **self._records.state(),
            "evaluated": self._evaluated,
            "in_a_row": self._tolerance.in_a_row,
        }
        self._saver.save(self._step, loop, wait=wait)
        self._acted = self._saved = self._step

    def _load(self, loop: Mapping[str, Any]) -> None:
        self._records.load(loop, self._device)
        self._evaluated = int(loop["evaluated"])
        self._tolerance.in_a_row = int(loop["in_a_row"])

    def _finish_weights(self) -> None:
        """Leave the model whole, with averaged weights where there are any."""
        self._engine.gather_weights()
        if self._ema is not None:
            self._ema.follow(self._engine.model)
            self._ema.apply_for_good()
            del self._engine.model.ema


def _to_device(batch: Batch, device: torch.device) -> Batch:
    """Clips and labels go to the device; seeds and rows are read on the CPU."""
    clips = batch.clips.to(device, non_blocking=True)
    return replace(batch, clips=clips, labels=batch.labels.to(device, non_blocking=True))


def _call(model: nn.Module, name: str, value: int) -> None:
    """Call an optional method of the model."""
    method = getattr(model, name, None)
    if method is not None:
        method(value)
