"""A device without memory or kernels: pages are counted, and models are attached to it by hand.

What is put together here is what ``engine.device`` puts together over a real pool, from the same
classes. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.core.clock import Clock
from tenfold.core.errors import OutOfMemory
from tenfold.core.messages import DeviceStats, LoadModel
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import KVGroup, ModelFacts
from tenfold.costs.price import Prices
from tenfold.costs.step import StepModel
from tenfold.engine.batcher import Batcher
from tenfold.engine.engine import Engine
from tenfold.engine.executor import Executor
from tenfold.engine.instance import GenerateInstance
from tenfold.engine.simulated import CountingPages
from tenfold.engine.speculator import Speculator, speculator
from tenfold.kvcache.cache import KVCache
from tenfold.kvcache.waiting import MatchIndex
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.base import PolicySetup
from tenfold.scheduling.registry import policies
from tenfold.scheduling.reservations import Reservations


@dataclass(slots=True)
class SimulatedModel:
    """A model as far as a scheduler knows it. ``steps``: what the batcher takes steps to cost.

    ``pages``: memory of its own in place of the device's; ``blocks``: the most blocks of each group
    (None: what memory holds); ``drafts`` and ``price``: in place of what settings and size say."""

    facts: ModelFacts
    groups: Sequence[KVGroup]
    steps: StepModel
    executor: Executor
    pages: CountingPages | None = None
    blocks: int | None = None
    drafts: Speculator | None = None
    price: float | None = None


class SimulatedDevice:
    """Implements ``engine.DeviceLike`` over counted pages, as many as ``settings.memory_bytes``
    holds."""

    def __init__(self, settings: DeviceSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.accounts = Accounts(settings.schedule)
        self.pages = CountingPages(settings.memory_bytes // settings.page_bytes)
        self._prices = Prices()
        self._weight_pages = 0
        self._promises: dict[CountingPages, Reservations] = {}

    def attach(
        self,
        engine: Engine,
        model: SimulatedModel,
        clock: Clock,
        kind: type[GenerateInstance] = GenerateInstance,
    ) -> GenerateInstance:
        """Add a model whose weights are there already.

        Raises OutOfMemory when they leave no room for a block."""
        settings, facts, name = self.settings, model.facts, model.facts.name
        pages = model.pages or self.pages
        cache = self._cache(model, pages)
        matches = MatchIndex(cache.tree)
        price = self._prices.of(facts.parameters) if model.price is None else model.price
        setup = PolicySetup(matches, settings.schedule, self.accounts.of_model(name), price)
        batcher = Batcher(
            facts,
            cache,
            matches,
            policies.get(settings.schedule.policy)(setup),
            model.steps,
            settings,
            clock,
            engine.neighbours(name),
            model.drafts
            or speculator(settings.speculation, settings.draft_tokens, settings.draft_match),
            books=self.accounts.open(name, price),
            reservations=self._reservations(pages, cache),
        )
        instance = kind(
            facts, batcher, model.executor, clock, lambda: None, lambda: (0, pages.used)
        )
        engine.attach(name, instance)
        return instance

    def _cache(self, model: SimulatedModel, pages: CountingPages) -> KVCache:
        settings = self.settings
        weights = -(-model.facts.weight_bytes // settings.page_bytes)
        mapped = pages.map(range(weights))
        self._weight_pages += weights if pages is self.pages else 0
        left = pages.available() * settings.page_bytes if mapped else 0
        sizes = [group.block_bytes(settings.block_tokens) for group in model.groups]
        if left < sum(sizes):
            raise OutOfMemory(
                f"{model.facts.name} has {model.facts.weight_bytes} bytes of weights and leaves "
                f"{left} of {settings.memory_bytes} for keys and values, less than a block of "
                f"{settings.block_tokens} tokens; raise the memory"
            )
        whole = pages.capacity * settings.page_bytes
        return KVCache(
            list(model.groups),
            [pages] * len(sizes),
            block_tokens=settings.block_tokens,
            page_bytes=settings.page_bytes,
            capacity_blocks=[model.blocks or whole // size for size in sizes],
            prefix_cache=settings.prefix_cache,
            page_limit=None if model.blocks else pages.capacity - weights,
        )

    @property
    def kv_bytes(self) -> int:
        """What all models' keys and values can have between them."""
        return (self.pages.capacity - self._weight_pages) * self.settings.page_bytes

    def _reservations(self, pages: CountingPages, cache: KVCache) -> Reservations | None:
        """Of all models that draw on these pages."""
        if self.settings.schedule.admission != "reserve":
            return None
        if pages not in self._promises:
            held = self.kv_bytes
            if pages is not self.pages:
                whole = sum(ledger.blocks * ledger.block_bytes for ledger in cache.ledgers)
                held = min(whole, pages.capacity * self.settings.page_bytes)
            self._promises[pages] = Reservations(lambda: held)
        return self._promises[pages]

    # --- what the engine's loop asks for --------------------------------------------------------
    def capacity_bytes(self) -> int:
        return self.pages.capacity * self.settings.page_bytes

    def notes(self) -> list[str]:
        return ["simulated"]

    def load(self, command: LoadModel, clock: Clock, *_: object) -> GenerateInstance:
        raise OutOfMemory(f"{self.name} is simulated and loads nothing; attach {command.name}")

    def stats(self, id: str) -> DeviceStats:
        pages = self.pages
        return DeviceStats(
            id, self.name, self.settings.page_bytes, pages.capacity, pages.used, 0, 0
        )

    def prepare_pages(self) -> bool:
        return False

    def limited(self, name: str) -> bool:
        return False

    def check(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing is held."""
