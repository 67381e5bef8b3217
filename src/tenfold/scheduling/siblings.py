"""Requests that share a prefix nobody has computed yet: one computes it, the others wait for it.

Knows blocks of tokens by their chained hashes; not in which order requests are tried, nor why.
"""

from __future__ import annotations

from typing import NamedTuple

from tenfold.scheduling.base import Waiting


class _Deferral(NamedTuple):
    leader: Waiting
    matched: int


class Siblings:
    """Siblings share at least ``sibling_tokens`` of prompt which is not cached. Once one of them is
    admitted the others sit out the pass, and the passes after it as long as their own match grows
    towards the rest of that shared part: it is being computed for them."""

    def __init__(self, block_tokens: int, sibling_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._blocks = max(1, -(-sibling_tokens // block_tokens))
        self._deferred: dict[str, _Deferral] = {}
        self._computing: dict[int, Waiting] = {}

    def new_pass(self) -> None:
        self._computing = {}

    def defer(self, w: Waiting) -> bool:
        """Whether the request should wait for a sibling now."""
        shared = self._shared(w, w)
        leader = None
        if shared is not None:
            leader = self._computing.get(shared) or self._leader(w, shared)
        if leader is None:
            self._deferred.pop(w.id, None)
            return False
        self._deferred[w.id] = _Deferral(leader, w.matched)
        return True

    def admitted(self, w: Waiting) -> None:
        """The request, tried in this pass, runs: it computes what it shares."""
        shared = self._shared(w, w)
        if shared is not None:
            self._computing[shared] = w

    def forget(self, id: str) -> None:
        self._deferred.pop(id, None)

    def note(self, w: Waiting) -> str:
        """For whom the request waits, in words; nothing if for nobody."""
        found = self._deferred.get(w.id)
        return f"; {found.leader.id} is computing what it shares with it" if found else ""

    def _shared(self, w: Waiting, owner: Waiting) -> int | None:
        """The owner's hash of the part that ``w`` and its siblings lack; None when it is short."""
        last = w.matched // self._block_tokens + self._blocks - 1
        return owner.hashes[last] if last < len(owner.hashes) else None

    def _leader(self, w: Waiting, shared: int) -> Waiting | None:
        """The admitted sibling that was waited for, if it still computes this part."""
        deferral = self._deferred.get(w.id)
        if deferral is None or w.matched <= deferral.matched:
            return None
        return deferral.leader if self._shared(w, deferral.leader) == shared else None
