"""A bounded book of clients: their metrics label, and what each has used.

Clients may name themselves, come and go, so their number has no bound; the book has.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.core.tenancy import OTHER

MOST_GONE = 20_000
"""Forgotten clients whose name is known: as many as a worker may still speak of."""


@dataclass(slots=True)
class ClientTotals:
    """Since the server started."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ClientBook:
    """The first ``limit`` clients have a line of their own; all later ones share "other", and so do
    those that were forgotten, of whom workers go on speaking for a while."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._totals: dict[str, ClientTotals] = {}
        self._gone: dict[str, None] = {}

    def label(self, client: str) -> str:
        """The name to count a client under, always the same for the same client."""
        if client in self._totals:
            return client
        if client in self._gone or len(self._totals) >= self._limit:
            return OTHER
        self._totals[client] = ClientTotals()
        return client

    def totals(self, client: str) -> ClientTotals:
        """The client's own line, or the shared one."""
        return self._totals.setdefault(self.label(client), ClientTotals())

    def forget(self, client: str) -> None:
        """Let go of a client's line: another one can have its place."""
        self._totals.pop(client, None)
        self._gone[client] = None
        if len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]

    def welcome(self, client: str) -> None:
        """A client of this name is there again, and may have a line."""
        self._gone.pop(client, None)

    def lines(self) -> dict[str, ClientTotals]:
        return dict(self._totals)
