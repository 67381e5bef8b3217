"""Hard limits under a virtual clock: never above what the rule promises, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenfold.core.clock import VirtualClock
from tenfold.core.errors import RateLimited
from tenfold.core.settings import ClientSettings, GroupSettings
from tenfold.scheduling.limits import ASSUMED_OUTPUT, SLOT, WINDOW, Grant, RateLimiter

GROUPS = [
    GroupSettings("org", requests_per_minute=9, tokens_per_minute=900, max_concurrent=7),
    GroupSettings("team", group="org", tokens_per_minute=600),
]
CLIENTS = [
    ClientSettings("ann", group="team", requests_per_minute=5, tokens_per_minute=400),
    ClientSettings("bob", group="team", max_concurrent=2),
    ClientSettings("cy", group="org", requests_per_minute=4),
    ClientSettings("free"),
]
INSIDE = {
    "ann": ["ann"],
    "bob": ["bob"],
    "cy": ["cy"],
    "team": ["ann", "bob"],
    "org": ["ann", "bob", "cy"],
}
LIMITS = {one.name: one for one in (*CLIENTS, *GROUPS)}


def limiter_of(clock: VirtualClock, *tenants: ClientSettings | GroupSettings) -> RateLimiter:
    limiter = RateLimiter(clock)
    given = tenants or (*CLIENTS, *GROUPS)
    limiter.set_limits(
        [one for one in given if isinstance(one, ClientSettings)],
        [one for one in given if isinstance(one, GroupSettings)],
    )
    return limiter


class _Part:
    """One choice as the test remembers it. ``tokens``: (when, how many), the prompt first."""

    def __init__(self, grant: Grant, index: int, at: float, prompt: int, output: int) -> None:
        self.grant, self.index, self.at = grant, index, at
        self.tokens = [(at, prompt)]
        self.left = output
        self.made = 0
        self.begun = False


class LimitsMachine(RuleBasedStateMachine):
    """Requests with ``max_tokens`` come, start, make tokens, die and start anew, and end."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.limiter = limiter_of(self.clock)
        self.live: list[tuple[str, _Part]] = []
        self.past: list[tuple[str, _Part]] = []

    @rule(
        client=st.sampled_from(["ann", "bob", "cy"]),
        parts=st.integers(1, 3),
        prompt=st.integers(1, 120),
        output=st.integers(1, 120),
    )
    def come(self, client: str, parts: int, prompt: int, output: int) -> None:
        grant = None
        try:
            grant = self.limiter.enter(client, parts)
            grant.reserve(prompt, output, 1000)
        except RateLimited as error:
            if grant is not None:
                grant.__exit__(None, None, None)
            assert self._refused(client, parts, parts * (prompt + output), error.limit)
            return
        now = self.clock.now()
        self.live += [(client, _Part(grant, i, now, prompt, output)) for i in range(parts)]

    def _refused(self, client: str, parts: int, tokens: int, limit: str) -> bool:
        """Whether that limit is in the way, by the test's own count. It may count longer, by the
        length of a slot."""
        for name, members in INSIDE.items():
            most = getattr(LIMITS[name], limit)
            if client not in members or most is None:
                continue
            requests, used, held, opened = self._counted(members, WINDOW + SLOT)
            total = {
                "requests_per_minute": requests + parts,
                "tokens_per_minute": used + held + tokens,
                "max_concurrent": opened + parts,
            }
            if total[limit] > most:
                return True
        return False

    def _counted(self, members: list[str], window: float) -> tuple[int, int, int, int]:
        since = self.clock.now() - window
        parts = [p for c, p in (*self.live, *self.past) if c in members]
        live = [p for c, p in self.live if c in members]
        requests = sum(p.at > since for p in parts)
        tokens = sum(n for p in parts for at, n in p.tokens if at > since)
        return requests, tokens, sum(p.left for p in live), len(live)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        _, part = data.draw(st.sampled_from(self.live))
        part.begun = True
        part.grant.began(part.index)

    @precondition(lambda self: any(p.begun and p.left for _, p in self.live))
    @rule(data=st.data(), tokens=st.integers(1, 40))
    def make(self, data: st.DataObject, tokens: int) -> None:
        running = [p for _, p in self.live if p.begun and p.left]
        part = data.draw(st.sampled_from(running))
        fresh = min(tokens, part.left)
        part.left -= fresh
        part.made += fresh
        part.tokens.append((self.clock.now(), fresh))
        part.grant.output(part.index, part.made)

    @precondition(lambda self: self.live)
    @rule()
    def everything_runs_to_its_end(self) -> None:
        """What was let in may use all it asked for, whenever it likes."""
        for _, part in self.live:
            part.begun = True
            part.grant.began(part.index)
            part.made += part.left
            part.tokens.append((self.clock.now(), part.left))
            part.left = 0
            part.grant.output(part.index, part.made)

    @precondition(lambda self: any(p.made for _, p in self.live))
    @rule(data=st.data())
    def the_worker_dies(self, data: st.DataObject) -> None:
        """It starts anew, and makes again what it had made: nothing of that is new."""
        part = data.draw(st.sampled_from([p for _, p in self.live if p.made]))
        for made in range(1, part.made + 1, 7):
            part.grant.output(part.index, made)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        client, part = data.draw(st.sampled_from(self.live))
        self.live.remove((client, part))
        for _ in range(2):
            part.grant.end(part.index)
        if part.begun:
            self.past.append((client, part))

    @rule(seconds=st.one_of(st.floats(0, 3), st.floats(0, 70)))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def no_minute_is_above_a_limit(self) -> None:
        for name, members in INSIDE.items():
            requests, tokens, _, opened = self._counted(members, WINDOW)
            limits = LIMITS[name]
            for count, most in (
                (requests, limits.requests_per_minute),
                (tokens, limits.tokens_per_minute),
                (opened, limits.max_concurrent),
            ):
                assert most is None or count <= most, (name, count, most)

    @invariant()
    def the_books_are_right(self) -> None:
        """Between what counts for 60 seconds and what counts for a slot more."""
        for name, members in INSIDE.items():
            kind = "group" if name in ("team", "org") else "client"
            scope = self.limiter._scopes[kind, name]
            scope.forget(self.clock.now())
            low, high = self._counted(members, WINDOW), self._counted(members, WINDOW + SLOT)
            assert low[0] <= scope.requests.total <= high[0]
            assert low[1] <= scope.tokens.total <= high[1]
            assert (scope.reserved, scope.open) == (low[2], low[3])


TestLimits = LimitsMachine.TestCase
TestLimits.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 20), min_size=30, max_size=120),
    most=st.integers(1, 12),
)
def test_any_sixty_seconds_hold_at_most_the_limit(gaps: list[float], most: int) -> None:
    clock = VirtualClock()
    limiter = limiter_of(clock, ClientSettings("ann", requests_per_minute=most))
    begun: list[float] = []
    for gap in gaps:
        clock.advance(gap)
        try:
            with limiter.enter("ann") as grant:
                grant.began(0)
            begun.append(clock.now())
        except RateLimited as error:
            assert error.retry_after is not None
            assert sum(at > clock.now() - WINDOW - SLOT for at in begun) >= most
    for end in begun:
        assert sum(end - WINDOW < at <= end for at in begun) <= most


@pytest.mark.parametrize(
    ("limits", "prompts", "limit"),
    [
        ({"requests_per_minute": 3}, [10, 10, 10], "requests_per_minute"),
        ({"tokens_per_minute": 1000}, [300, 200, 400], "tokens_per_minute"),
    ],
)
def test_who_comes_back_when_told_is_let_in(
    limits: dict[str, int], prompts: list[int], limit: str
) -> None:
    clock = VirtualClock()
    limiter = limiter_of(clock, ClientSettings("ann", **limits))

    def ask(prompt: int) -> None:
        with limiter.enter("ann") as grant:
            grant.reserve(prompt, 10, 1000)
            grant.began(0)
            clock.advance(7.1)
            grant.output(0, 10)

    for prompt in prompts:
        ask(prompt)
    with pytest.raises(RateLimited, match=limit) as refusal:
        ask(300)
    wait = refusal.value.retry_after
    assert wait is not None and 0 < wait < WINDOW
    clock.advance(wait - 0.01)
    with pytest.raises(RateLimited, match=limit):
        ask(300)
    clock.advance(0.01)
    ask(300)


def test_what_never_began_counts_nothing() -> None:
    clock = VirtualClock()
    limiter = limiter_of(clock)
    with pytest.raises(ZeroDivisionError), limiter.enter("ann", 3) as grant:
        grant.reserve(10, 20, 1000)
        standing = limiter.standing("ann")
        assert standing is not None and standing.requests is not None and standing.tokens
        assert (standing.requests.remaining, standing.tokens.remaining) == (2, 310)
        grant.began(1)
        grant.output(1, 5)
        raise ZeroDivisionError
    standing = limiter.standing("ann")
    assert standing is not None and standing.requests and standing.tokens and standing.concurrent
    assert (standing.requests.remaining, standing.tokens.remaining) == (4, 400 - 15)
    assert standing.concurrent.remaining == 7


def test_an_answer_without_a_length_is_assumed_one_and_counted_on() -> None:
    clock = VirtualClock()
    limiter = limiter_of(clock, ClientSettings("ann", tokens_per_minute=4000))

    def left() -> int:
        standing = limiter.standing("ann")
        assert standing is not None and standing.tokens is not None
        return standing.tokens.remaining

    with limiter.enter("ann") as grant:
        grant.reserve(100, None, 5000)
        assert left() == 4000 - 100 - ASSUMED_OUTPUT
        grant.began(0)
        grant.output(0, ASSUMED_OUTPUT)
        assert left() == 4000 - 100 - ASSUMED_OUTPUT
        grant.output(0, 4500)
        assert left() == 0
        with pytest.raises(RateLimited), limiter.enter("ann") as other:
            other.reserve(1, 1, 1)
    clock.advance(WINDOW + SLOT)
    assert left() == 4000
    with limiter.enter("ann") as grant:
        grant.reserve(10, None, 7)
        assert left() == 4000 - 17
    small = limiter_of(clock, ClientSettings("ann", tokens_per_minute=100))
    with small.enter("ann") as grant:
        grant.reserve(10, None, 5000)
        standing = small.standing("ann")
        assert standing is not None and standing.tokens and standing.tokens.remaining == 65


def test_what_can_never_fit_is_said_so() -> None:
    limiter = limiter_of(VirtualClock())
    for refused in (lambda: limiter.enter("ann", 6), lambda: limiter.enter("bob", 3)):
        with pytest.raises(RateLimited, match="no waiting helps") as refusal:
            refused()
        assert refusal.value.retry_after is None
    with pytest.raises(RateLimited, match="may take 401") as refusal, limiter.enter("ann") as grant:
        grant.reserve(1, 400, 1000)
    assert refusal.value.retry_after is None
    with limiter.enter("ann") as grant:
        grant.reserve(1, 400, 399)  # the context ends before


def test_the_group_that_is_full_speaks() -> None:
    limiter = limiter_of(VirtualClock())
    grants = [limiter.enter(name) for name in ("ann", "cy", "cy", "cy", "cy", "bob", "bob")]
    with pytest.raises(RateLimited, match=r"group 'org' has 7 requests open.* is 7"):
        limiter.enter("ann")
    grants[0].end(0)
    limiter.enter("ann")
    standing = limiter.standing("ann")
    assert standing is not None and standing.concurrent == (7, 0, 0.0)


def test_limits_change_under_way() -> None:
    clock = VirtualClock()
    limiter = limiter_of(clock, ClientSettings("ann", requests_per_minute=2, max_concurrent=5))
    held = limiter.enter("ann", 2)
    held.began(0)
    limiter.set_limits([ClientSettings("ann", requests_per_minute=3, max_concurrent=2)], [])
    with pytest.raises(RateLimited, match="max_concurrent"):
        limiter.enter("ann")
    held.end(0)
    with limiter.enter("ann"):
        pass
    limiter.set_limits([ClientSettings("ann")], [])
    assert limiter.standing("ann") is None
    with limiter.enter("ann", 100) as grant:
        grant.reserve(1 << 40, None, 1 << 40)
    held.end(1)  # of limits that are gone


def test_windows_stay_small() -> None:
    clock = VirtualClock()
    limiter = limiter_of(clock, ClientSettings("ann", tokens_per_minute=1 << 40))
    for _ in range(20_000):
        clock.advance(0.01)
        with limiter.enter("ann") as grant:
            grant.reserve(1, 1, 1)
            grant.began(0)
    scope = limiter._scopes["client", "ann"]
    assert len(scope.tokens._slots) <= WINDOW / SLOT + 1
    assert 5900 <= scope.tokens.total <= 6100
