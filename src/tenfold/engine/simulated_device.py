"""A device without memory or kernels: pages are counted, and models are attached to it by hand.

What is put together here is what ``engine.device`` puts together over a real pool, from the same
classes. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tenfold.core.clock import Clock
from tenfold.core.errors import OutOfMemory
from tenfold.core.messages import DeviceStats, LoadModel
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import KVGroup, ModelFacts
from tenfold.costs.price import Prices
from tenfold.costs.step import StepModel
from tenfold.engine.batcher import Batcher, Neighbours
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


@dataclass(slots=True)
class SimulatedModel:
    """A model as far as a scheduler knows it. ``steps``: what the batcher takes steps to cost.

    ``blocks``: the most blocks of each group; None: what the device's memory could hold.
    ``drafts``: in place of what the settings say."""

    facts: ModelFacts
    groups: Sequence[KVGroup]
    steps: StepModel
    executor: Executor
    blocks: int | None = None
    drafts: Speculator | None = None


class SimulatedDevice:
    """Implements ``engine.DeviceLike`` over counted pages, as many as ``settings.memory_bytes``
    holds."""

    def __init__(self, settings: DeviceSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.accounts = Accounts(settings.schedule)
        self.pages = CountingPages(settings.memory_bytes // settings.page_bytes)
        self._prices = Prices()

    def attach(
        self,
        engine: Engine,
        model: SimulatedModel,
        clock: Clock,
        *,
        pages: CountingPages | None = None,
        instance: Callable[..., GenerateInstance] = GenerateInstance,
    ) -> GenerateInstance:
        """Add a model whose weights are there already. ``pages``: its own, beside the device's.

        Raises OutOfMemory when its weights leave no room for a block."""
        settings, facts, name = self.settings, model.facts, model.facts.name
        own = pages or self.pages
        cache = self._cache(model, own)
        matches = MatchIndex(cache.tree)
        setup = PolicySetup(
            matches,
            settings.schedule,
            self.accounts.of_model(),
            self._prices.of(facts.parameters),
        )
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
        )
        made = instance(
            facts, batcher, model.executor, clock, lambda: None, lambda: (0, own.used)
        )
        engine.attach(name, made)
        return made

    def _cache(self, model: SimulatedModel, pages: CountingPages) -> KVCache:
        settings = self.settings
        weights = range(-(-model.facts.weight_bytes // settings.page_bytes))
        left = pages.available() * settings.page_bytes if pages.map(weights) else 0
        sizes = [group.block_bytes(settings.block_tokens) for group in model.groups]
        blocks = [model.blocks or left // size for size in sizes]
        if min(blocks) < 1:
            raise OutOfMemory(
                f"{model.facts.name} has {model.facts.weight_bytes} bytes of weights and leaves "
                f"{left} of {settings.memory_bytes} for keys and values, less than a block of "
                f"{settings.block_tokens} tokens; raise the memory"
            )
        return KVCache(
            list(model.groups),
            [pages] * len(sizes),
            block_tokens=settings.block_tokens,
            page_bytes=settings.page_bytes,
            capacity_blocks=blocks,
            prefix_cache=settings.prefix_cache,
        )

    # --- what the engine's loop asks for --------------------------------------------------------
    def capacity_bytes(self) -> int:
        return self.pages.capacity * self.settings.page_bytes

    def notes(self) -> list[str]:
        return ["simulated"]

    def load(self, command: LoadModel, clock: Clock, *_: object) -> GenerateInstance:
        raise OutOfMemory(f"{self.name} is simulated and loads nothing; attach {command.name}")

    def stats(self, id: str) -> DeviceStats:
        used = self.pages.used
        return DeviceStats(
            id, self.name, self.settings.page_bytes, self.pages.capacity, used, 0, 0
        )

    def prepare_pages(self) -> bool:
        return False

    def limited(self, name: str) -> bool:
        return False

    def check(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing is held."""
