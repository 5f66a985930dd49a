"""A copy of tensors in host memory, and a thread that works while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from recipes.engine.shards import Stored

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Snapshot:
    """One block of host memory, used again by every save, that holds tensors end to end.

    On CUDA it is pinned and filled by copies queued on the current stream: the next optimizer step
    comes behind them, and nobody waits but the writer.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._block = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
        """Copy tensors and say where they lie.

        Raises:
            TypeError: a tensor's type is none of safetensors'.
        """
        # Wide elements first, so that each begins at a multiple of its size.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        layout, end = {}, 0
        for name in order:
            tensor = tensors[name]
            if tensor.dtype not in _NAMES:
                raise TypeError(f"{name} is of {tensor.dtype}, which a checkpoint cannot hold")
            begin, end = end, end + tensor.numel() * tensor.element_size()
            layout[name] = Stored(_NAMES[tensor.dtype], tuple(tensor.shape), begin, end)
        self._provide(end)
        for name, stored in layout.items():
            tensor = tensors[name].detach()
            place = self._block[stored.begin : stored.end].view(tensor.dtype)
            place.copy_(tensor.reshape(-1), non_blocking=True)
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return layout

    def data(self) -> memoryview:
        """The bytes; waits for the copies."""
        if self._copied is not None:
            self._copied.synchronize()
        return memoryview(self._block.numpy().data)

    def _provide(self, size: int) -> None:
        if self._block.numel() != size:
            pinned = self._device.type == "cuda"
            self._block = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


class Background:
    """Runs one piece of work at a time in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.seconds = 0.0

    @property
    def running(self) -> bool:
        """Whether the work has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Begin; the work before must have ended."""
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def wait(self) -> Exception | None:
        """Wait for the end; returns, once, what the work raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def _run(self, work: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            work()
        except Exception as error:  # told to the rank's main thread by `wait`
            self._error = error
        self.seconds = time.monotonic() - began
