"""Averages gradients over the ranks while backward still computes others, in ZeRO stage 0.

DeepSpeed does so in ZeRO 1 to 3. In stage 0 it begins when backward has ended, and copies all
gradients into one tensor and back: 22 ms of a step of 190 with R2D3D-18 on two ranks.
"""

# No `from __future__ import annotations`: PyTorch looks at the types of a communication hook.
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

_HOOKS: dict[str, Callable[..., Future[Tensor]]] = {
    "fp32": default_hooks.allreduce_hook,
    "fp16": default_hooks.fp16_compress_hook,
    "bf16": default_hooks.bf16_compress_hook,
}


class Overlapped(DistributedDataParallel):
    """A module with its gradients averaged in buckets, each as soon as it is complete.

    Buffers stay as each rank has them, as in the other stages, and weights are made equal by
    DeepSpeed. Parameters that had no part in a loss are looked for at every step: methods have
    some, and only then PyTorch leaves the buckets as they were made. It would otherwise arrange
    them anew behind the first step of a process, and as the order in which ranks are summed depends
    on a number's place in its bucket, a resumed training would differ in the last bit.

    Attributes:
        last: called when the last bucket is complete: what follows only waits for other ranks.

    Args:
        module: gives a loss.
        dtype: in which gradients travel.
    """

    def __init__(self, module: nn.Module, dtype: str = "fp32") -> None:
        warnings.filterwarnings("ignore", ".*find_unused_parameters=True was specified.*")
        # Its replacement would still make buffers equal at the start.
        warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated.*", FutureWarning)
        super().__init__(
            module,
            init_sync=False,
            broadcast_buffers=False,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
        self.last: Callable[[], Any] = lambda: None
        average = _HOOKS[dtype]

        def told(state: None, bucket: GradBucket) -> Future[Tensor]:
            if bucket.is_last():
                self.last()
            return average(None, bucket)

        self.register_comm_hook(None, told)
