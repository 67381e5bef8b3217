"""News of caches over a bad line: what the router believes becomes the truth again (P13)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.clock import VirtualClock
from tenfold.core.messages import PrefixUpdate
from tenfold.core.settings import RoutingSettings
from tenfold.core.types import KVGroup
from tenfold.engine.prefix_news import PrefixNews
from tenfold.engine.simulated import CountingPages
from tenfold.fleet.cache_feed import CacheFeed
from tenfold.kvcache.cache import KVCache
from tenfold.kvcache.hashing import block_hashes
from tenfold.kvcache.integrity import nodes_of
from tenfold.scheduling.routing.base import Routed
from tenfold.scheduling.routing.d2lpm import D2LPM

NAMES = ("w0", "w1")


class FarWorker:
    """A real prefix tree with room for few blocks, and what it tells of it."""

    def __init__(self) -> None:
        group = KVGroup("global", (0,), 1, 1, dtype="f16")
        self.cache = KVCache(
            [group], [CountingPages(12)], block_tokens=1, page_bytes=4, capacity_blocks=[12]
        )
        self.news = PrefixNews("m", self.cache.tree)
        self.now = 0.0

    def run(self, tokens: list[int]) -> None:
        hashes = block_hashes(tokens, 1)
        kv = self.cache.open(tokens, hashes)
        if self.cache.reserve(kv, len(tokens)):
            self.cache.advance(kv, tokens, hashes, len(tokens))
        self.cache.close(kv)

    def truth(self) -> set[int]:
        return {hash for node in nodes_of(self.cache.tree) for hash in node.hashes}


class BadLine:
    """Two workers and a router, and between them updates in no order."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.policy = D2LPM(RoutingSettings())
        self.feed = CacheFeed(self.policy, self.ask, self.clock)
        self.workers = {name: FarWorker() for name in NAMES}
        self.line: list[tuple[str, PrefixUpdate]] = []
        self.asked = 0
        for name in NAMES:
            self.policy.join(name)
            self.feed.begin(name)

    def ask(self, name: str) -> None:
        self.asked += 1
        self.line.append((name, self.workers[name].news.everything(0.0)))

    def tell(self, name: str) -> None:
        update = self.workers[name].news.changes(0.0, at_once=True)
        if update is not None:
            self.line.append((name, update))

    def deliver(self, place: int) -> None:
        if not self.line:
            return
        name, update = self.line.pop(place % len(self.line))
        self.feed.take(name, update)
        if self.feed._caches[name, "m"].applied is None:
            assert self.believed(name) == set()

    def settle(self) -> None:
        """From now on everything comes, in order. A worker that is believed to have said all, or
        to be about to answer, while that was lost, says more later on."""
        self.clock.advance(2.0)
        for token, name in enumerate(NAMES):
            coming = [update for to, update in self.line if to == name]
            heard = [update.number for update in coming]
            if (cache := self.feed._caches.get((name, "m"))) is not None:
                heard.append(cache.latest)
            lost = self.workers[name].news._number not in heard
            if lost or (name in self.feed._asked and not any(u.whole for u in coming)):
                self.workers[name].run([9, token])
            self.tell(name)
        while self.line:
            self.deliver(0)

    def believed(self, name: str) -> set[int]:
        map, number = self.policy.map("m"), self.policy.workers.number(name)
        assert number is not None and map.check_integrity() == []
        return {hash for hash in map._where if map.holds(number, hash)}


names = st.sampled_from(NAMES)
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=6)
steps = st.one_of(
    st.tuples(st.just("run"), names, prompts),
    st.tuples(st.just("run"), names, prompts),
    st.tuples(st.just("tell"), names),
    st.tuples(st.just("tell"), names),
    st.tuples(st.sampled_from(["deliver", "deliver", "lose", "double"]), st.integers(0, 5)),
    st.tuples(st.just("wait")),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=50))
def test_after_losses_doubles_and_disorder_the_truth_comes_back(
    script: list[tuple[object, ...]],
) -> None:
    line = BadLine()
    for what, *given_ in script:
        match what, given_:
            case "run", [name, prompt]:
                line.workers[name].run(list(prompt))
            case "tell", [name]:
                line.tell(name)
            case "deliver", [place]:
                line.deliver(place)
            case "lose", [place] if line.line:
                line.line.pop(place % len(line.line))
            case "double", [place] if line.line:
                line.line.append(line.line[place % len(line.line)])
            case "wait", _:
                line.clock.advance(1.5)
    line.settle()
    for name in NAMES:
        assert line.believed(name) == line.workers[name].truth()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, prompts, st.booleans(), st.booleans()), max_size=30))
def test_what_requests_were_to_bring_is_true_once_they_ended(
    script: list[tuple[str, list[int], bool, bool]],
) -> None:
    """A reliable line: some requests run before their end is told, some never do."""
    line = BadLine()
    line.settle()
    for number, (name, prompt, runs, told) in enumerate(script):
        routed = Routed(f"{number}", "c", "m", len(prompt), block_hashes(prompt, 1), 4, 1)
        assert line.policy.choose(routed, {name}, 0.0) == name
        if runs:
            line.workers[name].run(prompt)
        if told:
            line.tell(name)
            line.deliver(0)
        if runs:
            line.policy.finished(f"{number}", 1, 0.0)
        else:
            line.policy.dropped(f"{number}")
    for name in NAMES:
        line.tell(name)
        while line.line:
            line.deliver(0)
        assert line.believed(name) == line.workers[name].truth()
    assert line.asked == len(NAMES)


def test_one_gap_is_asked_about_once_and_old_news_not_at_all() -> None:
    line = BadLine()
    worker = line.workers["w0"]
    line.settle()
    worker.run([8, 8])
    line.tell("w0")
    line.deliver(0)
    assert line.believed("w0") == worker.truth() != set()
    updates = []
    for token in range(4):
        worker.run([token])
        line.tell("w0")
        updates.append(line.line.pop())
    line.clock.advance(5.0)
    for update in updates[1:]:  # the first was lost
        line.feed.take(*update)
    assert line.asked == 3 and line.believed("w0") == set()
    line.deliver(0)
    assert line.believed("w0") == worker.truth()
    line.clock.advance(5.0)
    for update in updates:
        line.feed.take(*update)
    assert line.asked == 3 and line.believed("w0") == worker.truth()


def test_all_that_is_cached_may_be_old_news() -> None:
    """What was told later came before it."""
    line = BadLine()
    line.workers["w0"].run([1, 2])
    line.tell("w0")
    assert [update.number for to, update in line.line if to == "w0"] == [1, 2]
    line.deliver(2)
    line.clock.advance(2.0)
    line.settle()
    assert line.believed("w0") == line.workers["w0"].truth() != set()


def test_what_went_and_came_between_two_updates() -> None:
    line = BadLine()
    line.settle()
    worker = line.workers["w0"]
    for _ in range(2):
        worker.run([0, 1, 0])
        worker.cache.evict_pages(1)
        worker.cache.evict_pages(1)
        worker.cache.evict_all()
        worker.run([0, 1, 0])
        line.tell("w0")
        line.deliver(0)
        assert line.believed("w0") == worker.truth() != set()
    worker.cache.evict_all()
    worker.run([7])
    worker.cache.evict_all()
    update = worker.news.changes(0.0, at_once=True)
    assert update is not None and update.inserted == []
    assert set(update.evicted) == {*block_hashes([0, 1, 0], 1), *block_hashes([7], 1)}
