"""A moving average of a model's weights, which is what gets evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """Exponential moving average of every parameter that has a gradient.

    The averages are buffers, so that a checkpoint of the model's buffers has them, and not
    persistent, so that no `state_dict` of the model does. There is no copy of the model's own
    buffers: evaluation uses its current ones. Batch-norm statistics are a moving average already,
    over about the last ten batches, of weights close to the averaged ones; averaged once more they
    would lag behind, and counters have no average.

    Where ranks hold a part of the weights each (ZeRO 3), every method and the constructor need them
    whole: call them inside `Engine.full_weights()`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the model's present weights, in 32 bits whatever the model has.

        `decay` is the share of the average that a step keeps.
        """
        super().__init__()
        self._decay = decay
        # A list is invisible to nn.Module: the model's parameters must not become this module's.
        self._live: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._live.append(parameter)
                start = parameter.detach().to(torch.float32, copy=True)
                self.register_buffer(name.replace(".", "/"), start, persistent=False)

    def follow(self, model: nn.Module) -> None:
        """Average the parameters that `model` has now, as many as before and in their order."""
        self._live = [parameter for parameter in model.parameters() if parameter.requires_grad]

    @property
    def equal_on_ranks(self) -> list[str]:
        """All of it: every rank averages the same weights."""
        return [name for name, _ in self.named_buffers()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights as optimizer step `step` (from 1) left them."""
        weights = [parameter.detach().float() for parameter in self._live]
        torch._foreach_lerp_(self._averages(), weights, 1.0 - decay_at(self._decay, step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own ones again, bit by bit, after."""
        raw = [parameter.detach().clone() for parameter in self._live]
        self.apply_for_good()
        try:
            yield
        finally:
            self._write(raw)

    def apply_for_good(self) -> None:
        """Put the averages into the model, when training is over."""
        self._write(self._averages())

    def _averages(self) -> list[Tensor]:
        """In the order of the parameters; anew each time, since `Module.to` replaces buffers."""
        return list(self.buffers())

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        torch._foreach_copy_([parameter.detach() for parameter in self._live], values)


def attach(model: nn.Module, decay: float) -> Ema:
    """Give a model the average of its weights as its module `ema`.

    To be called on all ranks when the engine has been built (it may replace or split weights) and
    before a checkpoint is restored (which fills the buffers).

    Raises:
        ValueError: the model has something else of that name, which would be lost.
    """
    if hasattr(model, "ema"):
        raise ValueError(f"{type(model).__name__} has an attribute `ema` of its own: rename it")
    ema = Ema(model, decay)
    model.add_module("ema", ema)
    return ema


def decay_at(decay: float, step: int) -> float:
    """min(decay, (1 + n) / (10 + n)) after optimizer step n (from 1).

    Without it the random first weights would be in the average for 1 / (1 - decay) steps. It is
    what TensorFlow's `tf.train.ExponentialMovingAverage` does with `num_updates`. A function of the
    step alone, so that a resume needs nothing for it.
    """
    return min(decay, (1 + step) / (10 + step))
