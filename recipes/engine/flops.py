"""Floating-point operations of a model, and what share of a device's peak a training reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from recipes.data.loader import Batch
from recipes.engine import state
from recipes.engine.deepspeed_engine import Engine

# A backward pass needs the gradient by the input and that by the weights, each as much as forward.
TRAINING = 3

Precision = Literal["fp32", "bf16", "fp16"]


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of the matrix products and convolutions that run inside it.

    It looks on: results, random numbers and gradients are those there would be without it. The
    formulas are those of `torch.utils.flop_counter`, whose own mode also hooks every module, which
    a model split by ZeRO 3 would feel.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._running = False

    def start(self) -> None:
        """Count from now on."""
        self._running = True
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Count no longer; may be called again."""
        if self._running:
            self._running = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and add what it costs."""
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=output))
        return output


@contextmanager
def rehearsal(model: nn.Module) -> Iterator[None]:
    """A forward pass inside, without compiled code, leaves no trace.

    What it compiles would be compiled for the counter. Gradients are not made, random numbers drawn
    are drawn again, buffers get their values back.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    random = state.capture_random()
    eager = torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad(), eager:
            yield
    finally:
        state.restore_random(*random)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def counted(engine: Engine, batch: Batch, *, rehearse: bool) -> Iterator[Counter]:
    """Count the forward pass of a micro-batch that runs inside, until the counter is stopped.

    Args:
        engine: around the model.
        batch: what runs.
        rehearse: count it beforehand instead: compiled code cannot be looked at.
    """
    counter = Counter()
    if rehearse:
        with engine.full_weights(), rehearsal(engine.model), counter:
            engine.model.loss(batch)  # type: ignore[operator]
        yield counter
        return
    counter.start()
    try:
        yield counter
    finally:
        counter.stop()


def parameters(model: nn.Module) -> int:
    """Numbers in all parameters, of which ZeRO 3 leaves a rank a part."""
    return sum(int(getattr(one, "ds_numel", one.numel())) for one in model.parameters())


class Peak(NamedTuple):
    """TFLOP/s of dense matrices; `full` is of TF32 where the device has it, else of fp32.

    `half` holds for fp16 and bf16, with sums in fp32.
    """

    name: str
    half: float
    full: float
    bf16: bool = True


# NVIDIA's data sheets; where they give figures for sparse matrices only, half of those. GeForce:
# appendices of the white papers on GA102 and Ada. The first name that occurs counts.
PEAKS = (
    Peak("H200 NVL", 835.5, 417.5),
    Peak("H200", 989.5, 494.5),
    Peak("GH200", 989.5, 494.5),
    Peak("H100 PCIe", 756.5, 378.0),
    Peak("H100 NVL", 835.5, 417.5),
    Peak("H100", 989.5, 494.5),
    Peak("A100", 312.0, 156.0),
    Peak("A30", 165.0, 82.0),
    Peak("A10", 125.0, 62.5),
    Peak("A40", 149.7, 74.8),
    Peak("L40S", 362.0, 183.0),
    Peak("L40", 181.0, 90.5),
    Peak("L4", 121.0, 60.0),
    Peak("V100-PCIE", 112.0, 14.0, bf16=False),
    Peak("V100", 125.0, 15.7, bf16=False),
    Peak("T4", 65.0, 8.1, bf16=False),
    Peak("RTX 3090", 71.0, 35.6),
    Peak("RTX 4090", 165.2, 82.6),
    Peak("RTX A6000", 154.8, 77.4),
    Peak("RTX 6000 Ada", 364.2, 182.1),
)


def peak_tflops(device_name: str, precision: Precision) -> float | None:
    """What a device can do at most, in TFLOP/s; None where it is not known.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it, "NVIDIA A100-SXM4-80GB".
        precision: of the training; `fp32` uses TF32 in convolutions, as PyTorch does by default.
    """
    for peak in PEAKS:
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(peak.name)}(?![A-Za-z0-9])", device_name):
            if precision == "fp32":
                return peak.full
            return peak.half if precision == "fp16" or peak.bf16 else None
    return None


def achieved(
    flops_per_clip: float,
    clips_per_second_per_device: float,
    device: torch.device,
    precision: Precision,
) -> dict[str, float]:
    """TFLOP/s of a device in training, and where its peak is known the share: the MFU.

    Args:
        flops_per_clip: of a forward pass. A recomputed one (activation checkpointing) does not
            count, as is usual for the model's utilisation.
        clips_per_second_per_device: trained on.
        device: this rank's.
        precision: of the training.
    """
    tflops = TRAINING * flops_per_clip * clips_per_second_per_device / 1e12
    values = {"speed/tflops_per_device": tflops}
    if device.type == "cuda":
        peak = peak_tflops(torch.cuda.get_device_name(device), precision)
        if peak is not None:
            values["speed/mfu"] = tflops / peak
    return values
