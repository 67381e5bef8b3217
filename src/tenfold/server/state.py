"""What one app holds: its backend, settings, counters, and whether it drains. No globals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request

from tenfold.core.clock import Clock, SystemClock
from tenfold.core.errors import TenfoldError, Unavailable
from tenfold.fleet.tenants import Tenants
from tenfold.server.auth import Authenticator
from tenfold.server.backend import Backend
from tenfold.server.clients import ClientBook
from tenfold.server.grammars import GrammarCheck
from tenfold.server.memory import DecisionCache
from tenfold.server.metrics import Metrics
from tenfold.server.service_book import ServiceBook
from tenfold.server.settings import ServerSettings
from tenfold.server.stats import StatsCache


@dataclass(slots=True)
class ServerState:
    """Shared by the handlers of one app. ``stoppers`` end the live requests with an error."""

    backend: Backend
    settings: ServerSettings
    clock: Clock
    tenants: Tenants
    auth: Authenticator
    book: ClientBook
    metrics: Metrics
    stats: StatsCache
    decisions: DecisionCache
    services: ServiceBook
    grammars: GrammarCheck
    started: float
    draining: bool = False
    stoppers: set[Callable[[TenfoldError], None]] = field(default_factory=set)
    drained: asyncio.Task[None] | None = None

    @classmethod
    def make(
        cls,
        backend: Backend,
        settings: ServerSettings,
        tenants: Tenants | None = None,
        clock: Clock | None = None,
    ) -> ServerState:
        clock = clock or SystemClock()
        tenants = tenants or Tenants(clock=clock)
        book = ClientBook(settings.max_client_labels)
        services = ServiceBook(book)
        metrics = Metrics(book, services, settings.metrics_compat)
        tenants.listen(lambda: metrics.follow(tenants.clients))
        return cls(
            backend=backend,
            settings=settings,
            clock=clock,
            tenants=tenants,
            auth=Authenticator(settings, tenants),
            book=book,
            metrics=metrics,
            stats=StatsCache(backend, clock, services),
            decisions=DecisionCache(backend, clock),
            services=services,
            grammars=GrammarCheck(),
            started=clock.now(),
        )

    def ready(self) -> bool:
        return not self.draining and self.backend.ready()

    def check_accepting(self) -> None:
        """Raises Unavailable while draining, or before the first model is ready."""
        if self.backend.accepting():
            return
        if self.draining:
            raise Unavailable("the server is draining; try another one", retry_after=5)
        raise Unavailable("no model is ready yet", retry_after=2)

    def drain(self) -> asyncio.Task[None]:
        """Start draining, once; the task ends when the running requests are done.

        ``/ready`` turns first, so that load balancers look away before requests are refused.
        """
        self.draining = True
        if self.drained is None:
            self.drained = asyncio.create_task(self._drain())
        return self.drained

    async def _drain(self) -> None:
        await asyncio.sleep(self.settings.drain_grace)
        await self.backend.drain()
        while self.stoppers:  # what is made must still reach its clients
            await asyncio.sleep(0.01)

    def stop_all(self, error: TenfoldError) -> None:
        """End every live request with ``error``: what could not finish before the server leaves."""
        for stop in list(self.stoppers):
            stop(error)


def state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state
