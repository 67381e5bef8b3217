"""The bounded queue in front of the engines: who may still wait, and when to try again.

Counts requests and prompt tokens that were taken and have not begun to run, in all and for each
client. Refusing early is kinder than letting a queue grow until every answer is late.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tenfold.core.errors import Overloaded
from tenfold.core.settings import ClientSettings, QueueSettings

_MEMORY = 0.2
_FIRST_GUESS = 1.0
_LONGEST = 60.0


@dataclass(slots=True)
class Load:
    """Requests and prompt tokens that wait, or may."""

    requests: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Limits:
    """The most that may wait: in all, of any client, and of clients with limits of their own."""

    total: Load
    client: Load
    named: dict[str, Load] = field(default_factory=dict)

    @staticmethod
    def unbounded() -> Limits:
        """No limits: for one user's own process."""
        return Limits(Load(1 << 62, 1 << 62), Load(1 << 62, 1 << 62))

    @staticmethod
    def from_settings(queue: QueueSettings, clients: Iterable[ClientSettings] = ()) -> Limits:
        common = Load(queue.client_requests, queue.client_tokens)
        named = {
            c.name: Load(c.max_requests or common.requests, c.max_tokens or common.tokens)
            for c in clients
        }
        return Limits(Load(queue.max_requests, queue.max_tokens), common, named)


class AdmissionController:
    """Keeps the count. Not thread-safe: the server's event loop owns it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting = Load()
        self.clients: dict[str, Load] = {}
        self._gap = _FIRST_GUESS
        self._left_at: float | None = None

    def admit(self, client: str, tokens: int, now: float) -> None:
        """Take a request into the queue. Raises Overloaded with ``retry_after``, taking nothing."""
        mine = self.clients.get(client, Load())
        allowed = self.limits.named.get(client, self.limits.client)
        for load, limit, whose in (
            (self.waiting, self.limits.total, "the server's queue"),
            (mine, allowed, f"the queue of client {client!r}"),
        ):
            over = _over(load, limit, tokens)
            if over:
                wait = self.retry_after(load)
                raise Overloaded(
                    f"{whose} is full: {over}; try again in {wait:.0f} s", retry_after=wait
                )
        self.clients[client] = mine
        for load in (self.waiting, mine):
            load.requests += 1
            load.tokens += tokens

    def started(self, client: str, tokens: int, now: float) -> None:
        """A request left the queue to run."""
        self._remove(client, tokens)
        if self._left_at is not None:
            self._gap += _MEMORY * (max(0.0, now - self._left_at) - self._gap)
        self._left_at = now

    def gone(self, client: str, tokens: int, *, queued: bool) -> None:
        """A request ended; ``queued``: it had never left the queue."""
        if queued:
            self._remove(client, tokens)

    def retry_after(self, load: Load) -> float:
        """Seconds until about a tenth of this queue has drained at the recent pace: 1 to 60."""
        return min(_LONGEST, max(1.0, self._gap * load.requests / 10))

    def _remove(self, client: str, tokens: int) -> None:
        mine = self.clients[client]
        for load in (self.waiting, mine):
            load.requests -= 1
            load.tokens -= tokens
        if not mine.requests:
            del self.clients[client]


def _over(load: Load, limit: Load, tokens: int) -> str:
    if load.requests + 1 > limit.requests:
        return f"{load.requests} requests wait and {limit.requests} may"
    if load.tokens + tokens > limit.tokens:
        return f"{load.tokens} prompt tokens wait, {tokens} more came, {limit.tokens} may"
    return ""
