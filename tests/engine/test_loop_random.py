"""Random lives of an engine: whatever comes, everybody gets his own tokens and nothing is lost."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.harness import GLOBAL, Sim
from tenfold.core.messages import Abort
from tenfold.core.types import KVGroup
from tenfold.engine.simulated import CountingPages

SLIDING = KVGroup("sliding", (2,), 1, 32, window=8)

requests = st.lists(
    st.tuples(
        st.integers(0, 3),  # which prefix
        st.integers(1, 30),  # prompt length
        st.integers(1, 20),  # output length
        st.integers(0, 2),  # priority
        st.integers(0, 6),  # steps to run before the next arrives
        st.sampled_from([None, None, None, 1, 4]),  # steps until it is aborted
        st.booleans(),  # which model
    ),
    min_size=1,
    max_size=12,
)


@cache
def _alone(prompt: tuple[int, ...], output: int) -> list[int]:
    sim = Sim()
    sim.add()
    sim.ask("r", list(prompt), output)
    sim.run()
    return sim.heard.tokens["r"]


@settings(max_examples=150, deadline=None)
@given(
    requests,
    st.sampled_from(["fcfs", "lpm"]),
    st.integers(8, 40),
    st.sampled_from([(GLOBAL,), (GLOBAL, SLIDING)]),
    st.integers(1, 8),
    st.sampled_from([4, 16, 2048]),
    st.booleans(),
)
def test_random_lives(
    asked: list[tuple[int, int, int, int, int, int | None, bool]],
    policy: str,
    page_count: int,
    groups: tuple[KVGroup, ...],
    max_running: int,
    max_step_tokens: int,
    prefix_cache: bool,
) -> None:
    sim = Sim(
        policy=policy,
        max_running=max_running,
        max_step_tokens=max(max_step_tokens, max_running),
        prefix_cache=prefix_cache,
    )
    pages = CountingPages(page_count)
    for name in ("m", "n"):
        sim.add(name, pages, blocks=4 * page_count, groups=groups)
    prompts: dict[str, tuple[tuple[int, ...], int]] = {}
    doomed: list[tuple[int, str]] = []
    step = 0
    for number, (prefix, length, output, priority, pause, abort, other) in enumerate(asked):
        name = f"r{number}"
        prompt = tuple((prefix + i) % 7 + 1 for i in range(length))
        prompts[name] = (prompt, output)
        sim.ask(name, list(prompt), output, priority=priority, model="n" if other else "m")
        if abort is not None:
            doomed.append((step + abort, name))
        for _ in range(pause):
            step += 1
            sim.engine.step()
            for when, victim in doomed:
                if when <= step:
                    sim.engine.handle(Abort(victim))
    for _, victim in doomed:
        sim.engine.handle(Abort(victim))
    sim.run()
    aborted = {victim for _, victim in doomed}
    for name, (prompt, output) in prompts.items():
        if name in aborted:
            continue
        assert name not in sim.heard.failed, sim.heard.failed[name]
        assert sim.heard.tokens[name] == _alone(prompt, output)
        assert sim.heard.finished[name] == "length"
    for instance in sim.engine.instances.values():
        assert instance.stats().kv_blocks_used == 0
        instance.close()
    assert pages.used == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(1, 90), st.booleans()), min_size=2, max_size=7
    ),
    st.integers(0, 12),
    st.booleans(),
)
def test_models_short_of_pages_never_wait_for_each_other(
    asked: list[tuple[int, int, bool]], slack: int, prefix_cache: bool
) -> None:
    """Each request fits the device alone, not all together, and all of them end."""
    longest = max(prompt + output for prompt, output, _ in asked)
    pages = CountingPages(-(-longest // 16) + 1 + slack)
    sim = Sim(prefix_cache=prefix_cache)
    for name in ("m", "n"):
        sim.add(name, pages, blocks=4 * pages.capacity)
    for number, (prompt, output, other) in enumerate(asked):
        sim.ask(f"r{number}", [number + 1] * prompt, output, model="n" if other else "m")
    sim.run(20_000)
    assert not sim.heard.failed
    for number, (prompt, output, _) in enumerate(asked):
        assert sim.heard.tokens[f"r{number}"] == _alone((number + 1,) * prompt, output)
