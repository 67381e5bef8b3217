"""Longest prefix match: whose prompt is cached furthest goes first (SGLang's cache-aware order).

It raises the hit rate because requests that share a prefix run one after another. It has no age
term: while requests with longer matches keep coming, one with a shorter match can wait for ever.
That is the policy, and nothing here softens it. Does not know clients or sizes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tenfold.scheduling.base import Matches, Waiting
from tenfold.scheduling.queue import QueuePolicy


class _Deferral(NamedTuple):
    leader: Waiting
    matched: int


class LPM(QueuePolicy):
    """Longest match first, earlier arrival on ties, and one of several siblings at a time.

    Siblings are requests that share at least ``sibling_tokens`` of prompt which is not cached. Once
    one of them is admitted the others sit out the pass, and the passes after it as long as their
    own match grows towards the rest of that shared part: it is being computed for them. The order
    is kept up to date change by change, so a long queue is ordered like a short one.
    """

    blocking = False

    def __init__(
        self, matches: Matches | None = None, *, block_tokens: int = 16, sibling_tokens: int = 32
    ) -> None:
        super().__init__()
        self._matches = matches
        self._block_tokens = block_tokens if matches is None else matches.block_tokens
        self._sibling_blocks = max(1, -(-sibling_tokens // self._block_tokens))
        self._deferred: dict[str, _Deferral] = {}

    def rank(self, w: Waiting) -> int:
        return -w.matched

    def add(self, w: Waiting) -> None:
        if self._matches is not None and w.id in self._matches:
            w.matched = self._matches.matched(w.id)
        super().add(w)

    def remove(self, w: Waiting) -> None:
        super().remove(w)
        self._deferred.pop(w.id, None)

    def candidates(self, now: float) -> Iterator[Waiting]:
        self._refresh()
        computing: dict[int, Waiting] = {}
        for w in self.queue.walk():
            shared = self._shared_hash(w)
            leader = None if shared is None else computing.get(shared) or self._leader(w, shared)
            if leader is not None:
                self._deferred[w.id] = _Deferral(leader, w.matched)
                continue
            self._deferred.pop(w.id, None)
            yield w
            if shared is not None and w.id not in self.queue:
                computing[shared] = w

    def _refresh(self) -> None:
        if self._matches is None:
            for w in list(self.queue.walk()):
                self.queue.move(w)
            return
        for id in self._matches.take_changed():
            found = self.queue.get(id)
            if found is not None and found.matched != (now := self._matches.matched(id)):
                found.matched = now
                self.queue.move(found)

    def _shared_hash(self, w: Waiting) -> int | None:
        """What the request has in common with its siblings; None when too little is uncached."""
        last = w.matched // self._block_tokens + self._sibling_blocks - 1
        return w.hashes[last] if last < len(w.hashes) else None

    def _leader(self, w: Waiting, shared: int) -> Waiting | None:
        """The admitted sibling that was waited for, if it still computes this part."""
        deferral = self._deferred.get(w.id)
        if deferral is None or w.matched <= deferral.matched:
            return None
        last = w.matched // self._block_tokens + self._sibling_blocks - 1
        hashes = deferral.leader.hashes
        return deferral.leader if last < len(hashes) and hashes[last] == shared else None
