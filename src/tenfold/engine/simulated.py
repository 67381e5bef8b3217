"""An executor without a device: tokens are made up, time is a cost model's, the clock is virtual.

The loop, the policies, the prefix tree and the page ledger above it are the very objects of the
real engine, so what is simulated is what ships.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np

from tenfold.core.clock import VirtualClock
from tenfold.costs.step import StepModel
from tenfold.engine.executor import StepTime
from tenfold.engine.sequence import Choice, Sequence, Slice, StepPlan, Tokens

_TOKENS, _STRIDE, _INVERSE = 97, 31, 72
"""Made-up tokens lie below a prime and go round it; stride x inverse is 1 modulo the prime."""

_LONGEST = 4096


def _counting(seq: Sequence, ahead: int) -> int:
    """A token that depends only on the sequence's own prompt and position."""
    return ((seq.tokens.length + ahead) * _STRIDE + seq.tokens.first) % _TOKENS


class SimulatedRunner:
    """Executor whose step takes ``costs.predict(plan.shape)`` virtual seconds.

    ``next_token(seq, ahead)`` makes up the token that comes after ``ahead`` more ones."""

    def __init__(
        self,
        clock: VirtualClock,
        costs: StepModel,
        next_token: Callable[[Sequence, int], int] = _counting,
    ) -> None:
        self.clock = clock
        self.costs = costs
        self.next_token = next_token
        self.time = StepTime()
        self._ring = np.arange(_TOKENS + _LONGEST, dtype=np.int32) * _STRIDE % _TOKENS

    def prepare(self) -> None:
        """Nothing to prepare."""

    def execute(self, plan: StepPlan) -> list[Choice]:
        self.clock.advance(self.costs.predict(plan.shape))
        return [self._choose(piece) for piece in plan.slices if piece.samples]

    def tokens_ahead(self, seq: Sequence, count: int) -> Tokens:
        """The next ``count`` tokens of a sequence."""
        if self.next_token is not _counting or count > _LONGEST:
            return np.array([self.next_token(seq, i) for i in range(count)], dtype=np.int32)
        start = _counting(seq, 0) * _INVERSE % _TOKENS
        return self._ring[start : start + count]

    def _choose(self, piece: Slice) -> Choice:
        tokens = [self.next_token(piece.seq, 0)]
        for guess in piece.draft:
            if guess != tokens[-1]:
                break
            tokens.append(self.next_token(piece.seq, len(tokens)))
        return Choice(tokens)

    def forget(self, request_id: str) -> None:
        """Nothing is kept per request."""


class CountingPages:
    """Physical pages that are only counted: the page source of a simulated device."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0

    def map(self, pages: Seq[int]) -> bool:
        count = len(pages)
        if self.used + count > self.capacity:
            return False
        self.used += count
        return True

    def unmap(self, pages: Seq[int]) -> None:
        self.used -= len(pages)

    def available(self) -> int:
        return self.capacity - self.used


class ModelPages:
    """One model's part of counted pages, with a limit of its own. ``used``: of this model."""

    def __init__(self, whole: CountingPages) -> None:
        self.whole = whole
        self.used = 0
        self.limit: int | None = None

    def map(self, pages: Seq[int]) -> bool:
        count = len(pages)
        if self.limit is not None and self.used + count > self.limit:
            return False
        if not self.whole.map(pages):
            return False
        self.used += count
        return True

    def unmap(self, pages: Seq[int]) -> None:
        self.used -= len(pages)
        self.whole.unmap(pages)

    def available(self) -> int:
        free = self.whole.available()
        return free if self.limit is None else min(free, max(0, self.limit - self.used))


class CountedWeights:
    """Implements ``weights.ModelWeights`` over counted pages. ``host`` and ``disk``: seconds that
    they take from there."""

    def __init__(
        self, source: ModelPages, pages: int, host: float = 0.0, disk: float = 0.0
    ) -> None:
        self.pages = pages
        self.of = source.whole
        self._source = source
        self._host = host
        self._disk = disk or host
        self._cold = False
        self.mapped = False

    def map(self) -> bool:
        self.mapped = self.mapped or self._source.map(range(self.pages))
        return self.mapped

    def missing(self) -> int:
        return self.pages - self._source.available()

    def fill(self) -> None:
        """Nothing to write, but now the host has them."""
        self._cold = False

    def unmap(self) -> None:
        if self.mapped:
            self.mapped = False
            self._source.unmap(range(self.pages))

    def hold_host(self) -> None:
        """They stay until told otherwise."""

    def leave_host(self) -> None:
        self._cold = True

    def seconds(self) -> float:
        """Of the next fill, after which the host has them."""
        return self._disk if self._cold else self._host
