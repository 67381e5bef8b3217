"""Longest prefix match: whose prompt is cached furthest goes first (SGLang's cache-aware order).

It raises the hit rate because requests that share a prefix run one after another. It has no age
term: while requests with longer matches keep coming, one with a shorter match can wait for ever.
That is the policy, and nothing here softens it. Does not know clients or sizes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from tenfold.scheduling.base import PolicySetup, Waiting
from tenfold.scheduling.queue import QueuePolicy
from tenfold.scheduling.siblings import Siblings

SIBLING_TOKENS = 32
"""Prompt that requests must share, and that is not cached, to be siblings."""

BLOCK_TOKENS = 16
"""Where nothing says how matches come."""


class LPM(QueuePolicy):
    """Longest match first, earlier arrival on ties, and one of several siblings at a time. The
    order is kept up to date change by change, so a long queue is ordered like a short one."""

    blocking = False

    def __init__(
        self, setup: PolicySetup | None = None, *, sibling_tokens: int = SIBLING_TOKENS
    ) -> None:
        super().__init__()
        self._matches = None if setup is None else setup.matches
        block = BLOCK_TOKENS if self._matches is None else self._matches.block_tokens
        self.siblings = Siblings(block, sibling_tokens)

    def rank(self, w: Waiting) -> int:
        return -w.matched

    def add(self, w: Waiting) -> None:
        if self._matches is not None and w.id in self._matches:
            w.matched = self._matches.matched(w.id)
        super().add(w)

    def remove(self, w: Waiting) -> None:
        super().remove(w)
        self.siblings.forget(w.id)

    def candidates(self, now: float) -> Iterator[Waiting]:
        self.refresh()
        self.siblings.new_pass()
        for w in self.queue.walk():
            if self.siblings.defer(w):
                continue
            yield w
            if w.id not in self.queue:
                self.siblings.admitted(w)

    def reason(self, w: Waiting) -> str:
        return f"{w.matched} of {w.prompt_tokens} prompt tokens are cached" + self.siblings.note(w)

    def refresh(self) -> None:
        """Bring the order up to date with what is cached."""
        if self._matches is None:
            for w in list(self.queue.walk()):
                self.queue.move(w)
            return
        for id in self._matches.take_changed():
            found = self.queue.get(id)
            if found is not None and found.matched != (now := self._matches.matched(id)):
                found.matched = now
                self.queue.move(found)
