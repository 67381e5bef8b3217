"""Routing policies: whom they choose, and the numbers by which they do."""

from __future__ import annotations

import pytest

from tenfold.core.errors import ConfigError
from tenfold.core.settings import RoutingSettings
from tenfold.kvcache.hashing import block_hashes
from tenfold.scheduling.routing.base import Routed, RoutingPolicy
from tenfold.scheduling.routing.d2lpm import D2LPM, IDLE_SECONDS
from tenfold.scheduling.routing.preble import WINDOW_SECONDS, PrebleLike
from tenfold.scheduling.routing.registry import routing_policies

BLOCK = 4
PREFIX = list(range(40))
OTHER = list(range(100, 140))


def request(id: str, tokens: list[int], client: str = "c", model: str = "m") -> Routed:
    return Routed(id, client, model, len(tokens), block_hashes(tokens, BLOCK), 8, BLOCK)


def made(name: str, workers: int = 3, **settings: object) -> RoutingPolicy:
    policy = routing_policies.get(name)(RoutingSettings(**settings))  # type: ignore[arg-type]
    for number in range(workers):
        policy.join(f"w{number}")
    return policy


def everybody(workers: int = 3) -> frozenset[str]:
    return frozenset(f"w{number}" for number in range(workers))


def test_the_registry_names_what_there_is() -> None:
    assert routing_policies.names() == [
        "cache-aware",
        "d2lpm",
        "least-loaded",
        "preble-like",
        "round-robin",
    ]
    with pytest.raises(ConfigError, match="unknown routing policy 'best'"):
        routing_policies.get("best")


@pytest.mark.parametrize("name", routing_policies.names())
def test_every_policy_keeps_to_those_that_may_be_asked(name: str) -> None:
    policy = made(name)
    for number in range(12):
        among = [["w1"], {"w0", "w2"}, frozenset({"w2"})][number % 3]
        assert policy.choose(request(f"{number}", PREFIX), among, float(number)) in among
        if number % 2:
            policy.finished(f"{number}", 5, float(number))
    policy.leave("w2")
    policy.dropped("2")  # was its
    policy.join("w3")
    assert policy.choose(request("x", PREFIX), {"w3"}, 20.0) == "w3"
    policy.finished("never heard of", 3, 21.0)
    policy.evicted("w9", "m", [1])


@pytest.mark.parametrize("name", routing_policies.names())
def test_equal_calls_get_equal_answers(name: str) -> None:
    def run() -> list[str]:
        policy, chosen = made(name), []
        for number in range(60):
            prompt = [number % 7] * 8 + [number % 3] * 8 + [number]
            prompt = prompt if number % 2 else PREFIX
            one = request(f"{number}", prompt, f"c{number % 4}")
            chosen.append(policy.choose(one, everybody(), number * 0.1))
            if number >= 5:
                policy.finished(f"{number - 5}", number % 9, number * 0.1)
        return chosen

    assert run() == run()


def test_round_robin_and_least_loaded_go_round() -> None:
    turns = made("round-robin")
    assert [turns.choose(request(f"{n}", PREFIX), everybody(), 0.0) for n in range(4)] == [
        "w0",
        "w1",
        "w2",
        "w0",
    ]
    least = made("least-loaded")
    for number in range(3):
        least.choose(request(f"{number}", PREFIX), everybody(), 0.0)
    least.finished("1", 5, 1.0)
    assert least.choose(request("3", PREFIX), everybody(), 1.0) == "w1"
    least.leave("w0")
    least.join("w0")  # came back with nothing to do
    assert least.choose(request("4", PREFIX), everybody(), 1.0) == "w0"


def test_cache_aware_follows_a_long_match_until_it_is_too_busy() -> None:
    policy = made("cache-aware", slack_requests=3, slack_ratio=1.5)
    first = policy.choose(request("0", PREFIX + OTHER[:4]), everybody(), 0.0)
    policy.finished("0", 1, 0.0)  # it stays in the map although nobody says that it is cached
    half = PREFIX[:20]
    chosen = [policy.choose(request(f"h{n}", half + [n] * 19), everybody(), 0.0) for n in range(4)]
    assert chosen == [first] * 4  # 5 of 9 blocks
    assert policy.choose(request("busy", half + [9] * 19), everybody(), 0.0) != first
    short = policy.choose(request("s", PREFIX[:16] + [8] * 23), everybody(), 0.0)
    assert short != first  # 4 of 9 blocks: the least busy one, whatever it has


def test_d2lpm_follows_the_longest_match_while_there_is_credit() -> None:
    policy = made("d2lpm", quantum=100.0)
    assert isinstance(policy, D2LPM)
    sent = [policy.choose(request(f"{n}", PREFIX), everybody(), 0.0) for n in range(3)]
    assert sent == ["w0"] * 3  # 100, 60, 20, and now -20
    assert [policy.credit("c", w) for w in ("w0", "w1", "w2")] == [-20, 100, 100]
    assert policy.choose(request("3", PREFIX), everybody(), 0.0) == "w1"
    assert policy.choose(request("4", PREFIX, "d"), everybody(), 0.0) == "w1"  # the less busy one
    policy.finished("0", 7, 1.0)
    assert policy.credit("c", "w0") == -34
    assert policy.rounds == 2


def test_d2lpm_gives_as_many_rounds_as_it_takes_and_no_more() -> None:
    policy = made("d2lpm", workers=2, quantum=10.0)
    assert isinstance(policy, D2LPM)
    for number in range(2):
        policy.choose(request(f"{number}", PREFIX), everybody(2), 0.0)
        policy.finished(f"{number}", 20 * number, 0.0)
    assert [policy.credit("c", w) for w in ("w0", "w1")] == [-30, -70]
    assert policy.choose(request("2", OTHER), everybody(2), 0.0) == "w0"  # after four rounds
    assert [policy.credit("c", w) for w in ("w0", "w1")] == [10 - 40, -30]
    policy.set_weight("c", 2.5)  # rounds of 25: two more
    policy.choose(request("3", OTHER), everybody(2), 0.0)
    assert [policy.credit("c", w) for w in ("w0", "w1")] == [20 - 40, 20]


def test_d2lpm_takes_back_what_was_not_served() -> None:
    policy = made("d2lpm", quantum=100.0)
    assert isinstance(policy, D2LPM)
    worker = policy.choose(request("0", PREFIX), everybody(), 0.0)
    policy.dropped("0")
    assert policy.credit("c", worker) == 100
    assert policy.map("m").match(request("", PREFIX).hashes).blocks == 0
    policy.choose(request("1", PREFIX), {"w0"}, 0.0)
    policy.choose(request("2", [*OTHER, *range(60)]), {"w0"}, 0.0)
    policy.choose(request("3", OTHER), {"w0"}, 0.0)  # in debt: a round first
    policy.dropped("2")
    assert policy.credit("c", "w0") == 100  # not more than a quantum
    policy.leave("w0")
    assert policy.credit("c", "w0") == 0
    policy.join("w0")
    assert policy.credit("c", "w0") == 0
    assert policy.choose(request("4", PREFIX), everybody(), 0.0) != "w0"  # it waits for a round


def test_d2lpm_can_charge_what_is_not_cached_only() -> None:
    policy = made("d2lpm", quantum=1000.0, charge_input="extend")
    assert isinstance(policy, D2LPM)
    policy.choose(request("0", PREFIX), everybody(), 0.0)
    policy.choose(request("1", PREFIX + OTHER[:6]), everybody(), 0.0)
    policy.choose(request("2", PREFIX), everybody(), 0.0)
    assert policy.credit("c", "w0") == 1000 - 40 - 6 - 1


def test_d2lpm_forgets_clients_that_stay_away() -> None:
    policy = made("d2lpm")
    assert isinstance(policy, D2LPM)
    policy.choose(request("0", PREFIX, "a"), everybody(), 0.0)
    policy.choose(request("1", PREFIX, "b"), everybody(), 0.0)
    policy.finished("0", 1, 1.0)
    policy.choose(request("2", PREFIX, "c"), everybody(), IDLE_SECONDS + 2)
    assert set(policy._rows) == {"b", "c"}  # b has something to do still


def test_there_can_be_many_workers() -> None:
    for name in ("d2lpm", "preble-like"):
        policy = made(name, workers=70)
        chosen = {
            policy.choose(request(f"{n}", [n] * 40, f"{n}"), everybody(70), 0.0) for n in range(70)
        }
        assert len(chosen) == 70


def test_preble_exploits_long_matches_and_explores_with_short_ones() -> None:
    policy = made("preble-like")
    for number in range(3):
        policy.choose(request(f"{number}", [number] * 40), {f"w{number}"}, 0.0)
    for number in range(3):  # all are equally busy
        same = request(f"again {number}", [number] * 40 + OTHER[:30])
        assert policy.choose(same, everybody(), 0.0) == f"w{number}"
    assert policy.choose(request("x", PREFIX), everybody(), 0.0) == "w0"
    assert policy.choose(request("y", [0] * 40 + OTHER + OTHER), everybody(), 0.0) == "w1"


def test_preble_moves_load_away_and_forgets_what_is_long_ago() -> None:
    policy = made("preble-like", workers=2)
    assert isinstance(policy, PrebleLike)
    chosen = [policy.choose(request(f"{n}", PREFIX), everybody(2), 0.0) for n in range(6)]
    assert len(set(chosen)) == 2  # a copy of the prefix was made
    for number in range(6):
        policy.finished(f"{number}", 8, 1.0)
    policy.choose(request("late", OTHER), everybody(2), WINDOW_SECONDS + 2)
    assert sorted(policy._sums.cost[:2]) == [0, 40]


def test_preble_avoids_workers_that_would_lose_a_good_cache() -> None:
    policy = made("preble-like", workers=2)
    assert isinstance(policy, PrebleLike)
    policy.choose(request("0", PREFIX), {"w0"}, 0.0)
    policy.inserted("w0", "m", 0, request("", PREFIX).hashes)
    for number in range(1, 4):
        policy.finished(f"{number - 1}", 1, 0.0)
        policy.choose(request(f"{number}", PREFIX), {"w0"}, 0.0)
    policy.finished("3", 1, 0.0)
    policy.choose(request("4", OTHER + [5] * 20), {"w1"}, 0.0)
    policy.finished("4", 1, 0.0)
    assert policy.choose(request("5", [6] * 40), everybody(2), 0.0) == "w0"
    policy.dropped("5")
    policy.evicted("w0", "m", [12345])  # it is full
    assert policy.choose(request("6", [7] * 40), everybody(2), 0.0) == "w1"
