"""Residency policies over a device that is only counted: nobody starves, nobody overfills it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.settings import ResidencySettings
from tenfold.scheduling.residency.base import (
    DeviceView,
    Drain,
    ModelView,
    ResidencyPolicy,
    SetLimit,
    Sleep,
    Wake,
)
from tenfold.scheduling.residency.elastic import EAGERNESS, TURN, WAKES_WORTH
from tenfold.scheduling.residency.ladder import before, climb
from tenfold.scheduling.residency.registry import residency_policies

SERVICE = 0.5
WAKE = 0.2


def policy(mode: str, **fields: object) -> ResidencyPolicy:
    return residency_policies.get(mode)(ResidencySettings(mode=mode, **fields))  # type: ignore[arg-type]


@dataclass
class World:
    """A device whose models serve one request at a time, each in ``SERVICE`` seconds, with as many
    pages of keys and values as it pleases the test."""

    policy: ResidencyPolicy
    capacity: int
    sizes: dict[str, int]
    kv: int = 2
    now: float = 0.0
    models: dict[str, ModelView] = field(default_factory=dict)
    queues: dict[str, list[float]] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    paused: dict[str, float] = field(default_factory=dict)
    arriving: dict[str, float] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    slept: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            self.models[name] = ModelView(name, "host", size, wake_seconds=WAKE)
            self.queues[name] = []

    def view(self) -> DeviceView:
        used = 0
        for name, one in self.models.items():
            queue = self.queues[name]
            one.running = int(name in self.ends or name in self.paused)
            one.waiting = len(queue)
            one.oldest = queue[0] if queue else inf
            one.kv_pages = self.kv if one.running else 0
            one.wanted_pages = self.kv if queue and not one.awake and not one.running else 0
            if one.running or queue:
                one.last_used = self.now
            used += (one.weight_pages if one.awake else 0) + one.kv_pages
        assert used <= self.capacity, f"{used} of {self.capacity} pages"
        return DeviceView(self.now, self.capacity, self.capacity - used, self.models)

    def act(self) -> None:
        for action in self.policy.decide(self.view()):
            one = self.models[action.model]
            match action:
                case Wake(name):
                    assert not one.awake
                    view = self.view()
                    if view.free >= one.weight_pages:
                        one.state, one.since = "waking", self.now
                        self.arriving[name] = self.now + WAKE
                case Sleep(name, _, to, keep):
                    assert one.state == "resident" or (one.paused and not keep)
                    assert not one.pinned
                    if keep:  # goes on where it was
                        self.paused[name] = self.ends.pop(name) - self.now
                    elif self.ends.pop(name, None) or self.paused.pop(name, None):
                        self.queues[name].insert(0, self.now)  # preempted: it is computed again
                    one.state, one.since, one.draining, one.cap = to, self.now, None, None
                    self.slept.append(name)
                case Drain(_, on):
                    one.draining = self.now if on else None
                case SetLimit(_, pages):
                    one.cap = pages
        self.view()

    def step(self) -> bool:
        """To the next thing that happens; False when nothing will."""
        self.act()
        for name, one in self.models.items():
            room = self.view().free >= self.kv
            free = one.state == "resident" and one.draining is None and name not in self.ends
            if free and self.queues[name] and room:
                self.waits.append(self.now - self.queues[name].pop(0))
                self.ends[name] = self.now + SERVICE
        times = [*self.ends.values(), *self.arriving.values()]
        look = self.policy.look_again(self.view())
        times += [look] if self.now < look < inf else []
        if not times:
            return False
        self.now = min(times)
        for name in [n for n, at in self.ends.items() if at <= self.now]:
            del self.ends[name]
        for name in [n for n, at in self.arriving.items() if at <= self.now]:
            del self.arriving[name]
            self.models[name].state, self.models[name].since = "resident", self.now
            if name in self.paused:
                self.ends[name] = self.now + self.paused.pop(name)
        return True

    def run(self, steps: int = 2000) -> None:
        for _ in range(steps):
            if not any(self.queues.values()) and not self.ends and not self.paused:
                return
            if not self.step():
                break
        assert not any(self.queues.values()), f"requests starve: {self.queues}"


SLEEPING = ("elastic", "swap", "ttl", "cold")


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(SLEEPING),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    asked=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    spare=st.integers(4, 30),
)
def test_every_request_is_served_and_memory_never_overfull(
    mode: str, sizes: list[int], asked: list[int], spare: int
) -> None:
    names = {f"m{i}": size for i, size in enumerate(sizes)}
    world = World(policy(mode), max(sizes) + spare, names)
    for size in sizes:
        if mode in ("ttl", "cold"):
            world.capacity = max(world.capacity, int((size + 2) / 0.9) + 2)
    for number in asked:
        world.queues[f"m{number % len(sizes)}"].append(0.0)
    world.run()
    assert len(world.waits) >= len(asked)


def test_all_stay_awake_where_there_is_room_for_all() -> None:
    world = World(policy("elastic"), 100, {"a": 10, "b": 20, "c": 30})
    for name in world.queues:
        world.queues[name] = [0.0, 0.0]
    world.run()
    world.now += 1000.0
    world.act()
    assert not world.slept and all(one.awake for one in world.models.values())


def test_idle_models_sleep_without_pressure_only_where_that_is_asked_for() -> None:
    world = World(policy("elastic", evict="always", idle_seconds=45.0), 100, {"a": 10, "b": 20})
    world.queues["a"] = [0.0]
    world.run()
    assert world.policy.look_again(world.view()) == pytest.approx(world.now + 45.0, abs=1.0)
    world.now += 46.0
    world.act()
    assert world.slept == ["a"]


def test_who_is_idle_longest_or_least_dear_makes_room() -> None:
    for dear, victim in ((None, "a"), ("a", "b")):
        world = World(policy("elastic", min_seconds=0.0), 32, {"a": 10, "b": 10, "c": 10, "d": 10})
        for name in "abc":
            world.models[name].state = "resident"
            world.models[name].last_used = {"a": 1.0, "b": 2.0, "c": 3.0}[name]
        if dear:
            world.models[dear].evict_cost = 5.0
        world.now = 10.0
        world.queues["d"] = [10.0]
        world.act()
        assert world.slept == [victim]


def test_no_more_models_sleep_than_are_needed() -> None:
    world = World(policy("elastic", min_seconds=0.0), 40, {"small": 3, "large": 30, "new": 25})
    for name, used in (("small", 1.0), ("large", 2.0)):
        world.models[name].state, world.models[name].last_used = "resident", used
    world.now = 10.0
    world.queues["new"] = [10.0]
    world.act()
    assert world.slept == ["large"]


def test_a_pinned_model_and_one_just_woken_are_left_in_peace() -> None:
    world = World(policy("elastic", min_seconds=10.0), 24, {"pinned": 10, "fresh": 10, "new": 10})
    world.models["pinned"].state = world.models["fresh"].state = "resident"
    world.models["pinned"].pinned = True
    world.now = world.models["fresh"].since = 5.0
    world.queues["new"] = [5.0]
    world.act()
    assert not world.slept
    again = world.policy.look_again(world.view())
    assert again == pytest.approx(5.0 + WAKES_WORTH * WAKE)
    world.now = again
    world.act()
    assert world.slept == ["fresh"]


def test_a_busy_model_pauses_for_requests_that_are_due_before_its_own() -> None:
    """At the last good moment, and with the keys and values of what it runs."""
    world = World(policy("elastic", min_seconds=0.0), 14, {"a": 10, "b": 10})
    world.models["a"].state = "resident"
    world.queues["a"], world.ends["a"] = [0.0] * 50, 9.0
    world.queues["b"] = [0.0]
    world.models["b"].deadline = 2.0
    world.act()
    assert not world.slept
    assert world.policy.look_again(world.view()) == pytest.approx((1 - EAGERNESS) * 2.0)
    world.now = 0.5
    world.act()
    assert world.slept == ["a"] and world.models["b"].awake
    assert world.models["a"].running == 1 and world.models["a"].kv_pages == world.kv


def test_keys_and_values_go_too_where_weights_are_not_enough() -> None:
    world = World(policy("elastic", min_seconds=0.0), 23, {"a": 10, "b": 20})
    world.models["a"].state = "resident"
    world.ends["a"] = 9.0
    world.queues["b"], world.models["b"].deadline = [0.0], 0.3
    world.now = 0.2
    world.act()
    assert world.models["b"].awake and not world.models["a"].running and world.queues["a"]


def test_without_deadlines_busy_models_take_turns_that_are_worth_the_change() -> None:
    world = World(policy("elastic", min_seconds=0.0), 14, {"a": 10, "b": 10})
    world.queues["a"], world.queues["b"] = [0.0] * 40, [0.0] * 40
    world.run()
    assert 40 * SERVICE / (TURN * WAKE) <= len(world.slept) <= 80 * SERVICE / (TURN * WAKE) + 2


def test_who_is_late_waits_for_what_can_be_on_time_until_it_is_overdue() -> None:
    world = World(policy("elastic"), 14, {"a": 10, "b": 10})
    world.models["a"].state = "resident"
    world.queues["a"], world.ends["a"] = [0.0] * 4, 109.0
    world.now = 100.0
    world.models["a"].deadline = 101.0
    world.queues["b"], world.models["b"].overdue = [0.0], 100.5
    world.act()
    assert not world.slept
    world.now = 100.6
    world.act()
    assert world.slept == ["a"] and world.models["b"].awake


def test_who_runs_and_lacks_pages_has_those_of_idle_models() -> None:
    """Of those idle past the threshold; of any for a first token that can be on time."""
    for idle, due, slept in ((10.0, inf, []), (50.0, inf, ["b"]), (10.0, 101.0, ["b"])):
        world = World(policy("elastic"), 22, {"a": 10, "b": 10})
        for one in world.models.values():
            one.state, one.last_used = "resident", 100.0 - idle
        world.now, world.ends["a"] = 100.0, 109.0
        view = world.view()
        view.models["a"].wanted_pages, view.models["a"].deadline = 5, due
        found = world.policy.decide(view)
        assert [one.model for one in found if isinstance(one, Sleep)] == slept


def test_floors_keep_pages_from_others_limits() -> None:
    world = World(policy("elastic"), 100, {"a": 10, "b": 20})
    world.models["a"].floor_pages = 15
    for name in "ab":
        world.models[name].state = "resident"
    world.act()
    assert world.models["b"].cap == 100 - 10 - 15
    assert world.models["a"].cap == 100 - 20


@pytest.mark.parametrize("mode", ["static", "quota"])
def test_split_memory_is_equal_and_must_hold_all_weights(mode: str) -> None:
    world = World(policy(mode), 100, {"a": 10, "b": 20})
    assert world.policy.fits(world.view(), ModelView("c", "cold", 30)) == ""
    refused = world.policy.fits(world.view(), ModelView("c", "cold", 68))
    assert "98 of 100 pages" in refused
    for one in world.models.values():
        one.state = "resident"
    world.act()
    assert {name: one.cap for name, one in world.models.items()} == {"a": 45, "b": 55}


def test_quotas_follow_use() -> None:
    world = World(policy("quota", quota_seconds=5.0), 100, {"a": 10, "b": 10}, kv=38)
    for one in world.models.values():
        one.state = "resident"
    world.act()
    world.queues["a"] = [0.0]
    world.step()
    world.now = 6.0
    world.ends["a"] = 7.0
    world.act()
    a, b = world.models["a"].cap, world.models["b"].cap
    assert a is not None and b is not None and a > 50 > b and a + b == 100


def test_swap_has_one_model_awake_and_gives_every_one_its_turn() -> None:
    world = World(policy("swap"), 30, {"a": 10, "b": 10, "c": 10})
    world.queues = {"a": [0.0] * 40, "b": [0.1] * 3, "c": [0.2] * 3}
    for _ in range(400):
        if not world.step():
            break
        assert sum(one.awake for one in world.models.values()) <= 1
    assert not any(world.queues.values())
    assert {"a", "b"} <= set(world.slept[:3])


def test_swap_admits_again_when_nobody_waits_any_more() -> None:
    world = World(policy("swap", turn_seconds=0.7), 30, {"a": 10, "b": 10})
    world.queues["a"] = [0.0] * 40
    world.step()
    world.queues["b"] = [world.now]
    while world.models["a"].draining is None:
        assert world.step()
    world.queues["b"].clear()  # whoever asked went away
    world.run()
    assert not world.queues["a"] and world.slept == []


def test_the_ladder_stops_when_it_is_enough_and_tells_what_it_took() -> None:
    need, log = [10], []

    def take(pages: int, most: int = 4) -> int:
        got = min(pages, most)
        need[0] -= got
        return got

    rungs = ResidencySettings().ladder
    takes = dict.fromkeys(("idle-prefixes", "prefixes", "preempt", "weights"), take)
    assert climb(rungs, takes, lambda: need[0], lambda rung, pages: log.append((rung, pages)))  # type: ignore[arg-type]
    assert log == [("idle-prefixes", 4), ("prefixes", 4), ("preempt", 2)]
    need[0] = 100
    assert not climb(rungs, takes, lambda: need[0], lambda *_: None)  # type: ignore[arg-type]
    assert before(rungs, "preempt") == ("reserved", "idle-prefixes", "prefixes", "admission")
