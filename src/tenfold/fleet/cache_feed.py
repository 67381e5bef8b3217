"""Keeps a router's picture of caches true, though news of them may be lost, doubled or disordered.

Updates of a worker's model are numbered. The next number is applied, an old one ignored; where one
is missing, the router forgets what it knew of that cache and the worker is asked to tell all of it
anew. Knows no requests, and not how news travel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tenfold.core.clock import Clock
from tenfold.core.messages import PrefixUpdate
from tenfold.scheduling.routing.base import RoutingPolicy

AGAIN_SECONDS = 1.0
"""A worker that was asked and did not answer is not asked again before."""


@dataclass(slots=True)
class _Cache:
    """One model at one worker. ``applied``: the last update; None before a whole one came.
    ``latest``: the highest number that was seen."""

    applied: int | None = None
    latest: int = 0


class CacheFeed:
    """From numbered updates to ``inserted``, ``evicted`` and ``cleared`` of a policy."""

    def __init__(self, policy: RoutingPolicy, ask: Callable[[str], None], clock: Clock) -> None:
        self._policy = policy
        self._ask = ask
        self._clock = clock
        self._caches: dict[tuple[str, str], _Cache] = {}
        self._asked: dict[str, float] = {}

    def begin(self, worker: str) -> None:
        """A worker came up: ask it."""
        self.forget(worker)
        self._ask_anew(worker)

    def forget(self, worker: str, model: str | None = None) -> None:
        """The worker is gone, or one of its models; numbers begin anew with its successor."""
        for key in [key for key in self._caches if key[0] == worker and model in (None, key[1])]:
            del self._caches[key]
        if model is None:
            self._asked.pop(worker, None)

    def take(self, worker: str, update: PrefixUpdate) -> None:
        """One update, whenever it comes."""
        cache = self._caches.setdefault((worker, update.model), _Cache())
        applied = cache.applied
        if applied is not None and update.number <= applied:
            return
        cache.latest = max(cache.latest, update.number)
        if update.whole:
            self._asked.pop(worker, None)
        if update.whole or update.number - 1 == applied:
            self._apply(worker, update)
            cache.applied = update.number
        elif applied is not None:
            self._policy.cleared(worker, update.model)
            cache.applied = None
        if cache.applied != cache.latest:
            self._ask_anew(worker)

    def _ask_anew(self, worker: str) -> None:
        now = self._clock.now()
        if now - self._asked.get(worker, -AGAIN_SECONDS) >= AGAIN_SECONDS:
            self._asked[worker] = now
            self._ask(worker)

    def _apply(self, worker: str, update: PrefixUpdate) -> None:
        if update.whole:
            self._policy.cleared(worker, update.model)
        if update.evicted:
            self._policy.evicted(worker, update.model, update.evicted)
        for after, hashes in update.inserted:
            self._policy.inserted(worker, update.model, after, hashes)
