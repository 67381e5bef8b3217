"""k-LPM: one admission in k goes to the oldest request, the others by the longest match.

From "LLM Query Scheduling with Prefix Reuse and Latency Constraints" (arXiv 2502.04677). k = 1 is
first come, first served; a large k is LPM, whose starvation any finite k ends: nobody waits longer
than k admissions for each request that came before him. Does not know clients or sizes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from tenfold.scheduling.base import PolicySetup, Waiting
from tenfold.scheduling.lpm import LPM
from tenfold.scheduling.queue import SortedQueue


class KLPM(LPM):
    """LPM with ageing. When it is the oldest one's turn and he does not fit, nobody is admitted."""

    def __init__(self, setup: PolicySetup | None = None, *, k: int | None = None) -> None:
        super().__init__(setup)
        setup = setup or PolicySetup()
        self.k = setup.settings.k if k is None else k
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be at least 1")
        self._by_age = SortedQueue(lambda w: 0)
        self._since_oldest = 0

    def add(self, w: Waiting) -> None:
        super().add(w)
        self._by_age.add(w)

    def remove(self, w: Waiting) -> None:
        super().remove(w)
        self._by_age.discard(w.id)

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        oldest = next(self._by_age.walk(), None)
        self._since_oldest = 0 if w is oldest else self._since_oldest + 1
        super().admitted(w, extend_tokens)

    def candidates(self, now: float) -> Iterator[Waiting]:
        tried: set[str] = set()
        longest = super().candidates(now)
        while len(self.queue):
            if self._since_oldest >= self.k - 1:
                w = next(self._by_age.walk())
                if w.id in tried:
                    return
            else:
                found = next((w for w in longest if w.id not in tried), None)
                if found is None:
                    return
                w = found
            tried.add(w.id)
            yield w
            if w.id not in self.queue:
                self.siblings.admitted(w)
