"""The policy protocol: which waiting request of one model is offered next.

A policy orders; it never sees blocks or pages. The batcher asks for ``candidates`` and tries to
admit each. What a policy needs for fairness comes back through the charging calls: ``admitted`` and
``prefilled`` (tokens really computed, for extend charges), ``decoded`` (tokens a client's requests
produced in a step). DLPM keeps its deficits there: eligible while positive, charged at admission
and after every step, refilled inside ``candidates`` when nobody eligible is left (dlpm Alg. 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in a policy's queue. ``order``: its arrival number; smaller ``priority`` is first.

    ``hashes``: chained hashes of its prompt's full blocks, by which siblings are recognised.
    """

    id: str
    client: str
    prompt_tokens: int
    arrival: float
    priority: int = 0
    deadline: float | None = None
    order: int = 0
    hashes: list[int] = field(default_factory=list)


class Matches(Protocol):
    """How much of each waiting request is cached, kept current (``kvcache.waiting.MatchIndex``)."""

    def matched(self, key: str) -> int: ...
    def take_changed(self) -> set[str]: ...


class Policy(Protocol):
    """Orders the waiting requests of one model. One thread; no clock of its own."""

    blocking: bool
    """True: when the best candidate does not fit, nobody after it is tried this step."""

    def add(self, waiting: Waiting) -> None:
        """A request arrives."""
        ...

    def remove(self, waiting: Waiting) -> None:
        """A request leaves the queue: admitted, aborted or expired. Unknown ones are ignored."""
        ...

    def preempted(self, waiting: Waiting) -> None:
        """A running request is back, at the front of its priority class. Nothing is refunded, and
        computing it again is not charged."""
        ...

    def candidates(self, now: float) -> Iterator[Waiting]:
        """Requests to try, best first. The caller may ``remove`` what was yielded while it
        iterates."""
        ...

    def admitted(self, waiting: Waiting, extend_tokens: int) -> None:
        """It left the queue to run; ``extend_tokens`` of its prompt must be computed and have not
        been charged before."""
        ...

    def prefilled(self, client: str, tokens: int) -> None:
        """So many new prompt tokens of a client were computed in a step."""
        ...

    def decoded(self, counts: Mapping[str, int]) -> None:
        """Tokens produced in a step, by client."""
        ...

    def finished(self, client: str) -> None:
        """A request that had run has left the engine, however it ended."""
        ...

    def __len__(self) -> int: ...


class Uncharged:
    """The charging half of a policy that keeps no accounts."""

    def admitted(self, waiting: Waiting, extend_tokens: int) -> None: ...
    def prefilled(self, client: str, tokens: int) -> None: ...
    def decoded(self, counts: Mapping[str, int]) -> None: ...
    def finished(self, client: str) -> None: ...
