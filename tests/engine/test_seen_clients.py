"""What the engine tells of clients that are to be seen: shares, drift within its bound, refills."""

from __future__ import annotations

import pytest

from engine.harness import Sim
from tenfold.core.messages import AskStats, ClientStats, DeviceStats, SetShares
from tenfold.core.settings import Share


def told(sim: Sim) -> DeviceStats:
    sim.engine.handle(AskStats("s"))
    stats = sim.heard.events[-1]
    assert isinstance(stats, DeviceStats)
    return stats


def flood(sim: Sim, client: str, requests: int, shared: int) -> None:
    for number in range(requests):
        prompt = [1000 * ord(client[0]) + at for at in range(shared)] + [number]
        sim.ask(f"{client}{number}", prompt, 8, client=client)


@pytest.mark.parametrize("policy", ["fcfs", "vtc", "dlpm"])
def test_shares_are_of_those_that_have_work(policy: str) -> None:
    sim = Sim(policy=policy, quantum=40.0, max_running=2)
    sim.add(blocks=400)
    sim.engine.handle(SetShares([Share("ada", 3.0)]))
    flood(sim, "ada", 2, 20)
    flood(sim, "bob", 40, 20)
    assert {one.client: one.fair for one in told(sim).clients} == {"ada": 0.75, "bob": 0.25}
    while any(one.client == "ada" and one.waiting + one.running for one in told(sim).clients):
        assert sim.engine.step()
    assert {one.client: one.fair for one in told(sim).clients} == {"ada": 0.0, "bob": 1.0}


@pytest.mark.parametrize("policy", ["vtc", "dlpm"])
def test_drift_is_seen_and_stays_within_its_bound(policy: str) -> None:
    sim = Sim(policy=policy, quantum=40.0, max_running=3)
    sim.add(blocks=400)
    for client, shared in (("ada", 4), ("bob", 60), ("carol", 20)):
        flood(sim, client, 40, shared)
    worst = 0.0
    clients: list[ClientStats] = []
    for _ in range(150):
        assert sim.engine.step()
        clients = told(sim).clients
        assert all(one.waiting for one in clients)
        for one in clients:
            assert abs(one.drift) <= one.bound
            worst = max(worst, abs(one.drift) / one.bound)
    assert len(clients) == 3
    assert worst > 0.1
    assert (told(sim).rounds > 3) == (policy == "dlpm")
