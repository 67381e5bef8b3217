"""How much may wait, in all and of one client, and what the refused are told.

Lives in the server's process, before any worker. Counts requests and prompt tokens that have been
accepted and have not started. Does not know models, devices, or why a request waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, exp

from tenfold.core.clock import Clock, SystemClock
from tenfold.core.errors import Overloaded
from tenfold.core.settings import ClientSettings, QueueSettings


@dataclass(slots=True, frozen=True)
class Load:
    """Requests and their prompt tokens: how many wait, or how many may."""

    requests: int = 0
    tokens: int = 0


@dataclass(slots=True, frozen=True)
class Limits:
    """What may wait in all, of each client, and of those that have their own. None: anything."""

    server: Load | None = Load(1024, 1 << 20)
    client: Load | None = Load(512, 1 << 19)
    named: Mapping[str, Load] = field(default_factory=dict)

    @classmethod
    def unbounded(cls) -> Limits:
        """For a queue that only one program fills."""
        return cls(None, None)

    @classmethod
    def from_settings(cls, queue: QueueSettings, clients: Iterable[ClientSettings] = ()) -> Limits:
        """What a client leaves open is as for everybody."""
        usual = Load(queue.client_requests, queue.client_tokens)
        named = {
            c.name: Load(
                usual.requests if c.max_requests is None else c.max_requests,
                usual.tokens if c.max_tokens is None else c.max_tokens,
            )
            for c in clients
        }
        return cls(Load(queue.max_requests, queue.max_tokens), usual, named)


class _Rate:
    """Amount a second of late: each amount's weight decays with time constant ``memory``."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._born: float | None = None
        self._at = 0.0
        self._sum = 0.0

    def add(self, amount: float, now: float) -> None:
        if self._born is None:
            self._born = self._at = now
        self._sum = self._sum * self._decay(now) + amount
        self._at = max(self._at, now)

    def value(self, now: float) -> float:
        """0 when nothing was ever added. The first second counts as a whole one."""
        if self._born is None:
            return 0.0
        seen = 1 - exp(-max(1.0, now - self._born) / self._memory)
        return self._sum * self._decay(now) / (self._memory * seen)

    def _decay(self, now: float) -> float:
        return exp(-max(0.0, now - self._at) / self._memory)


class _Line:
    """What waits in one scope, and how fast it starts."""

    def __init__(self, whose: str, bound: Load | None, memory: float) -> None:
        self.whose = whose
        self.bound = bound
        self.requests = 0
        self.tokens = 0
        self._request_rate = _Rate(memory)
        self._token_rate = _Rate(memory)

    @property
    def load(self) -> Load:
        return Load(self.requests, self.tokens)

    def check(self, tokens: int, now: float, longest: float) -> None:
        bound = self.bound
        if bound is None:
            return
        if self.requests + 1 > bound.requests:
            excess = self.requests + 1 - bound.requests
            wait = _seconds(excess, self._request_rate.value(now), longest)
            raise self._refusal(f"{self.requests} requests", bound.requests, wait)
        # A line that is empty takes any request: one prompt may be longer than the whole bound.
        if self.requests and self.tokens + tokens > bound.tokens:
            excess = self.tokens + tokens - bound.tokens
            wait = _seconds(excess, self._token_rate.value(now), longest)
            held = f"{self.tokens} prompt tokens, and this request has {tokens} more"
            raise self._refusal(held, bound.tokens, wait)

    def enter(self, tokens: int) -> None:
        self.requests += 1
        self.tokens += tokens

    def leave(self, tokens: int, now: float) -> None:
        if self.requests < 1 or self.tokens < tokens:
            raise ValueError(
                f"a request of {tokens} tokens left {self.whose}, where {self.requests} requests "
                f"with {self.tokens} tokens wait"
            )
        self.requests -= 1
        self.tokens -= tokens
        self._request_rate.add(1, now)
        self._token_rate.add(tokens, now)

    def _refusal(self, held: str, bound: int, wait: float) -> Overloaded:
        return Overloaded(
            f"{self.whose} holds {held}; at most {bound} may wait. "
            f"Try again in about {ceil(wait)} s, or send fewer at a time",
            retry_after=wait,
        )


class AdmissionController:
    """A bounded queue's book-keeping. Every ``admit`` is followed by one ``started`` or ``gone``.

    ``memory``: seconds over which the recent drain rate is taken. ``longest``: the most seconds
    that a refusal suggests to wait. Times are of ``clock`` where none is given.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Clock | None = None,
        memory: float = 10.0,
        longest: float = 60.0,
    ) -> None:
        self.limits = limits
        self._clock = clock or SystemClock()
        self._memory = memory
        self._longest = longest
        self._server = _Line("the server's queue", limits.server, memory)
        self._lines: dict[str, _Line] = {}

    @property
    def waiting(self) -> Load:
        """What waits in all."""
        return self._server.load

    @property
    def clients(self) -> dict[str, Load]:
        """What waits of each client that has something waiting."""
        return {name: line.load for name, line in self._lines.items()}

    def set_limits(self, limits: Limits) -> None:
        """These limits from now on. What waits already goes on waiting."""
        self.limits = limits
        self._server.bound = limits.server
        for name, line in self._lines.items():
            line.bound = limits.named.get(name, limits.client)

    def admit(self, client: str, tokens: int, now: float | None = None) -> None:
        """Count a request of so many prompt tokens as waiting.

        Raises Overloaded, with nothing counted, when the server's bound or the client's is reached.
        """
        at = self._clock.now() if now is None else now
        line = self._lines.get(client) or self._new_line(client)
        self._server.check(tokens, at, self._longest)
        line.check(tokens, at, self._longest)
        self._lines[client] = line
        self._server.enter(tokens)
        line.enter(tokens)

    def started(self, client: str, tokens: int, now: float | None = None) -> None:
        """A waiting request began to run. Raises ValueError when none of the client's waits."""
        at = self._clock.now() if now is None else now
        line = self._lines.get(client) or self._new_line(client)
        line.leave(tokens, at)
        self._server.leave(tokens, at)
        if not line.requests:
            # Its rate matters only while it is full; clients that went away must not pile up.
            del self._lines[client]

    def gone(
        self, client: str, tokens: int, *, queued: bool = True, now: float | None = None
    ) -> None:
        """A request ended. ``queued``: it had not started, and leaves the queue only now."""
        if queued:
            self.started(client, tokens, now)

    def _new_line(self, client: str) -> _Line:
        bound = self.limits.named.get(client, self.limits.client)
        return _Line(f"the queue of client {client!r}", bound, self._memory)


def _seconds(excess: float, rate: float, longest: float) -> float:
    """Until ``excess`` has drained at ``rate``, between a second and ``longest``."""
    return longest if rate * longest <= excess else max(1.0, excess / rate)
