"""What clients were given on one device, and the counters by which policies share it.

One object a device: the policies of all its models charge the same accounts, so a client that asks
four models gets one share. Does not know which policy reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tenfold.core.messages import ClientStats
from tenfold.core.settings import ScheduleSettings, Share
from tenfold.scheduling.counters import Counters
from tenfold.scheduling.deficits import Deficits
from tenfold.scheduling.fair_shares import fair_shares

MOST_CLIENTS = 20_000
"""With more than so many the books begin anew for those that came first."""


@dataclass(slots=True)
class Served:
    """What a client was given since the device began. ``service`` counts what was computed for it,
    ``asked`` every prompt token, cached or not; both are weighted and priced."""

    service: float = 0.0
    asked: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class ModelBooks:
    """The part of the books that one model's requests are written to.

    ``price``: what a token of this model costs. ``longest_prompt`` and ``longest_output`` are of
    the requests it was sent; ``most_running`` may run at a time, and ``holds`` gives the tokens
    that memory is promised for, where it is.
    """

    def __init__(self, accounts: Accounts, price: float) -> None:
        self.accounts = accounts
        self.extend = accounts.settings.extend_weight * price
        self.output = accounts.settings.output_weight * price
        self.longest_prompt = 0
        self.longest_output = 0
        self.most_running = 0
        self.holds: Callable[[], int] | None = None

    def sent(self, prompt_tokens: int, output_limit: int) -> None:
        self.longest_prompt = max(self.longest_prompt, prompt_tokens)
        self.longest_output = max(self.longest_output, output_limit)

    def started(self, client: str, prompt_tokens: int, cached_tokens: int) -> None:
        served = self.accounts.of(client)
        served.asked += self.extend * prompt_tokens
        served.prompt_tokens += prompt_tokens
        served.cached_tokens += cached_tokens

    def prefilled(self, client: str, tokens: int) -> None:
        self.accounts.of(client).service += self.extend * tokens

    def decoded(self, counts: Mapping[str, int]) -> None:
        for client, tokens in counts.items():
            served = self.accounts.of(client)
            served.output_tokens += tokens
            served.service += self.output * tokens
            served.asked += self.output * tokens

    @property
    def in_flight(self) -> int:
        """The most output tokens that a client's running requests can still make: what memory was
        promised for (M of U), or as many longest answers as may run (U')."""
        most = self.most_running * self.longest_output
        return most if self.holds is None else min(most, self.holds())


class Accounts:
    """The books of one device. One thread."""

    def __init__(self, settings: ScheduleSettings | None = None) -> None:
        self.settings = settings or ScheduleSettings()
        self.served: dict[str, Served] = {}
        self.deficits = self._deficits()
        self.counters = Counters()
        self.books: dict[str, ModelBooks] = {}
        self._shares: list[Share] = []
        self._own: dict[str, Accounts] = {}

    def _deficits(self) -> Deficits:
        settings = self.settings
        return Deficits(settings.quantum, forget_debt=settings.idle_debt == "forget")

    def of(self, client: str) -> Served:
        """What this client was given, from nothing on."""
        found = self.served.get(client)
        if found is None:
            if len(self.served) >= MOST_CLIENTS:
                for name in list(self.served)[: MOST_CLIENTS // 2]:
                    del self.served[name]
            found = self.served[client] = Served()
        return found

    def open(self, model: str, price: float) -> ModelBooks:
        """Books for a model that is loaded; those of an earlier one of its name are closed."""
        self.books[model] = ModelBooks(self, price)
        return self.books[model]

    def close(self, model: str) -> None:
        """The model is gone; what clients were given stays."""
        self.books.pop(model, None)
        self._own.pop(model, None)

    def of_model(self, model: str) -> Accounts:
        """The accounts for a model's policy: these, or (``accounts`` = "model") some of its own."""
        if self.settings.accounts == "device":
            return self
        own = self._own[model] = Accounts(self.settings)
        own.set_shares(self._shares)
        return own

    def set_shares(self, shares: Iterable[Share]) -> None:
        """Weights and groups from now on. Raises ValueError, with nothing changed, for a tree that
        is none."""
        self._shares = list(shares)
        self.deficits.set_shares(self._shares)
        self.counters.set_shares(self._shares)
        for own in self._own.values():
            own.set_shares(self._shares)

    # --- looking --------------------------------------------------------------------------------
    def bound(self) -> float:
        """U of the papers: the longest prompt, and the most output in flight, in service. It grows
        with what requests ask for."""
        books = self.books.values()
        prompts = max((one.extend * one.longest_prompt for one in books), default=0.0)
        return prompts + sum(one.output * one.in_flight for one in books)

    def fair(self, clients: Iterable[str]) -> dict[str, float]:
        """The part of the device that each of these is due if they, and nobody else, have work."""
        return fair_shares(self._shares, clients)

    @property
    def rounds(self) -> int:
        """Refills so far at the top; under "model" accounts, those of all."""
        return sum(one.deficits.rounds("") for one in self._all())

    def _all(self) -> list[Accounts]:
        return list(self._own.values()) or [self]

    def drift(self, client: str) -> float:
        """How far the client's service is from its share, by the counters that are in use."""
        return self.deficits.drift(client) or self.counters.drift(client)

    def stats(self, client: str) -> ClientStats:
        """Where the client's account stands. Under "model" accounts: its worst one."""
        served = self.of(client)
        worst = max(self._all(), key=lambda one: abs(one.drift(client)))
        deficits = worst.deficits
        return ClientStats(
            client,
            service=served.service,
            asked_service=served.asked,
            prompt_tokens=served.prompt_tokens,
            cached_tokens=served.cached_tokens,
            output_tokens=served.output_tokens,
            credit=deficits.credit(client),
            rounds=deficits.rounds(client),
            drift=worst.drift(client),
            bound=self.bound() + deficits.share(client),
        )
