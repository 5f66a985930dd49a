"""What momentum-contrast methods keep besides their network: a slow copy, a queue, shuffled BN.

All of it is buffers, so that it is in every checkpoint and no optimizer, gradient reduction or
weight partition touches it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.contract import ConfigurationError
from recipes.engine import distributed


class MomentumEncoder(nn.Module):
    """A copy of a network that follows its weights slowly and has no gradient (He et al. 2020).

    Batch-norm statistics are its own: they come from what it encodes, in training mode as the
    network it follows.
    """

    def __init__(self, online: nn.Module) -> None:
        """Start as an equal copy of `online`, which is not made a part of this module."""
        super().__init__()
        self.network = copy.deepcopy(online)
        _make_buffers(self.network)
        self._names = [name for name, _ in online.named_parameters()]
        self._live = list(online.parameters())

    @property
    def equal_on_ranks(self) -> list[str]:
        """The weights, and not the batch-norm statistics."""
        return [f"network.{name}" for name in self._names]

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """What the copy makes of the inputs, without gradient."""
        encoded: Tensor = self.network(*inputs)
        return encoded

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """weights = momentum * weights + (1 - momentum) * online weights; in `after_step`.

        The online network's weights must be whole on this rank (`Engine.full_weights`).
        """
        own = [self.network.get_buffer(name) for name in self._names]
        live = [parameter.detach().float() for parameter in self._live]
        torch._foreach_lerp_(own, live, 1.0 - momentum)


def momentum_at(step: int, steps: int, first: float) -> float:
    """1 - (1 - first) * (1 + cos(pi * step / steps)) / 2: from `first` to 1 at the end.

    As BYOL and SlowFast anneal it (facebookresearch/SlowFast, slowfast/models/contrastive.py).
    """
    return 1.0 - (1.0 - first) * (1.0 + math.cos(math.pi * step / steps)) / 2.0


class FeatureQueue(nn.Module):
    """A ring of the last K keys, (K, D), equal on all ranks; normalized noise before the first.

    `hold` the keys of every micro-batch, and `enqueue` them in `after_step`: so all micro-batches
    of a step are compared with the same queue, and its content does not depend on how the batch is
    shared out over ranks. `begin_step` in `set_epoch`, which comes before every step, forgets what
    was held for one that was left out.
    """

    features: Tensor
    pointer: Tensor
    equal_on_ranks = ("features", "pointer")

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", functional.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self._held: list[Tensor] = []

    def begin_step(self) -> None:
        """Forget keys that were held and not enqueued: their step was left out."""
        self._held.clear()

    def hold(self, keys: Tensor) -> None:
        """Take the keys (B, D) of this rank's micro-batch; B is equal for all."""
        self._held.append(keys.detach())

    @torch.no_grad()
    def enqueue(self) -> None:
        """Put the keys held on all ranks over the oldest ones, in the order of micro-batches.

        A key that is not finite would be in every loss until K others have come: a step that has
        one leaves the queue as it was. Nothing here waits for the device.

        Raises:
            ConfigurationError: the length is no multiple of the keys of a step, so that some keys
                would be older than others when they leave.
        """
        keys, self._held = _in_order(self._held), []
        length = len(self.features)
        if length % len(keys):
            raise ConfigurationError(
                f"a queue of {length} is no multiple of the {len(keys)} keys of a step; choose a "
                "length that is a multiple of batch_size"
            )
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % length
        fine = keys.isfinite().all()
        self.features[places] = torch.where(fine, keys.float(), self.features[places])
        self.pointer.copy_((self.pointer + len(keys) * fine) % length)


@torch.no_grad()
def encode_shuffled(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Encode this rank's inputs in batches that are mixed from those of all ranks (shuffled BN).

    So no statistics of a batch can tell which key belongs to a query. All inputs are gathered,
    permuted as rank 0 draws it from torch's generator, encoded by parts, gathered and put in order
    again. On one rank it does nothing, and the shortcut through batch norm remains (MoCo).

    Args:
        encode: (B, ...) to (B, D), row by row but for batch statistics.
        inputs: (B, ...), with equal B on all ranks.

    Returns:
        (B, D) of this rank's own inputs, without gradient.
    """
    if distributed.world_size() == 1:
        return encode(inputs)
    everything = distributed.gather_rows(inputs)
    order = distributed.from_main(torch.randperm(len(everything)).tolist())
    own = slice(distributed.rank() * len(inputs), (distributed.rank() + 1) * len(inputs))
    mixed = torch.tensor(order, device=inputs.device)
    encoded = distributed.gather_rows(encode(everything[mixed[own]]))
    return encoded[mixed.argsort()[own]]


def _in_order(held: list[Tensor]) -> Tensor:
    """Keys of all ranks by micro-batch of the step, as ranks take them in turn: (sum of B, D)."""
    parts = torch.stack(held, dim=1)  # (B, parts, D); rows of all ranks are gathered below them
    ranks = distributed.world_size()
    everything = distributed.gather_rows(parts).view(ranks, *parts.shape)
    return everything.permute(2, 0, 1, 3).flatten(0, 2)


def _make_buffers(network: nn.Module) -> None:
    """Turn every parameter into a buffer of the same name; what was shared stays shared."""
    made: dict[nn.Parameter, Tensor] = {}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            delattr(module, name)
            buffer = made.setdefault(parameter, parameter.detach().clone())
            module.register_buffer(name, buffer)
            setattr(module, name, buffer)  # recurrent layers keep a list of their weights
