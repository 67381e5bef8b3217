from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tenfold.core.errors import ConfigError
from tenfold.kvcache.hashing import block_hashes
from tenfold.scheduling import lpm
from tenfold.scheduling.base import Policy, PolicySetup, Waiting
from tenfold.scheduling.fcfs import FCFS
from tenfold.scheduling.lpm import LPM
from tenfold.scheduling.registry import policies

BLOCK = 4


class FakeMatches:
    """Matches that the test sets."""

    block_tokens = BLOCK

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.changed: set[str] = set()

    def set(self, key: str, tokens: int) -> None:
        self.values[key] = tokens
        self.changed.add(key)

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def matched(self, key: str) -> int:
        return self.values[key]

    def take_changed(self) -> set[str]:
        changed, self.changed = self.changed, set()
        return changed


def request(order: int, tokens: list[int] | None = None, **more: object) -> Waiting:
    prompt = tokens or []
    return Waiting(
        id=f"r{order}",
        client="c",
        prompt_tokens=len(prompt),
        order=order,
        hashes=block_hashes(prompt, BLOCK),
        **more,  # type: ignore[arg-type]
    )


def ids(policy: Policy) -> list[str]:
    return [w.id for w in policy.candidates(0.0)]


class PolicyMachine(RuleBasedStateMachine):
    """Both policies against sorting the whole queue; prompts without blocks, so no siblings."""

    @initialize(longest=st.booleans())
    def start(self, longest: bool) -> None:
        self.matches = FakeMatches()
        self.longest = longest
        self.policy: Policy = LPM(PolicySetup(self.matches)) if longest else FCFS()
        self.queued: list[Waiting] = []
        self.running: list[Waiting] = []
        self.back: set[Waiting] = set()
        self.count = 0

    def expected(self) -> list[str]:
        def key(w: Waiting) -> tuple[int, bool, int, int]:
            matched = self.matches.values[w.id] if self.longest else 0
            return (w.priority, w not in self.back, -matched, w.order)

        return [w.id for w in sorted(self.queued, key=key)]

    @rule(priority=st.integers(0, 2), matched=st.integers(0, 5))
    def add(self, priority: int, matched: int) -> None:
        self.count += 1
        w = request(self.count, priority=priority)
        self.matches.set(w.id, matched)
        self.policy.add(w)
        self.queued.append(w)

    @precondition(lambda self: self.queued)
    @rule(data=st.data(), matched=st.integers(0, 5))
    def cache_changes(self, data: st.DataObject, matched: int) -> None:
        self.matches.set(data.draw(st.sampled_from(self.queued)).id, matched)

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        w = data.draw(st.sampled_from(self.queued))
        self.queued.remove(w)
        self.policy.remove(w)
        self.policy.remove(w)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), matched=st.integers(0, 5))
    def preempt(self, data: st.DataObject, matched: int) -> None:
        w = data.draw(st.sampled_from(self.running))
        self.running.remove(w)
        self.matches.set(w.id, matched)
        self.policy.preempted(w, 3)
        self.queued.append(w)
        self.back.add(w)

    @rule(data=st.data())
    def serve_some(self, data: st.DataObject) -> None:
        """A pass in which some candidates fit; they leave while the pass goes on."""
        seen = []
        expected = self.expected()
        for w in self.policy.candidates(1.0):
            seen.append(w.id)
            if data.draw(st.booleans()):
                self.policy.admitted(w, 5)
                self.queued.remove(w)
                self.running.append(w)
                self.back.discard(w)
        assert seen == expected

    @invariant()
    def order_is_right(self) -> None:
        if hasattr(self, "policy"):
            assert len(self.policy) == len(self.queued)
            assert ids(self.policy) == self.expected()
            assert all(not w.preempted for w in self.running)


TestPolicies = PolicyMachine.TestCase
TestPolicies.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_fcfs_blocks_and_lpm_does_not() -> None:
    assert FCFS().blocking and not LPM().blocking


def test_an_id_is_queued_once() -> None:
    policy = FCFS()
    policy.add(request(1))
    with pytest.raises(ValueError, match="queued already"):
        policy.add(request(1))


def test_policies_come_from_the_registry() -> None:
    assert policies.names() == ["dlpm", "fcfs", "k-lpm", "lpm", "vtc"]
    assert isinstance(policies.get("lpm")(PolicySetup(FakeMatches())), LPM)
    with pytest.raises(ConfigError, match="dlpm, fcfs, k-lpm, lpm, vtc"):
        policies.get("best")


# --- siblings ------------------------------------------------------------------------------------
def siblings(count: int, shared: int, matches: FakeMatches) -> tuple[LPM, list[Waiting]]:
    policy = LPM(PolicySetup(matches), sibling_tokens=8)
    requests = []
    for i in range(count):
        w = request(i, list(range(shared)) + [1000 + i] * 8)
        matches.set(w.id, 0)
        policy.add(w)
        requests.append(w)
    return policy, requests


def serve(policy: LPM) -> list[str]:
    """One pass in which everything fits."""
    admitted = []
    for w in policy.candidates(0.0):
        policy.admitted(w, 0)
        admitted.append(w.id)
    return admitted


def test_of_siblings_one_computes_the_prefix_and_the_others_follow() -> None:
    matches = FakeMatches()
    policy, requests = siblings(4, 32, matches)
    assert serve(policy) == ["r0"]
    for cached in (12, 24):  # chunk by chunk, the first computes what they all need
        for w in requests[1:]:
            matches.set(w.id, cached)
        assert serve(policy) == []
    for w in requests[1:]:
        matches.set(w.id, 32)
    assert serve(policy) == ["r1", "r2", "r3"]


def test_siblings_wait_only_while_their_match_grows() -> None:
    matches = FakeMatches()
    policy, requests = siblings(3, 32, matches)
    assert serve(policy) == ["r0"]
    for w in requests[1:]:
        matches.set(w.id, 8)
    assert serve(policy) == []
    assert serve(policy) == ["r1"]  # the first was aborted, say: nothing grew


def test_a_sibling_that_does_not_fit_holds_up_nobody() -> None:
    policy, _ = siblings(3, 32, FakeMatches())
    assert ids(policy) == ["r0", "r1", "r2"]


def test_a_short_shared_part_is_not_worth_waiting_for() -> None:
    policy, _ = siblings(3, 7, FakeMatches())
    assert serve(policy) == ["r0", "r1", "r2"]


def test_every_sibling_is_served_within_as_many_passes() -> None:
    policy, _ = siblings(10, 32, FakeMatches())
    passes = 0
    while len(policy):
        assert serve(policy)
        passes += 1
    assert passes <= 10


def test_matches_may_be_kept_by_the_caller() -> None:
    policy = LPM()
    first, second = request(1), request(2)
    policy.add(first)
    policy.add(second)
    second.matched = 16
    assert ids(policy) == ["r2", "r1"]


def test_plain_lpm_starves_and_says_so() -> None:
    """Not a wish but the published behaviour: a miss waits as long as hits keep coming."""
    matches = FakeMatches()
    policy = LPM(PolicySetup(matches))
    miss = request(0)
    matches.set(miss.id, 0)
    policy.add(miss)
    for i in range(1, 500):
        hit = request(i)
        matches.set(hit.id, 64)
        policy.add(hit)
        best = next(policy.candidates(float(i)))
        policy.admitted(best, 1)
        assert best is hit
    assert "wait for ever" in (lpm.__doc__ or "")
