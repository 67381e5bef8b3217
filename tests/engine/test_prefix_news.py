"""What an engine tells of its caches, against its prefix trees, and what a router makes of it."""

from __future__ import annotations

import random

from engine.harness import BLOCK, Sim
from tenfold.core.messages import Abort, AskPrefixes, PrefixUpdate, StepDone, UnloadModel
from tenfold.kvcache.hashing import block_hashes
from tenfold.kvcache.integrity import nodes_of
from tenfold.kvcache.prefix_map import PrefixMap
from tenfold.kvcache.radix import RadixTree


def updates(sim: Sim) -> list[PrefixUpdate]:
    return [event for event in sim.heard.events if isinstance(event, PrefixUpdate)]


def truth(tree: RadixTree) -> set[int]:
    return {hash for node in nodes_of(tree) for hash in node.hashes}


def apply(map: PrefixMap, update: PrefixUpdate) -> None:
    """As a fleet does, for worker 0."""
    if update.whole:
        map.clear(0)
    map.evict(0, update.evicted)
    for after, hashes in update.inserted:
        map.insert(0, after, hashes)


def told(events: list[PrefixUpdate]) -> set[int]:
    map = PrefixMap()
    for update in events:
        apply(map, update)
    assert map.check_integrity() == []
    return set(map._where)


def test_nothing_is_told_before_somebody_asks() -> None:
    sim = Sim()
    batcher = sim.add()
    sim.ask("a", list(range(20)))
    sim.run()
    assert updates(sim) == []
    sim.engine.handle(AskPrefixes())
    (update,) = updates(sim)
    assert update.whole and update.number == 1
    assert told([update]) == truth(batcher.cache.tree)


def test_an_answers_end_comes_after_what_it_cached() -> None:
    sim = Sim()
    batcher = sim.add()
    sim.engine.handle(AskPrefixes())
    prompt = list(range(20))
    sim.ask("a", prompt, namespace="salt")
    sim.run()
    last = sim.heard.events[-1]
    assert isinstance(last, StepDone) and last.outputs[-1].finish
    assert told(updates(sim)) == truth(batcher.cache.tree)
    assert set(block_hashes(prompt, BLOCK, "salt")) <= truth(batcher.cache.tree)
    assert [update.number for update in updates(sim)] == list(range(1, len(updates(sim)) + 1))


def test_a_model_that_comes_later_begins_with_a_whole_update() -> None:
    sim = Sim()
    sim.engine.handle(AskPrefixes())
    sim.add("late")
    sim.ask("a", list(range(20)), model="late")
    sim.run()
    first, *rest = updates(sim)
    assert (first.model, first.whole, first.inserted) == ("late", True, [])
    assert rest and not any(update.whole for update in rest)


def test_random_lives_are_told_to_the_last_block() -> None:
    """Little memory: prefixes come, go, and come back, between updates too."""
    for seed in range(6):
        chance = random.Random(seed)
        sim = Sim()
        batcher = sim.add(blocks=24)
        asked = chance.randrange(20)
        for number in range(60):
            if number == asked:
                sim.engine.handle(AskPrefixes())
            start = [chance.randrange(3)] * chance.choice([0, 8, 16])
            prompt = start + [chance.randrange(2) for _ in range(chance.randint(1, 12))]
            space = chance.choice(["", "", "tenant"])
            sim.ask(f"{number}", prompt, chance.randint(1, 12), namespace=space)
            for _ in range(chance.randrange(6)):
                sim.engine.step()
            if chance.random() < 0.2:
                sim.engine.handle(Abort(f"{number}"))
        sim.run()
        assert told(updates(sim)) == truth(batcher.cache.tree)
        assert any(update.evicted for update in updates(sim))
        sim.engine.handle(UnloadModel("m"))
