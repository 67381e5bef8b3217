"""A model's weights on a GPU, which wait in page-locked memory of the host while the model sleeps.

Packing for a GPU means dequantising on the CPU, so the packed bytes are worth keeping: they are
copied to the host when a model first falls asleep, and waking is one copy back. Not yet run on a
GPU. Does not know why they come or go.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tenfold.kernels.cuda_staging import CopyEngine

if TYPE_CHECKING:
    from tenfold.memory.ranges import VirtualRange

BYTES_A_SECOND = 10e9
"""What a copy from page-locked memory is taken to bring, before it was seen."""


class PinnedWeights:
    """Implements ``weights.ModelWeights``. ``refill`` packs the checkpoint anew, where the host has
    nothing; ``use`` makes the device current on a thread, ``arrived`` waits for uploads."""

    def __init__(
        self,
        space: VirtualRange,
        refill: Callable[[], None],
        copies: CopyEngine,
        use: Callable[[], None],
        arrived: Callable[[], None],
    ) -> None:
        self.space = space
        self._refill = refill
        self._copies = copies
        self._use = use
        self._arrived = arrived
        self._host: Tensor | None = None
        self._whole = True
        """Whether the pages hold all of the weights."""
        self._took = 0.0

    @property
    def pages(self) -> int:
        return self.space.pages

    def map(self) -> bool:
        return self.space.map_all()

    def missing(self) -> int:
        return self.space.pages - self.space.mapped_pages - self.space.available()

    def _bytes(self) -> Tensor:
        return self.space.view((self.space.nbytes,), torch.uint8)

    def fill(self) -> None:
        self._use()
        self._whole = False
        began = perf_counter()
        if self._host is None:
            self._refill()
            self._arrived()
        else:
            self._copy(self._bytes(), self._host)
        self._whole = True
        self._took = perf_counter() - began

    def unmap(self) -> None:
        if not self.space.mapped_pages:
            return
        if self._host is None and self._whole:
            self._host = self._copies.pinned(self.space.nbytes)
            self._copy(self._host, self._bytes())
        self.space.unmap(range(self.space.pages))

    def _copy(self, to: Tensor, values: Tensor) -> None:
        with self._copies.copying():
            to.copy_(values, non_blocking=True)
            wait = self._copies.mark()
        wait()

    def hold_host(self) -> None:
        """``unmap`` took the copy."""

    def leave_host(self) -> None:
        self._host = None

    def seconds(self) -> float:
        return self._took or self.space.nbytes / BYTES_A_SECOND
