"""A device's scratch: what steps need for a moment, from the same pool as weights, keys and values.

One range serves all models of a device, as they take turns. Its pages are mapped from the first on,
and those that a model may use stay until it is gone, so recorded steps find their addresses again.
Knows nothing of what a step computes; who must give way for it is the batcher's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.core.errors import OutOfMemory
from tenfold.memory.pool import PagePool, VirtualRange

OWNER = "(scratch)"
"""In the pool's books."""


class PoolScratch:
    """Implements ``kernels.scratch.ScratchMemory`` over one range of the pool.

    ``admit`` and ``leave`` are for the thread that loads, the rest for the engine's too."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._range: VirtualRange | None = None
        self._limits: dict[str, int] = {}

    @property
    def pages(self) -> int:
        """Mapped now."""
        space = self._range
        return 0 if space is None else space.mapped_pages

    def admit(self, model: str, limit: int) -> None:
        """A model whose steps may take up to ``limit`` pages."""
        with self._pool.held():
            if self._range is None:
                whole = self._pool.stats().capacity * self._pool.page_bytes
                self._range = self._pool.create(OWNER, "scratch", whole, grows=False)
            self._limits[model] = limit
            self._pool.set_limit(OWNER, max(self._limits.values()))

    def leave(self, model: str) -> bool:
        """The model is gone, and what no other may take is back. True when it was the last: then
        the addresses are void."""
        with self._pool.held():
            if self._limits.pop(model, None) is None or self._range is None:
                return False
            if self._limits:
                keep = max(self._limits.values())
                self._pool.set_limit(OWNER, keep)
                self._range.unmap(range(keep, self._range.mapped_pages))
                return False
            self._range = None
            self._pool.drop_owner(OWNER)
            return True

    @property
    def most(self) -> int:
        """Pages that steps of any model may take."""
        return max(self._limits.values(), default=0)

    def limit(self, model: str) -> int:
        """Pages that steps of this model may take; 0 for one that was not admitted."""
        return self._limits.get(model, 0)

    def reserve(self, nbytes: int) -> bool:
        """Back the first ``nbytes`` of the range; False, nothing changed, where pages lack."""
        wanted = -(-nbytes // self._pool.page_bytes)
        if wanted <= self.pages:
            return True
        with self._pool.held():
            space = self._range
            if space is None or wanted > space.pages:
                return False
            return space.map(range(space.mapped_pages, wanted))

    def grow(self, floats: int) -> Tensor:
        if not self.reserve(4 * floats):
            refusal = "" if self._range is None else self._range.refusal
            raise OutOfMemory(
                f"a step needs {4 * floats >> 10} KiB of scratch memory and cannot have it "
                f"({refusal or 'no such range'}); raise device.memory or lower "
                "device.max_step_tokens"
            )
        assert self._range is not None
        mapped = self._range.mapped_pages * self._pool.page_bytes
        return self._range.view((mapped // 4,), torch.float32)


@dataclass(slots=True)
class ModelScratch:
    """The scratch as one model's batcher sees it. ``need``: bytes for (tokens, rows of logits)."""

    scratch: PoolScratch
    need: Callable[[int, int], int]
    most_bytes: int

    def fits(self, tokens: int, rows: int) -> bool:
        return self.need(tokens, rows) <= self.most_bytes

    def reserve(self, tokens: int, rows: int) -> bool:
        return self.scratch.reserve(self.need(tokens, rows))
