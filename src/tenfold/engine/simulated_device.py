"""A device without memory or kernels: pages are counted, and models are attached to it by hand.

What is put together here is what ``engine.device`` puts together over a real pool, from the same
classes. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from tenfold.core.clock import Clock
from tenfold.core.errors import OutOfMemory
from tenfold.core.messages import DeviceStats, LoadModel, ModelOptions
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import KVGroup, ModelFacts
from tenfold.costs.price import Prices
from tenfold.costs.step import StepModel
from tenfold.engine.batcher import Batcher
from tenfold.engine.engine import Engine
from tenfold.engine.executor import Executor
from tenfold.engine.goals import Goals
from tenfold.engine.instance import GenerateInstance
from tenfold.engine.residency import Budget
from tenfold.engine.simulated import CountedWeights, CountingPages, ModelPages
from tenfold.engine.speculator import Speculator, speculator
from tenfold.engine.weights import VirtualFiller
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
    (None: what memory holds); ``drafts`` and ``price``: in place of what settings and size say.
    ``wake_seconds`` and ``cold_seconds``: what its weights take from the host's memory and from a
    disk. ``options``: its targets."""

    facts: ModelFacts
    groups: Sequence[KVGroup]
    steps: StepModel
    executor: Executor
    pages: CountingPages | None = None
    blocks: int | None = None
    drafts: Speculator | None = None
    price: float | None = None
    wake_seconds: float = 0.0
    cold_seconds: float = 0.0
    options: ModelOptions = field(default_factory=ModelOptions)


class SimulatedDevice:
    """Implements ``engine.DeviceLike`` over counted pages, as many as ``settings.memory_bytes``
    holds."""

    def __init__(self, settings: DeviceSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.accounts = Accounts(settings.schedule)
        self.pages = CountingPages(settings.memory_bytes // settings.page_bytes)
        self._prices = Prices()
        self._models: dict[str, ModelPages] = {}
        self._weights: dict[str, CountedWeights] = {}
        self._own_pages: set[CountingPages] = set()
        """Models' own, in place of the device's."""
        self._promises: dict[CountingPages, Reservations] = {}

    def attach(
        self,
        engine: Engine,
        model: SimulatedModel,
        clock: Clock,
        kind: type[GenerateInstance] = GenerateInstance,
    ) -> GenerateInstance:
        """Add a model whose weights are there already, or which sleeps (``options.asleep``).

        Raises OutOfMemory when they leave no room for a block."""
        settings, facts, name = self.settings, model.facts, model.facts.name
        pages = ModelPages(model.pages or self.pages)
        weights = CountedWeights(
            pages,
            -(-facts.weight_bytes // settings.page_bytes),
            model.wake_seconds,
            model.cold_seconds,
        )
        cache = self._cache(model, pages, weights)
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
            reservations=self._reservations(pages.whole, cache),
            goals=Goals.of(settings.deadlines, model.options),
        )

        def counts() -> tuple[int, int]:
            awake = weights.pages * weights.mapped
            return awake, pages.used - awake

        instance = kind(
            facts, batcher, model.executor, clock, lambda: self._free(name), counts, weights
        )
        self._models[name], self._weights[name] = pages, weights
        self._find_own_pages()
        engine.attach(name, instance, model.options)
        return instance

    def _free(self, name: str) -> None:
        pages = self._models.pop(name)
        pages.whole.used -= pages.used
        del self._weights[name]
        self._find_own_pages()

    def _find_own_pages(self) -> None:
        self._own_pages = {one.whole for one in self._models.values()} - {self.pages}

    def _cache(self, model: SimulatedModel, pages: ModelPages, weights: CountedWeights) -> KVCache:
        settings = self.settings
        if model.options.asleep:  # what others hold now is given up when it wakes
            left = (pages.whole.capacity - weights.pages) * settings.page_bytes
        else:
            left = pages.available() * settings.page_bytes if weights.map() else 0
        sizes = [group.block_bytes(settings.block_tokens) for group in model.groups]
        if left < sum(sizes):
            raise OutOfMemory(
                f"{model.facts.name} has {model.facts.weight_bytes} bytes of weights and leaves "
                f"{left} of {settings.memory_bytes} for keys and values, less than a block of "
                f"{settings.block_tokens} tokens; raise the memory"
            )
        capacity = pages.whole.capacity
        whole = capacity * settings.page_bytes
        return KVCache(
            list(model.groups),
            [pages] * len(sizes),
            block_tokens=settings.block_tokens,
            page_bytes=settings.page_bytes,
            capacity_blocks=[model.blocks or whole // size for size in sizes],
            prefix_cache=settings.prefix_cache,
            page_limit=None if model.blocks else capacity - weights.pages,
        )

    @property
    def kv_bytes(self) -> int:
        """What all models' keys and values can have between them."""
        awake = (one for one in self._weights.values() if one.mapped and one.of is self.pages)
        weights = sum(one.pages for one in awake)
        return (self.pages.capacity - weights) * self.settings.page_bytes

    def _reservations(self, pages: CountingPages, cache: KVCache) -> Reservations | None:
        """Of all models that draw on these pages."""
        if self.settings.schedule.admission != "reserve":
            return None
        if pages is self.pages and pages not in self._promises:
            self._promises[pages] = Reservations(lambda: self.kv_bytes)
        if pages not in self._promises:
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

    def budget(self) -> Budget:
        capacity, free = self.pages.capacity, self.pages.available()
        for pages in self._own_pages:
            capacity += pages.capacity
            free += pages.available()
        return Budget(capacity, free)

    def pages_of(self, name: str) -> int:
        return self._models[name].used if name in self._models else 0

    def set_limit(self, name: str, pages: int | None) -> None:
        if name in self._models:
            self._models[name].limit = pages

    def filler(
        self, call: Callable[[Callable[[], None]], Future[None]], clock: Clock
    ) -> VirtualFiller:
        return VirtualFiller(clock)

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
