"""The loop itself: the same mathematics as a few plain lines of PyTorch, epochs, metrics, ends."""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recipes.contract import DivergedError, InputError, Preempted
from recipes.data.loader import Batch
from recipes.engine import checkpoint, modes
from recipes.engine.contract import LossOutput
from recipes.engine.loop import train
from recipes.engine.optim import param_groups
from recipes.engine.schedule import lr_factor
from recipes.models.momentum import FeatureQueue
from tests.recipes.engine_worker import TrainConfig, make_context

PER_EPOCH = 3


class Regression(nn.Module):
    """Predicts a target from eight numbers, with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body, self.head = nn.Linear(8, 4), nn.Linear(4, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3
        self.epochs: list[int] = []

    def loss(self, batch: Batch) -> LossOutput:
        error = self.head(torch.tanh(self.body(batch.clips))).squeeze(1) - batch.labels
        loss = error.square().mean()
        return LossOutput(loss=loss, metrics={"error": error.abs().mean()})

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class Numbers:
    """Two samples a micro-batch, drawn from its place."""

    def __init__(self, first: int, accumulation: int, last: int | None = None) -> None:
        self.steps_per_epoch = PER_EPOCH
        self._first, self._accumulation, self._last = first, accumulation, last

    def __iter__(self) -> Iterator[Batch]:
        place = self._first * self._accumulation
        while self._last is None or place < self._last * self._accumulation:
            generator = torch.Generator().manual_seed(place)
            yield Batch(
                clips=torch.randn(2, 8, generator=generator),
                labels=torch.randn(2, generator=generator),
                seeds=torch.zeros(2, dtype=torch.int64),
                videos=torch.tensor([2 * place, 2 * place + 1]),
            )
            place += 1


def config(**changes: Any) -> TrainConfig:
    given = {
        "max_steps": 7,
        "batch_size": 4,
        "micro_batch": 2,
        "log_every": 2,
        "checkpoint": {"minutes": None},
        "optimizer": {"name": "sgd", "lr": 0.3, "weight_decay": 0.01, "warmup_steps": 2},
    }
    return TrainConfig.model_validate({**given, **changes})


def go(folder: Path, model: nn.Module, settings: TrainConfig, **options: Any) -> Any:
    ctx = make_context(folder, **options.pop("ctx", {}))
    last = options.pop("last", None)
    return train(
        ctx,
        model,
        lambda start: Numbers(start, settings.accumulation(1), last),
        settings,
        **options,
    )


def plainly(settings: TrainConfig, ratio: float) -> Regression:
    """What the loop should do, in plain PyTorch."""
    model = Regression()
    base = settings.optimizer
    groups = [{"params": list(model.head.parameters())}, {"params": list(model.body.parameters())}]
    if base.name == "sgd":
        optimizer: Any = torch.optim.SGD(groups, lr=1, momentum=0.9, weight_decay=0.01)
    else:
        optimizer = torch.optim.Adam(groups, lr=1, weight_decay=0.01)
    batches = iter(Numbers(0, 2))
    for step in range(7):
        lr = base.lr * lr_factor(base, step, 7, PER_EPOCH)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr, ratio * lr
        optimizer.zero_grad()
        for _ in range(2):
            (model.loss(next(batches)).loss / 2).backward()
        if settings.clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()
    return model


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("clip_grad", [None, 0.5])
def test_it_does_what_a_few_plain_lines_do(tmp_path, zero_stage, name, clip_grad):
    optimizer = {"name": name, "lr": 0.05, "weight_decay": 0.01, "warmup_steps": 2}
    optimizer |= {"schedule": "cosine", "min_lr_ratio": 0.1}
    settings = config(zero_stage=zero_stage, clip_grad=clip_grad, optimizer=optimizer)
    model = Regression()
    groups = param_groups(model, settings.optimizer, {"body.": 0.1})
    go(tmp_path, model, settings, param_groups=groups)
    expected = plainly(settings, ratio=0.1)
    for (name_, own), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=2e-5, atol=1e-6, msg=name_)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_metrics_are_means_over_the_micro_batches_since_the_last_log(tmp_path):
    settings = config(optimizer={"name": "sgd", "lr": 1e-12})  # weights stay, so a mean is a mean
    outcome = go(tmp_path, Regression(), settings)
    model, batches = Regression(), iter(Numbers(0, 2))
    losses = [model.loss(next(batches)).loss.item() for _ in range(14)]
    logged = lines(tmp_path, "metrics.jsonl")
    assert [line["step"] for line in logged] == [2, 4, 6, 7]
    found = [line["metrics"]["train/loss"] for line in logged]
    parts = [losses[0:4], losses[4:8], losses[8:12], losses[12:14]]
    assert found == pytest.approx([sum(part) / len(part) for part in parts])
    assert logged[-1]["metrics"]["train/error"] > 0
    assert outcome.steps == 7
    assert outcome.metrics["train/loss"] == found[-1]
    assert [step for step, _ in outcome.history] == [2, 4, 6, 7]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_the_gradient_norm_is_that_before_clipping(tmp_path, zero_stage):
    settings = config(max_steps=1, log_every=1, clip_grad=1e-3, zero_stage=zero_stage)
    outcome = go(tmp_path, Regression(), settings)
    model, batches = Regression(), iter(Numbers(0, 2))
    for _ in range(2):
        (model.loss(next(batches)).loss / 2).backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert outcome.metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1


def test_the_last_step_is_reported_and_the_others_at_most_once_a_second(tmp_path):
    go(tmp_path, Regression(), config(max_steps=60))
    steps = [line["step"] for line in lines(tmp_path, "progress.jsonl")]
    assert steps[-1] == 60
    assert len(steps) <= 4


def test_the_epoch_is_told_before_every_step(tmp_path):
    model = Regression()
    go(tmp_path, model, config())
    assert model.epochs == [0, 0, 0, 1, 1, 1, 2]


def test_what_a_method_held_in_the_rehearsal_before_a_compiled_step_is_forgotten(
    tmp_path, monkeypatch
):
    class Queued(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.queue, self.places = FeatureQueue(8, 1), []

        def set_epoch(self, epoch: int) -> None:
            self.queue.begin_step()

        def loss(self, batch: Batch) -> LossOutput:
            self.queue.hold(batch.labels[:, None])
            return super().loss(batch)

        def after_step(self, step: int) -> None:
            self.queue.enqueue()
            self.places.append(int(self.queue.pointer))

    # The rehearsal is what counts here; there is no backbone to compile.
    monkeypatch.setattr(modes, "prepare", lambda *_: None)
    model = Queued()
    go(tmp_path, model, config(compile=True, max_steps=3))
    assert model.places == [4, 0, 4], "four keys a step"


def test_on_epoch_follows_every_epoch_and_the_end_and_its_metrics_are_logged(tmp_path):
    called = []

    def evaluate(epoch: int) -> dict[str, float]:
        called.append(epoch)
        return {"val/top1": epoch / 10}

    go(tmp_path, Regression(), config(), on_epoch=evaluate)
    assert called == [1, 2, 3]
    logged = [(x["step"], x["metrics"]) for x in lines(tmp_path, "metrics.jsonl")]
    found = [(step, metrics["val/top1"]) for step, metrics in logged if "val/top1" in metrics]
    assert found == [(3, 0.1), (6, 0.2), (7, 0.3)]


def test_an_evaluation_that_was_stopped_is_made_up_for_and_no_other_made_twice(tmp_path):
    called = []

    def stopped(epoch: int) -> None:
        called.append(epoch)
        if epoch == 2:
            raise Preempted(0)

    with pytest.raises(Preempted) as stop:
        go(tmp_path, Regression(), config(), on_epoch=stopped)
    assert stop.value.step == 6
    assert checkpoint.steps(tmp_path / "checkpoints") == [6]
    go(tmp_path, Regression(), config(), on_epoch=called.append)
    assert called == [1, 2, 2, 3]


@pytest.mark.parametrize(("every", "left"), [(2, [2, 4]), (None, [])])
def test_a_stop_that_cannot_be_saved_leaves_the_checkpoint_before_it_to_go_on_from(
    tmp_path, monkeypatch, caplog, every, left
):
    model = Regression()
    real = checkpoint.begin

    def begin(directory: Path, step: int) -> Path:
        if step == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(directory, step)

    monkeypatch.setattr(checkpoint, "begin", begin)
    settings = config(checkpoint={"minutes": None, "steps": every})
    with pytest.raises(Preempted) as stop:
        go(tmp_path, model, settings, ctx={"stop_requested": lambda: len(model.epochs) == 5})
    assert stop.value.step == max(left, default=0)
    assert checkpoint.steps(tmp_path / "checkpoints") == left
    assert "cannot save step 5" in caplog.text
    assert f"the next attempt goes on from step {stop.value.step}" in caplog.text


def test_a_stop_before_the_first_step_still_makes_one_and_keeps_it(tmp_path):
    with pytest.raises(Preempted) as stop:
        go(tmp_path, Regression(), config(), ctx={"stop_requested": lambda: True})
    assert stop.value.step == 1
    assert checkpoint.steps(tmp_path / "checkpoints") == [1]


def test_checkpoints_are_taken_by_steps_and_by_time(tmp_path):
    settings = config(checkpoint={"minutes": None, "steps": 3, "keep": 5})
    go(tmp_path / "steps", Regression(), settings)
    assert checkpoint.steps(tmp_path / "steps" / "checkpoints") == [3, 6, 7]
    settings = config(checkpoint={"minutes": 1e-9, "keep": 9, "asynchronous": False})
    go(tmp_path / "time", Regression(), settings)
    assert checkpoint.steps(tmp_path / "time" / "checkpoints") == [1, 2, 3, 4, 5, 6, 7]


def test_weights_that_are_not_finite_are_never_committed(tmp_path):
    class Broken(Regression):
        def after_step(self, step: int) -> None:
            if step == 4:
                self.head.bias.data.fill_(float("inf"))

    settings = config(checkpoint={"minutes": None, "steps": 2})
    with pytest.raises(DivergedError, match="weights are not finite after step 4"):
        go(tmp_path, Broken(), settings)
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]


class Normed(Regression):
    """With a batch norm, and one micro-batch whose clips are too large for a float."""

    def __init__(self, bad: int | None) -> None:
        super().__init__()
        self.norm, self.bad, self.calls = nn.BatchNorm1d(8), bad, 0
        self.seen: list[list[float]] = []

    def loss(self, batch: Batch) -> LossOutput:
        self.calls += 1
        scale = math.inf if self.calls == self.bad else 1.0
        return super().loss(replace(batch, clips=self.norm(batch.clips * scale)))

    def set_epoch(self, epoch: int) -> None:
        values = torch.cat([values.flatten().float() for values in self.norm.buffers()])
        self.seen.append(values.tolist())


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_batch_statistics_of_a_step_that_is_left_out_are_those_before_it(tmp_path, zero_stage):
    model = Normed(bad=6)  # the second micro-batch of step 3
    outcome = go(tmp_path, model, config(skip_non_finite=1, zero_stage=zero_stage))
    assert outcome.metrics["train/skipped_steps"] == 1
    before, after = model.seen[2], model.seen[3]
    assert after == before
    assert all(bool(values.isfinite().all()) for values in model.norm.buffers())
    assert model.seen[4] != after


def test_an_fp16_scale_that_is_too_high_leaves_batch_statistics_as_they_were(tmp_path):
    model = Normed(bad=None)
    settings = config(precision="fp16", loss_scale={"initial": 2.0**40})
    outcome = go(tmp_path, model, settings)
    assert outcome.metrics["train/skipped_steps"] > 1
    assert model.seen[1] == model.seen[0]


def test_batch_statistics_that_are_not_finite_are_never_committed(tmp_path):
    class Broken(Normed):
        def after_step(self, step: int) -> None:
            if step == 4:
                self.norm.get_buffer("running_var").fill_(math.inf)

    settings = config(checkpoint={"minutes": None, "steps": 2})
    with pytest.raises(DivergedError, match="statistics of batch norms are not finite after step"):
        go(tmp_path, Broken(bad=None), settings)
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]


def test_data_that_end_too_early_are_an_error(tmp_path):
    with pytest.raises(InputError, match="ended at step 5 of 7"):
        go(tmp_path, Regression(), config(), last=5)


def test_a_checkpoint_written_in_the_background_is_committed_while_training_goes_on(tmp_path):
    settings = config(max_steps=40, checkpoint={"minutes": None, "steps": 20, "keep": 5})
    seen = []

    class Looks(Regression):
        def after_step(self, step: int) -> None:
            if step > 20:  # slow enough for a disk
                time.sleep(0.02)
                seen.append(checkpoint.steps(tmp_path / "checkpoints"))

    go(tmp_path, Looks(), settings)
    assert [20] in seen
    assert checkpoint.steps(tmp_path / "checkpoints") == [20, 40]


def test_every_phase_of_a_step_is_told_in_the_same_order(tmp_path):
    beats: list[tuple[str, int]] = []
    settings = config(max_steps=3, checkpoint={"minutes": None, "steps": 2})
    ctx = {"beat": lambda phase, step: beats.append((phase, step))}
    go(tmp_path, Regression(), settings, on_epoch=lambda epoch: None, ctx=ctx)
    micro = ["data", "forward", "backward"]
    step = [*micro, *micro, "agree", "optimize"]
    assert [phase for phase, at in beats if at == 0] == step
    assert [phase for phase, at in beats if at == 1] == step
    assert [phase for phase, at in beats if at == 2] == ["save", *step]
    assert [phase for phase, at in beats if at == 3] == ["save", "evaluate", "idle", "idle"]


class Poisoned(Regression):
    """Its loss, or the gradient of its head, is not finite in some steps."""

    def __init__(self, steps: set[int], what: str) -> None:
        super().__init__()
        self.bad, self.what, self.calls = steps, what, 0
        self.head.weight.register_hook(self._spoil)

    def loss(self, batch: Batch) -> LossOutput:
        self.calls += 1
        output = super().loss(batch)
        if self.what == "loss" and self._step in self.bad:
            output.loss.data.fill_(float("nan"))
        return output

    @property
    def _step(self) -> int:
        return (self.calls + 1) // 2

    def _spoil(self, gradient: torch.Tensor) -> torch.Tensor:
        return (
            gradient * float("inf")
            if self.what == "gradient" and self._step in self.bad
            else gradient
        )


@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_few_steps_that_are_not_finite_are_left_out_where_the_recipe_says_so(
    tmp_path, what, zero_stage
):
    settings = config(skip_non_finite=2, zero_stage=zero_stage, log_every=1)
    model = Poisoned({2, 3, 5}, what)
    outcome = go(tmp_path, model, settings)
    assert outcome.steps == 7
    assert outcome.metrics["train/skipped_steps"] == 3
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    logged = {line["step"]: line["metrics"] for line in lines(tmp_path, "metrics.jsonl")}
    assert "train/loss" not in logged[2]
    assert math.isfinite(logged[4]["train/loss"])


def test_a_step_left_out_changes_neither_weights_nor_momentum(tmp_path):
    left_out = Poisoned({7}, "loss")
    go(tmp_path / "a", left_out, config(skip_non_finite=1))
    shorter = Regression()
    stop = {"stop_requested": lambda: shorter.epochs == [0, 0, 0, 1, 1, 1]}
    with pytest.raises(Preempted):
        go(tmp_path / "b", shorter, config(), ctx=stop)
    for one, other in zip(left_out.parameters(), shorter.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_more_of_them_in_a_row_end_training_and_name_the_videos(tmp_path, zero_stage):
    settings = config(skip_non_finite=1, zero_stage=zero_stage)

    class Named(Numbers):
        def video(self, row: int) -> str:
            return f"/videos/{row}.mp4"

    with pytest.raises(DivergedError) as error:
        train(make_context(tmp_path), Poisoned({3, 4}, "loss"), lambda at: Named(at, 2), settings)
    said = str(error.value)
    assert "step 4 (epoch 1), nor was it in the 1 steps before" in said
    assert "12, 13, 14, 15: /videos/12.mp4, /videos/13.mp4, /videos/14.mp4" in said


def test_an_averaged_model_is_evaluated_and_left_and_the_raw_weights_are_saved(tmp_path):
    seen = []
    model = Regression()

    def evaluate(epoch: int) -> None:
        seen.append(model.head.weight.detach().clone())

    raw = Regression()
    go(tmp_path / "raw", raw, config(max_steps=3))
    go(tmp_path / "ema", model, config(max_steps=3, ema_decay=0.9), on_epoch=evaluate)
    assert torch.equal(seen[0], model.head.weight)
    assert not torch.equal(raw.head.weight, model.head.weight)
    assert set(dict(model.named_buffers())) == set()
    again = Regression()
    go(tmp_path / "ema", again, config(max_steps=3, ema_decay=0.9))
    assert torch.equal(again.head.weight, model.head.weight)
    longer = Regression()
    go(tmp_path / "ema", longer, config(ema_decay=0.9))
    unbroken = Regression()
    go(tmp_path / "unbroken", unbroken, config(ema_decay=0.9))
    assert torch.equal(longer.head.weight, unbroken.head.weight)


def test_chosen_steps_are_traced_into_files_that_are_recorded(tmp_path):
    settings = config(profile={"first": 3, "last": 4})
    go(tmp_path, Regression(), settings)
    figures = tmp_path / "outputs" / "figures"
    names = ["trace-steps-3-4.json.gz", "trace-steps-3-4.txt"]
    assert sorted(path.name for path in figures.iterdir()) == names
    trace = json.loads(gzip.decompress((figures / names[0]).read_bytes()))
    assert any("backward" in event.get("name", "").lower() for event in trace["traceEvents"])
    assert "aten::" in (figures / names[1]).read_text()


def test_a_trace_is_written_although_a_stop_comes_within_its_steps(tmp_path):
    model = Regression()
    stop = {"stop_requested": lambda: len(model.epochs) == 5}
    with pytest.raises(Preempted):
        go(tmp_path, model, config(profile={"first": 5, "last": 7}), ctx=stop)
    assert (tmp_path / "outputs" / "figures" / "trace-steps-5-5.json.gz").exists()


def test_what_runs_is_said_once(tmp_path, capsys):
    go(tmp_path, Regression(), config())
    said = capsys.readouterr().out
    assert said.count("parameters") == 1
    assert "batch 4 = 1 rank x micro-batch 2 x 2 accumulated; fp32; sgd, lr 0.3" in said
    assert "7 steps, 3 an epoch: 2.333 epochs" in said
