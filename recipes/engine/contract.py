"""What the training loop asks of a model and of its batches, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from recipes.data.loader import Batch
from recipes.models.config import EncoderConfig
from recipes.models.encoder import VideoEncoder


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """A scalar loss with gradient, and detached scalars to log beside it."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Trainable(Protocol):
    """A `torch.nn.Module` that the loop can train.

    It may also have `set_length(steps: int)`, called once with the optimizer steps of the whole
    training; `set_epoch(epoch: int)`, called before every optimizer step; and `after_step(step:
    int)`, called after each one that was taken, with the weights whole on this rank (a step that is
    left out has none). Before the first step `loss` may be called once more than there are micro-
    batches, and then `set_epoch` once more behind it; buffers and random numbers are put back by
    the loop, and what `loss` keeps otherwise for its step is for `set_epoch` to forget. An
    attribute `spans_ranks = True` says that its loss changes with the number of ranks (negatives
    gathered over all, for example): a training does not go on with another number of them then.
    """

    def loss(self, batch: Batch) -> LossOutput:
        """The mean loss of one micro-batch; the mean of micro-batches is what is minimised."""


class Method(Trainable, Protocol):
    """A learning method: what the pretraining stage trains and exports.

    Its constructor takes its config, a backbone's config and the clip; the config has `name`,
    `augmentation` and `check_clip(clip)`.
    """

    def export_encoder(self) -> tuple[VideoEncoder, EncoderConfig]:
        """What later stages use, sharing the weights, with its description."""


class Batches(Protocol):
    """Micro-batches of this rank from an optimizer step on; `recipes.data.loader.TrainBatches`.

    They may also have `video(row: int) -> str`, a name for messages, and what is known of their
    supply: `workers`, `usage` (`recipes.data.pool.Usage`) and `prepared_share`.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps one pass over the data takes."""

    def __iter__(self) -> Iterator[Batch]:
        """Endless or to the end of training; accumulation-many micro-batches make one step."""


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """What training ended with: optimizer steps done, the last logged metrics, and the way there.

    `history` has a few thousand evenly spaced (step, metrics) at most, of all attempts together.
    `shortage` says what held training up last, and what helps; None where nothing did.
    """

    steps: int
    metrics: Mapping[str, float]
    history: Sequence[tuple[int, Mapping[str, float]]] = ()
    shortage: str | None = None

    @property
    def remarks(self) -> dict[str, str]:
        """What to say of it in a stage's summary."""
        return {} if self.shortage is None else {"shortage": self.shortage}
