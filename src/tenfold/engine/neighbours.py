"""What models of one device take from each other when pages are short, short of their weights.

Implements ``batcher.Neighbours`` and ``residency.Reclaim`` over an engine's models. The order of
the rungs is ``scheduling.residency.ladder``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tenfold.core.settings import Rung
from tenfold.engine.batcher import Age, Batcher
from tenfold.engine.instance import GenerateInstance, Instance
from tenfold.scheduling.residency.ladder import before

if TYPE_CHECKING:
    from tenfold.engine.engine import Engine


def batchers(instances: Mapping[str, Instance], but: str = "") -> list[Batcher]:
    """Of the models that generate text."""
    return [
        instance.batcher
        for name, instance in instances.items()
        if name != but and isinstance(instance, GenerateInstance)
    ]


class CachedPrefixes:
    """Pages that hold nothing but cached prefixes, of all models of a device."""

    def __init__(self, instances: Mapping[str, Instance]) -> None:
        self._instances = instances

    def idle_prefixes(self, pages: int, but: str) -> int:
        """Of models that have nothing to do."""
        return self._give(pages, but, idle=True)

    def prefixes(self, pages: int, but: str) -> int:
        """Of the others."""
        return self._give(pages, but, idle=False)

    def _give(self, pages: int, but: str, *, idle: bool) -> int:
        given = 0
        for name, instance in self._instances.items():
            if given >= pages:
                break
            if name != but and instance.has_work is not idle:
                given += instance.give_pages(pages - given)
        return given


class EngineNeighbours:
    """The other models of the device, for the batcher of one."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        ladder = before(engine.residents.settings.ladder, "preempt")
        prefixes = engine.prefixes
        takes: dict[Rung, Callable[[int, str], int]] = {
            "idle-prefixes": prefixes.idle_prefixes,
            "prefixes": prefixes.prefixes,
            "weights": lambda pages, but: int(engine.residents.give_weights(but)),
        }
        self._rungs = [(rung, takes[rung]) for rung in ladder if rung in takes]

    def ticket(self) -> int:
        return self._engine.ticket()

    def running(self) -> bool:
        return any(b.running for b in batchers(self._engine.instances, self._name))

    def reclaim(self) -> bool:
        if self._engine.device.limited(self._name):
            return False
        for rung, take in self._rungs:
            if pages := take(1, self._name):
                self._engine.residents.log.note(rung, self._name, "it runs and lacks pages", pages)
                return True
        return False

    def give_way(self, age: Age) -> bool:
        if self._engine.device.limited(self._name):
            return False
        found = [
            (batcher.youngest, batcher)
            for batcher in batchers(self._engine.instances, self._name)
            if batcher.youngest is not None and batcher.youngest.age > age
        ]
        if not found:
            return False
        victim, batcher = max(found, key=lambda pair: pair[0].age)
        why = f"{self._name} runs an older request and lacks pages"
        batcher.preempt(victim)
        self._engine.residents.log.note("preempt", batcher.facts.name, why, 0)
        return True
