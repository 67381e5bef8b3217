"""Bytes on their way to a GPU: pinned buffers, filled by the CPU while the last one is copied.

A copy from ordinary memory passes through the driver's own pinned buffer and waits for it; two
buffers of our own and a stream for copies let both sides work at once. Not yet run on a GPU.
Knows nothing of what the bytes are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor


class CopyEngine(Protocol):
    """What of torch's CUDA streams is used here; tests give a machine without a device."""

    def pinned(self, nbytes: int) -> Tensor:
        """Page-locked memory (uint8)."""
        ...

    def copying(self) -> AbstractContextManager[Any]:
        """Work issued inside goes to the stream for copies."""
        ...

    def mark(self) -> Callable[[], None]:
        """After what was issued so far on the stream in use: a function that waits for it."""
        ...

    def join(self) -> None:
        """Work issued from now on waits for all copies."""
        ...


class CudaCopies:
    """The real one, with a stream of its own on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def copying(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event.synchronize

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


class Uploads:
    """Copies to a device through two pinned buffers of ``chunk`` bytes. One thread at a time."""

    def __init__(self, engine: CopyEngine, chunk: int = 32 << 20) -> None:
        self._engine = engine
        self._buffers = [engine.pinned(chunk) for _ in range(2)]
        self._waits: list[Callable[[], None]] = [_no_wait, _no_wait]
        self._next = 0

    def copy(self, to: Tensor, values: Tensor) -> None:
        """``to`` (dense, on the device) gets ``values`` (dense, same type, on the CPU) some time
        before ``finish`` returns. ``values`` may change at once."""
        source, goal = values.view(torch.uint8).view(-1), to.view(torch.uint8).view(-1)
        chunk = len(self._buffers[0])
        for start in range(0, len(source), chunk):
            part = source[start : start + chunk]
            slot, self._next = self._next, 1 - self._next
            self._waits[slot]()
            buffer = self._buffers[slot][: len(part)]
            buffer.copy_(part)
            with self._engine.copying():
                goal[start : start + len(part)].copy_(buffer, non_blocking=True)
                self._waits[slot] = self._engine.mark()

    def finish(self) -> None:
        """Wait until everything has arrived."""
        for wait in self._waits:
            wait()
        self._waits = [_no_wait, _no_wait]
        self._engine.join()


class StepInputs:
    """A step's index tensors to the device in one copy: pinned on one side, fixed on the other.

    What ``send`` gave before is overwritten by the next ``send``."""

    def __init__(self, engine: CopyEngine, device: torch.device) -> None:
        self._engine = engine
        self._device = device
        self._wait: Callable[[], None] = _no_wait
        self._pinned = torch.empty(0, dtype=torch.int32)
        self._there = torch.empty(0, dtype=torch.int32, device=device)

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Int32 tensors from the CPU -> the same on the device, each dense and 16-byte aligned."""
        sizes = [-(-x.numel() // _ALIGNED) * _ALIGNED for x in tensors]
        total = sum(sizes)
        self._wait()
        if total > len(self._pinned):
            room = 1 << max(12, (total - 1).bit_length())
            self._pinned = self._engine.pinned(4 * room).view(torch.int32)
            self._there = torch.empty(room, dtype=torch.int32, device=self._device)
        sent, at = [], 0
        for x, size in zip(tensors, sizes, strict=True):
            self._pinned[at : at + x.numel()].copy_(x.reshape(-1))
            sent.append(self._there[at : at + x.numel()].view(x.shape))
            at += size
        self._there[:total].copy_(self._pinned[:total], non_blocking=True)
        self._wait = self._engine.mark()
        return sent


_ALIGNED = 4


def _no_wait() -> None:
    """Nothing is under way."""
