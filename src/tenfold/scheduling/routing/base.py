"""The seam between the front door and the choice of a worker.

A routing policy is told of every request, and what becomes of it, in tokens; and of every change in
what workers have cached. It does not know what a worker is, how a request travels, or its text. The
same object runs in a server and in simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from tenfold.core.settings import RoutingSettings


@dataclass(slots=True)
class Routed:
    """A request as a router sees it. ``hashes``: the chained hashes of its prompt's full blocks
    (``kvcache.hashing``), so two requests share a prefix up to the last place where theirs are
    equal. ``output_limit``: tokens it may generate at most."""

    id: str
    client: str
    model: str
    prompt_tokens: int
    hashes: list[int] = field(default_factory=list)
    output_limit: int = 0
    block_tokens: int = 16


class RoutingPolicy(Protocol):
    """Chooses a worker for each request. One thread; none of the calls blocks.

    Every request that was ``choose``n ends by one ``finished`` or one ``dropped``.
    """

    @property
    def follows_caches(self) -> bool:
        """Whether it wants to be told what workers cache."""
        ...

    def join(self, worker: str) -> None:
        """A worker is there, with nothing cached and nothing to do."""
        ...

    def leave(self, worker: str) -> None:
        """A worker is gone with all it had cached; its requests were ``dropped`` or will be."""
        ...

    def set_weight(self, client: str, weight: float) -> None:
        """The client's share among all; 1 where nothing was said."""
        ...

    def choose(self, request: Routed, among: Collection[str], now: float) -> str:
        """The worker that gets the request at once, one of ``among`` (never empty, all joined; fast
        where it is a frozenset that is kept)."""
        ...

    def finished(self, id: str, output_tokens: int, now: float) -> None:
        """The request has ended, after so many output tokens. Unknown ids are ignored."""
        ...

    def dropped(self, id: str) -> None:
        """The request ended before it began to run, or its worker is gone: what it was charged and
        did not get is given back. Unknown ids are ignored."""
        ...

    def inserted(self, worker: str, model: str, after: int, hashes: list[int]) -> None:
        """The worker has cached these blocks behind the block ``after`` (0: the prompt's start)."""
        ...

    def evicted(self, worker: str, model: str, hashes: list[int]) -> None:
        """The worker no longer has these blocks. Unknown ones are ignored."""
        ...

    def cleared(self, worker: str, model: str) -> None:
        """The worker is about to tell anew all that it has cached for this model."""
        ...


RoutingFactory = Callable[[RoutingSettings], RoutingPolicy]
