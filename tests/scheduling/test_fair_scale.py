"""Long queues and many clients: what policies touch, in lines that run and not in seconds."""

from __future__ import annotations

import sys
from time import perf_counter
from types import FrameType
from typing import Any

import pytest
from fair_model import PrefixMatches

from tenfold.core.settings import ScheduleSettings
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.base import Policy, PolicyFactory, PolicySetup, Waiting
from tenfold.scheduling.dlpm import DLPM
from tenfold.scheduling.klpm import KLPM
from tenfold.scheduling.lpm import LPM
from tenfold.scheduling.vtc import VTC


class Operations:
    """Lines of the policies' code that ran."""

    def __enter__(self) -> Operations:
        self.count = 0
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if "/tenfold/scheduling/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        self.count += 1
        return self._line


def long_queue(factory: PolicyFactory, requests: int, clients: int) -> tuple[Policy, PrefixMatches]:
    matches = PrefixMatches()
    rules = ScheduleSettings(quantum=1000.0)
    policy = factory(PolicySetup(matches, rules, Accounts(rules)))
    for i in range(requests):
        w = Waiting(str(i), f"c{i % clients}", 300, order=i)
        matches.put(w.id, i * 7919 % 97)
        policy.add(w)
    next(policy.candidates(0.0))  # what has changed is looked at once
    return policy, matches


def one_pass(policy: Policy, admit: int, refuse: int) -> None:
    """Like the batcher: so many are admitted, then so many do not fit, and the pass is over."""
    for tried, w in enumerate(policy.candidates(0.0)):
        if tried < admit:
            policy.admitted(w, 200)
            policy.prefilled(w.client, 200)
        elif tried == admit + refuse:
            return


@pytest.mark.parametrize("factory", [LPM, KLPM, VTC, DLPM])
@pytest.mark.parametrize("clients", [1, 100, 10_000])
def test_a_pass_does_not_grow_with_the_queue(factory: PolicyFactory, clients: int) -> None:
    counts = []
    for requests in (500, 10_000):
        policy, _ = long_queue(factory, requests, clients)
        with Operations() as done:
            one_pass(policy, 10, 16)
        counts.append(done.count)
    assert counts[1] <= counts[0] * 1.5 + 100
    assert counts[1] < 8000


def test_a_pass_costs_a_constant_for_each_client_in_debt_before_the_first_with_credit() -> None:
    """The worst case: thousands of clients that must wait, and one who need not is last."""
    for clients in (100, 3000):
        policy, matches = long_queue(DLPM, clients, clients)
        assert isinstance(policy, DLPM)
        deficits = policy.deficits
        last = Waiting("last", "rich", 300, order=clients)
        matches.put("last", 0)
        policy.add(last)
        deficits.refill()
        for i in range(clients):
            deficits.charge(f"c{i}", 5000.0)
        with Operations() as done:
            tried = list(policy.candidates(0.0))
        assert tried == [last]
        assert done.count < 100 * clients


@pytest.mark.parametrize("factory", [LPM, KLPM, DLPM])
def test_a_change_of_the_cache_costs_what_it_changes(factory: PolicyFactory) -> None:
    policy, matches = long_queue(factory, 10_000, 100)
    before = matches.asked
    for i in range(10):
        matches.put(str(9000 + i), 97)
    with Operations() as done:
        assert next(policy.candidates(0.0)).id == "9000"
    assert matches.asked - before <= 20
    assert done.count < 3000


@pytest.mark.parametrize("factory", [DLPM, VTC])
def test_clients_that_came_once_are_not_kept_for_ever(factory: PolicyFactory) -> None:
    rules = ScheduleSettings(quantum=1000.0)
    accounts = Accounts(rules)
    policy = factory(PolicySetup(None, rules, accounts))
    for i in range(5000):
        w = Waiting(str(i), f"c{i}", 30, order=i)
        policy.add(w)
        for one in policy.candidates(float(i)):
            policy.admitted(one, 30)
            policy.prefilled(one.client, 30)
        policy.finished(w.client)
        policy.decoded({w.client: 5})
    books = accounts.deficits if factory is DLPM else accounts.counters
    assert len(books.clients()) < 2500


def test_what_comes_back_to_a_client_that_is_gone_does_not_keep_him() -> None:
    """The cost of a shared prefix is given back in part, long after who paid for it left."""
    rules = ScheduleSettings(quantum=1000.0)
    accounts = Accounts(rules)
    policy = DLPM(PolicySetup(None, rules, accounts))
    for i in range(100):
        policy.shared({f"gone{i}": -5.0})
    list(policy.candidates(1e4))
    list(policy.candidates(2e4))
    assert accounts.deficits.clients() == []


@pytest.mark.slow
def test_print_how_long_a_pass_takes() -> None:
    for factory in (LPM, KLPM, VTC, DLPM):
        for clients in (1, 100, 10_000):
            policy, _ = long_queue(factory, 10_000, clients)
            start = perf_counter()
            for _ in range(50):
                one_pass(policy, 10, 16)
            each = (perf_counter() - start) / 50
            name = factory.__name__
            print(f"{name}: 10,000 requests of {clients} clients: {each * 1e3:.2f} ms a pass")
