"""Averages gradients over the ranks while backward still computes others, in ZeRO stage 0.

DeepSpeed does so in ZeRO 1 to 3. In stage 0 it begins when backward has ended, and copies all
gradients into one tensor and back: 22 ms of a step of 190 with R2D3D-18 on two ranks.

PyTorch's DistributedDataParallel arranges its buckets anew behind the first step of a process. The
order in which ranks are summed depends on a number's place in its bucket, so that a resumed
training would differ in the last bit. It leaves them as they are only where it is to look for
parameters without a gradient, of which it complains where there are none, and on a GPU that makes
the host wait where there are some. Hence this one, in which a bucket never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

_BUCKET_BYTES = 25 << 20  # as DistributedDataParallel has them
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(kw_only=True)
class _Bucket:
    """Gradients that travel together; `views` are their places in `buffer`."""

    parameters: list[nn.Parameter]
    buffer: Tensor
    views: list[Tensor]
    arrived: set[int] = field(default_factory=set)
    work: Any = None


class Reduction:
    """The gradients of some parameters, averaged over the ranks at the end of a backward pass.

    Ranks may use different parameters. One that no rank has used keeps no gradient, so that its
    optimizer leaves it alone.

    Args:
        parameters: equal on all ranks, in the order in which forward uses them as far as there is
            one: backward has the gradients of the last ones first.
        dtype: in which gradients travel.

    Attributes:
        on_last: called when the last gradients are on their way: what follows only waits for other
            ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], dtype: str = "fp32") -> None:
        self.on_last: Callable[[], Any] = lambda: None
        self._scale = 1.0 / distributed.get_world_size()
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        groups = list(_grouped(trained[::-1], _DTYPES[dtype]))
        # Behind the last gradients travels how many ranks have each.
        flags = len(trained)
        self._buckets = [
            _bucket(group, _DTYPES[dtype], extra=flags if group is groups[-1] else 0)
            for group in groups
        ]
        self._flags = self._buckets[-1].buffer[-flags:]
        self._begun = 0
        self._reducing = False
        for bucket in self._buckets:
            for place, parameter in enumerate(bucket.parameters):
                hook = partial(self._arrive, bucket, place)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def expect(self, last: bool) -> None:
        """A backward pass begins; only the last of a step reduces."""
        self._reducing, self._begun = last, 0
        for bucket in self._buckets:
            bucket.arrived.clear()
            bucket.work = None

    def finish(self) -> None:
        """Wait until all gradients are averages; behind the backward pass that `expect` told of."""
        if not self._reducing:
            return
        self._reducing = False
        missing = self._fill_up()
        for bucket in self._buckets:
            bucket.work.wait()
            self._hand_back(bucket)
        if missing:
            self._take_back(missing)

    def _arrive(self, bucket: _Bucket, place: int, parameter: nn.Parameter) -> None:
        """A gradient is complete on this rank; send what is complete and next in turn."""
        if not self._reducing:
            return
        if place in bucket.arrived:
            raise RuntimeError("a parameter got its gradient twice in one backward pass")
        self._put(bucket, place)
        while self._begun < len(self._buckets):
            following = self._buckets[self._begun]
            if len(following.arrived) < len(following.parameters):
                return
            if following is self._buckets[-1]:
                self._flags.fill_(1.0)
            self._send(following)

    def _put(self, bucket: _Bucket, place: int) -> None:
        """Move a gradient to its place, which is the gradient from now on where it can be."""
        parameter, view = bucket.parameters[place], bucket.views[place]
        gradient = parameter.grad
        if gradient is None:
            view.zero_()
        elif gradient.dtype == view.dtype:
            torch.mul(gradient, self._scale, out=view)
            parameter.grad = view
        else:
            view.copy_(gradient.mul_(self._scale))
        bucket.arrived.add(place)

    def _send(self, bucket: _Bucket) -> None:
        self._begun += 1
        if self._begun == len(self._buckets):
            self.on_last()
        bucket.work = distributed.all_reduce(bucket.buffer, async_op=True)

    def _fill_up(self) -> list[tuple[_Bucket, int, int]]:
        """Send what is left; bucket, place and flag of what this rank has no gradient of."""
        missing, number = [], 0
        if self._begun < len(self._buckets):
            self._flags.fill_(1.0)
        for bucket in self._buckets:
            for place in range(len(bucket.parameters)):
                if place not in bucket.arrived:
                    # There is one where an earlier micro-batch of the step has used it.
                    if bucket.parameters[place].grad is None:
                        missing.append((bucket, place, number))
                        self._flags[number] = 0.0
                    self._put(bucket, place)
                number += 1
        for bucket in self._buckets[self._begun :]:
            self._send(bucket)
        return missing

    def _hand_back(self, bucket: _Bucket) -> None:
        for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
            if parameter.grad is not None and parameter.grad is not view:
                parameter.grad.copy_(view)

    def _take_back(self, missing: list[tuple[_Bucket, int, int]]) -> None:
        """Give parameters that only other ranks have used their share of the gradient."""
        used = self._flags.tolist()
        for bucket, place, number in missing:
            if used[number]:
                parameter = bucket.parameters[place]
                parameter.grad = bucket.views[place].to(parameter.dtype)


def _grouped(parameters: list[nn.Parameter], dtype: torch.dtype) -> Iterable[list[nn.Parameter]]:
    """Parameters in turn, as many together as a bucket holds."""
    group: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        size += parameter.numel() * dtype.itemsize
        if group and size > _BUCKET_BYTES:
            yield group
            group, size = [], parameter.numel() * dtype.itemsize
        group.append(parameter)
    yield group


def _bucket(parameters: list[nn.Parameter], dtype: torch.dtype, extra: int) -> _Bucket:
    sizes = [parameter.numel() for parameter in parameters]
    buffer = torch.zeros(sum(sizes) + extra, dtype=dtype, device=parameters[0].device)
    parts = torch.split(buffer[: sum(sizes)], sizes)
    views = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
    return _Bucket(parameters=parameters, buffer=buffer, views=views)
