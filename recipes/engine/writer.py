"""A copy of tensors in host memory, and a thread that works while training goes on."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from recipes.engine.shards import Stored

log = logging.getLogger(__name__)

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
        self._unpin: Callable[[], object] = _nothing

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
        """The bytes; waits for the copies.

        In whatever thread: without its device, CUDA would make this rank a context on device 0.
        """
        if self._copied is not None:
            with torch.cuda.device(self._device):
                self._copied.synchronize()
        return memoryview(self._block.numpy().data)

    def _provide(self, size: int) -> None:
        if self._block.numel() == size:
            return
        self._unpin()
        self._unpin = _nothing
        self._block = torch.empty(size, dtype=torch.uint8)
        if self._device.type == "cuda" and pin(self._block):
            finalizer = weakref.finalize(self, _unregister, self._block.data_ptr())
            finalizer.atexit = False
            self._unpin = finalizer


def pin(block: Tensor) -> bool:
    """Lock a tensor's memory, so that a device copies to it while the host goes on.

    PyTorch's own allocator of pinned memory rounds up to a power of two, of many GB here, and
    gives none of it back. Where the host does not let memory be locked (`ulimit -l`), ordinary
    memory does as well: a save then waits for the copies.
    """
    size = block.numel() * block.element_size()
    if not size:
        return False
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    try:
        torch.cuda.check_error(int(runtime.cudaHostRegister(block.data_ptr(), size, 0)))
    except RuntimeError as error:
        log.warning(
            "cannot pin %.2f GB for checkpoints (%s): saves stall longer", size / 1e9, error
        )
        _forget_error()
        return False
    return True


def _forget_error() -> None:
    """CUDA would blame the next kernel for it."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda")


def _unregister(address: int) -> None:
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    runtime.cudaHostUnregister(address)


def _nothing() -> None:
    """What there is to do for memory that is not pinned."""


class Background:
    """Runs one piece of work at a time in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._moves = self._seen = 0
        self.seconds = 0.0

    @property
    def running(self) -> bool:
        """Whether the work has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Begin; the work before must have ended."""
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def moved(self) -> None:
        """For the work to call whenever it has got on."""
        self._moves += 1

    def rest(self, seconds: float) -> bool:
        """Wait for the end, but not longer; whether the work got on since the last call."""
        if self._thread is not None:
            self._thread.join(seconds)
        moves, before = self._moves, self._seen
        self._seen = moves
        return moves != before

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
