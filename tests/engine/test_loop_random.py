"""Random lives of an engine: whatever comes, everybody gets his own tokens and nothing is lost."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.harness import BLOCK, GLOBAL, Sim, costs
from kvcache.kv_model import contents
from tenfold.core.messages import Abort
from tenfold.core.types import KVGroup
from tenfold.engine.sequence import Sequence
from tenfold.engine.simulated import CountingPages, SimulatedRunner

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


def _rambling(seq: Sequence, ahead: int) -> int:
    """Goes round in a small circle and leaves it now and then, so that some guesses are right."""
    place, first = seq.tokens.length + ahead, int(seq.tokens.view(0, 1)[0])
    return (place // 5 + 50) if (place * 7 + first) % 11 < 2 else place % 3 + 1


@cache
def _rambled(prompt: tuple[int, ...], output: int) -> list[int]:
    sim = Sim()
    sim.add(executor=SimulatedRunner(sim.clock, costs(), _rambling))
    sim.ask("r", list(prompt), output)
    sim.run()
    return sim.heard.tokens["r"]


def _nothing_guessed_stays(sim: Sim, texts: dict[str, list[int]]) -> None:
    """Between steps: no blocks for drafts, and nothing cached but what sequences really say."""
    for instance in sim.engine.instances.values():
        batcher = instance.batcher  # type: ignore[attr-defined]
        for seq in batcher.running:
            assert seq.computed < seq.tokens.length
            for group in range(len(batcher.cache.groups)):
                blocks = len(batcher.cache.table(seq.kv, group))
                assert not seq.decoding or blocks * BLOCK < seq.tokens.length + BLOCK
        for _, prefix in contents(batcher.cache.tree):
            assert any(tuple(text[: len(prefix)]) == prefix for text in texts.values())


@settings(max_examples=60, deadline=None)
@given(
    requests,
    st.sampled_from(["ngram", "auto"]),
    st.integers(1, 9),
    st.integers(8, 40),
    st.sampled_from([(GLOBAL,), (GLOBAL, SLIDING)]),
    st.integers(1, 8),
    st.sampled_from([4, 16, 2048]),
    st.booleans(),
)
def test_random_lives_with_guesses(
    asked: list[tuple[int, int, int, int, int, int | None, bool]],
    speculation: str,
    draft_tokens: int,
    page_count: int,
    groups: tuple[KVGroup, ...],
    max_running: int,
    max_step_tokens: int,
    prefix_cache: bool,
) -> None:
    most = max(max_step_tokens, max_running)
    sim = Sim(
        speculation=speculation,
        draft_tokens=draft_tokens,
        max_running=max_running,
        max_step_tokens=most,
        prefix_cache=prefix_cache,
    )
    pages = CountingPages(page_count)
    for name in ("m", "n"):
        runner = SimulatedRunner(sim.clock, costs(), _rambling)
        sim.add(name, pages, blocks=4 * page_count, groups=groups, executor=runner)
    prompts: dict[str, tuple[tuple[int, ...], int]] = {}
    texts: dict[str, list[int]] = {}
    doomed: list[tuple[int, str]] = []
    step = 0

    def go() -> bool:
        busy = sim.engine.step()
        assert sim.engine.check() == []
        _nothing_guessed_stays(sim, texts)
        return busy

    for number, (prefix, length, output, priority, pause, abort, other) in enumerate(asked):
        name = f"r{number}"
        prompt = tuple((prefix + i) % 7 + 1 for i in range(length))
        prompts[name] = (prompt, 2 * output)
        texts[name] = [*prompt, *_rambled(*prompts[name])]
        sim.ask(name, list(prompt), 2 * output, priority=priority, model="n" if other else "m")
        if abort is not None:
            doomed.append((step + abort, name))
        for _ in range(pause):
            step += 1
            go()
            for when, victim in doomed:
                if when <= step:
                    sim.engine.handle(Abort(victim))
    for _, victim in doomed:
        sim.engine.handle(Abort(victim))
    while go():
        pass
    aborted = {victim for _, victim in doomed}
    for name, (prompt, output) in prompts.items():
        if name in aborted:
            assert (
                _rambled(prompt, output)[: len(sim.heard.tokens[name])] == (sim.heard.tokens[name])
            )
            continue
        assert name not in sim.heard.failed, sim.heard.failed[name]
        assert sim.heard.tokens[name] == _rambled(prompt, output)
        assert sim.heard.finished[name] == "length"
    for recorder in sim.recorders.values():
        assert all(sum(count for *_, count in plan) <= most for plan in recorder.plans)
    for instance in sim.engine.instances.values():
        stats = instance.stats()
        assert stats.kv_blocks_used == 0 and stats.accepted_tokens <= stats.drafted_tokens
        instance.close()
    assert pages.used == 0
