from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenfold.core.clock import VirtualClock
from tenfold.core.errors import Overloaded
from tenfold.core.settings import ClientSettings, QueueSettings
from tenfold.scheduling.admission import AdmissionController, Limits, Load

LIMITS = Limits(Load(6, 60), Load(4, 40), {"vip": Load(5, 50)})


class AdmissionMachine(RuleBasedStateMachine):
    """Counts against a list of what waits; refusals exactly at the bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.control = AdmissionController(LIMITS, clock=self.clock)
        self.queued: list[tuple[str, int]] = []

    @rule(client=st.sampled_from(["a", "b", "vip"]), tokens=st.integers(0, 70))
    def admit(self, client: str, tokens: int) -> None:
        def full(scope: list[int], bound: Load) -> bool:
            if len(scope) + 1 > bound.requests:
                return True
            return bool(scope) and sum(scope) + tokens > bound.tokens

        own = [t for c, t in self.queued if c == client]
        bound = LIMITS.named.get(client, Load(4, 40))
        refused = full([t for _, t in self.queued], Load(6, 60)) or full(own, bound)
        try:
            self.control.admit(client, tokens, self.clock.now())
            assert not refused
            self.queued.append((client, tokens))
        except Overloaded as error:
            assert refused
            assert error.retry_after is not None and 1 <= error.retry_after <= 60

    @precondition(lambda self: self.queued)
    @rule(data=st.data(), aborted=st.booleans())
    def leave(self, data: st.DataObject, aborted: bool) -> None:
        client, tokens = data.draw(st.sampled_from(self.queued))
        self.queued.remove((client, tokens))
        if aborted:
            self.control.gone(client, tokens, queued=True)
        else:
            self.control.started(client, tokens, self.clock.now())
            self.control.gone(client, tokens, queued=False)

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def counts_are_right(self) -> None:
        assert self.control.waiting == Load(len(self.queued), sum(t for _, t in self.queued))
        assert set(self.control.clients) == {c for c, _ in self.queued}


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_the_message_names_the_queue_and_both_numbers() -> None:
    control = AdmissionController(Limits(Load(9, 999), Load(2, 99)))
    control.admit("greedy", 60, 0.0)
    with pytest.raises(Overloaded, match=r"'greedy'.* 60 prompt tokens.* 50 more.* 99 ") as refusal:
        control.admit("greedy", 50, 0.0)
    control.admit("greedy", 5, 0.0)
    with pytest.raises(Overloaded, match=r"'greedy'.* 2 requests.* 2 may wait"):
        control.admit("greedy", 1, 0.0)
    control.admit("other", 5, 0.0)
    assert refusal.value.retry_after == 60  # nothing has drained yet


@pytest.mark.parametrize("pace", [0.5, 2.0])
def test_the_wait_follows_the_drain_rate(pace: float) -> None:
    """Requests leave every ``pace`` seconds; there is room again after one more has."""
    control = AdmissionController(Limits(Load(10, 10_000), Load(10, 10_000)))
    now = 0.0
    for _ in range(10):
        control.admit("c", 10, now)
    for _ in range(60):
        now += pace
        control.started("c", 10, now)
        control.admit("c", 10, now)
    with pytest.raises(Overloaded) as refusal:
        control.admit("c", 10, now)
    assert refusal.value.retry_after == pytest.approx(max(1.0, pace), rel=0.3)


def test_a_prompt_longer_than_the_whole_bound_is_let_in_alone() -> None:
    control = AdmissionController(Limits(Load(9, 100), Load(9, 100)))
    control.admit("c", 5000, 0.0)
    with pytest.raises(Overloaded):
        control.admit("d", 1, 0.0)


def test_unbounded_and_settings() -> None:
    control = AdmissionController(Limits.unbounded())
    for _ in range(3000):
        control.admit("c", 10**9, 0.0)
    client = ClientSettings("small", max_requests=2)
    limits = Limits.from_settings(QueueSettings(), [client])
    assert limits.named == {"small": Load(2, QueueSettings().client_tokens)}
    assert limits.server == Load(QueueSettings().max_requests, QueueSettings().max_tokens)


def test_leaving_without_having_waited_is_an_error() -> None:
    control = AdmissionController(LIMITS)
    with pytest.raises(ValueError, match="left the queue"):
        control.started("nobody", 5, 0.0)
    assert control.waiting == Load()
