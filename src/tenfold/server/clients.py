"""A bounded book of clients: their metrics label, and what each has used.

Clients may name themselves, so their number has no bound; the book has.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.core.tenancy import OTHER


@dataclass(slots=True)
class ClientTotals:
    """Since the server started."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ClientBook:
    """The first ``limit`` clients have a line of their own; all later ones share "other"."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._totals: dict[str, ClientTotals] = {}

    def label(self, client: str) -> str:
        """The name to count a client under, always the same for the same client."""
        if client in self._totals:
            return client
        if len(self._totals) >= self._limit:
            return OTHER
        self._totals[client] = ClientTotals()
        return client

    def totals(self, client: str) -> ClientTotals:
        """The client's own line, or the shared one."""
        return self._totals.setdefault(self.label(client), ClientTotals())

    def forget(self, client: str) -> None:
        """Let go of a client's line: another one can have its place."""
        self._totals.pop(client, None)

    def lines(self) -> dict[str, ClientTotals]:
        return dict(self._totals)
