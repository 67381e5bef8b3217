"""The engine's loop under a virtual clock: who runs, who waits, who gives way, what fails."""

from __future__ import annotations

from typing import Any

import pytest

from engine.harness import BLOCK, GLOBAL, Sim
from tenfold.core.messages import Abort, AskStats, DeviceStats, Embed, ModelDown, UnloadModel
from tenfold.core.types import KVGroup
from tenfold.engine.sequence import Choice, StepPlan
from tenfold.engine.simulated import CountedWeights, CountingPages, ModelPages, SimulatedRunner

SLIDING = KVGroup("sliding", (2,), 1, 32, window=8)


def _alone(prompt: list[int], output: int = 8) -> list[int]:
    sim = Sim()
    sim.add()
    sim.ask("r", prompt, output)
    sim.run()
    return sim.heard.tokens["r"]


def test_everybody_gets_what_he_would_get_alone() -> None:
    sim = Sim(max_step_tokens=16)
    sim.add()
    prompts = {f"r{i}": [i + 1] * (3 + 5 * i) for i in range(8)}
    for name, prompt in prompts.items():
        sim.ask(name, prompt)
    sim.run()
    assert {n: sim.heard.tokens[n] for n in prompts} == {n: _alone(p) for n, p in prompts.items()}
    assert set(sim.heard.finished.values()) == {"length"}


def test_sequences_are_batched_not_queued_one_by_one() -> None:
    sim = Sim()
    sim.add()
    for i in range(8):
        sim.ask(f"r{i}", [i + 1] * 5, output=10)
    assert sim.run() < 20


def test_a_long_prompt_is_chunked_while_others_decode() -> None:
    sim = Sim(itl_target=0.1)
    sim.add(blocks=200)
    sim.ask("short", [1] * 4, output=40)
    for _ in range(3):
        sim.engine.step()
    sim.ask("long", [2] * 400, output=1)
    sim.run()
    mixed = [plan for plan in sim.recorders["m"].plans if len(plan) == 2]
    assert mixed and all(count <= 100 for plan in mixed for _, _, count in plan)
    covered = [(s, c) for p in sim.recorders["m"].plans for name, s, c in p if name == "long"]
    assert [s for s, _ in covered] == [sum(c for _, c in covered[:i]) for i in range(len(covered))]
    assert sum(c for _, c in covered) == 400


def test_a_prompt_alone_takes_longer_steps() -> None:
    """10 ms and a millisecond a token: a target of 0.1 s holds 89 tokens, four times that 389."""
    sim = Sim(itl_target=0.1)
    sim.add("m", blocks=400)
    sim.ask("long", list(range(600)), output=3)
    sim.run()
    counts = [count for plan in sim.recorders["m"].plans for _, _, count in plan]
    assert 300 < counts[0] < 400 and sum(counts[:2]) == 600
    both = Sim(itl_target=0.1)
    for name in ("m", "n"):
        both.add(name, blocks=400)
        both.ask(name, list(range(600)), output=3, model=name)
    both.run()
    counts = [count for plan in both.recorders["m"].plans for _, _, count in plan]
    assert counts[0] < 50  # another model's sequences may be decoding: its half of the target


def test_prefill_keeps_its_share_when_decoding_alone_misses_the_target() -> None:
    sim = Sim(itl_target=0.001)
    sim.add(blocks=200)
    for i in range(4):
        sim.ask(f"d{i}", [i + 1] * 4, output=200)
    for _ in range(5):
        sim.engine.step()
    sim.ask("p", [9] * 100, output=1)
    for _ in range(100):
        sim.engine.step()
    assert "p" in sim.heard.finished
    chunks = [
        count
        for plan in sim.recorders["m"].plans
        for name, start, count in plan
        if name == "p" and start + count < 100
    ]
    # Decoding four takes 14 ms and a prompt token 1 ms: 14 / 3 ms are a quarter of the step.
    assert len(chunks) > 5 and all(count == 4 for count in chunks[1:])


def test_a_shared_prefix_is_computed_once() -> None:
    sim = Sim()
    batcher = sim.add()
    prefix = list(range(40))
    sim.ask("first", [*prefix, 50])
    sim.run()
    sim.ask("second", [*prefix, 60, 61])
    sim.run()
    assert sim.heard.started["second"].cached_tokens == 40
    assert sim.heard.tokens["second"] == _alone([*prefix, 60, 61])
    assert batcher.cache.stats().used == 0


def test_namespaces_never_share() -> None:
    sim = Sim()
    sim.add()
    sim.ask("a", list(range(40)), namespace="one")
    sim.run()
    sim.ask("b", list(range(40)), namespace="two")
    sim.run()
    assert sim.heard.started["b"].cached_tokens == 0


def test_generated_tokens_are_cached_for_the_next_turn() -> None:
    sim = Sim()
    sim.add()
    sim.ask("turn1", [1, 2, 3, 4], output=9)
    sim.run()
    history = [1, 2, 3, 4, *sim.heard.tokens["turn1"]]
    sim.ask("turn2", [*history, 70])
    sim.run()
    assert sim.heard.started["turn2"].cached_tokens >= 12


@pytest.mark.parametrize("groups", [(GLOBAL,), (GLOBAL, SLIDING)])
def test_preemption_changes_no_token_and_loses_no_block(groups: tuple[KVGroup, ...]) -> None:
    sim = Sim(max_running=8)
    batcher = sim.add(pages=CountingPages(10 * len(groups)), blocks=40, groups=groups)
    prompts = {f"r{i}": [i + 1] * 12 for i in range(6)}
    for name, prompt in prompts.items():
        sim.ask(name, prompt, output=24)
    sim.run()
    assert batcher.preemptions > 0
    assert {n: sim.heard.tokens[n] for n in prompts} == {
        n: _alone(p, 24) for n, p in prompts.items()
    }
    assert not sim.heard.failed


def test_the_less_urgent_gives_way_and_waits() -> None:
    sim = Sim(max_running=1)
    sim.add()
    sim.ask("late", [1] * 4, priority=5)
    sim.ask("soon", [2] * 4, priority=0)
    sim.run()
    assert sim.heard.order == ["soon", "late"]


def test_a_prompt_that_can_never_fit_is_refused_with_both_numbers() -> None:
    sim = Sim()
    sim.add(context=100, blocks=64)
    sim.ask("r", [1] * 100)
    failure = sim.heard.failed["r"]
    assert failure.code == "context_length_exceeded"
    assert "100 tokens" in failure.message and "holds 100" in failure.message
    sim = Sim()
    sim.add(context=1000, blocks=8)
    sim.ask("r", [1] * 200)
    assert sim.heard.failed["r"].code == "out_of_memory"
    assert not sim.engine.has_work


def test_answers_end_at_the_context() -> None:
    sim = Sim()
    sim.add(context=20)
    sim.ask("r", [1] * 15, output=50)
    sim.run()
    assert len(sim.heard.tokens["r"]) == 5 and sim.heard.finished["r"] == "length"


def test_eos_ends_a_request_and_ignore_eos_does_not() -> None:
    class Ender(SimulatedRunner):
        def execute(self, plan: StepPlan) -> list[Choice]:
            super().execute(plan)
            return [Choice([99]) for piece in plan.slices if piece.samples]

    sim = Sim()
    sim.add("m", executor=Ender(sim.clock, __import__("engine.harness").harness.costs()))
    sim.ask("ignores", [1, 2], output=3)
    sim.run()
    assert sim.heard.finished["ignores"] == "length"
    sim.engine.instances["m"].facts.eos_ids = [99]
    from tenfold.core.messages import Generate
    from tenfold.core.types import EngineRequest, SamplingParams

    request = EngineRequest("stops", "m", "c", [1, 2], SamplingParams(max_tokens=9), 0.0)
    sim.engine.handle(Generate(request))
    sim.run()
    assert sim.heard.finished["stops"] == "stop" and sim.heard.tokens["stops"] == [99]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_abort_frees_everything_at_any_moment(after: int) -> None:
    sim = Sim(prefix_cache=False)
    batcher = sim.add()
    sim.ask("r", [1] * 30, output=50)
    for _ in range(after):
        sim.engine.step()
    sim.engine.handle(Abort("r"))
    sim.engine.handle(Abort("r"))
    assert batcher.cache.stats().used == 0 and not sim.engine.has_work
    assert sim.engine.check() == []


def test_deadlines_end_waiting_and_running_requests() -> None:
    sim = Sim(max_running=1)
    sim.add()
    sim.ask("runs", [1] * 4, output=1000, deadline=0.5)
    sim.ask("waits", [2] * 4, deadline=0.3)
    sim.run()
    assert {f.code for f in sim.heard.failed.values()} == {"deadline_exceeded"}
    assert sim.heard.tokens["runs"] and not sim.heard.tokens["waits"]


def test_a_broken_step_fails_its_requests_and_the_engine_goes_on() -> None:
    class Breaks(SimulatedRunner):
        broken = False

        def execute(self, plan: StepPlan) -> list[Choice]:
            if self.broken:
                self.broken = False
                raise MemoryError("no scratch")
            return super().execute(plan)

    sim = Sim()
    from engine.harness import costs

    runner = Breaks(sim.clock, costs())
    sim.add(executor=runner)
    sim.ask("a", [1] * 4)
    sim.engine.step()
    runner.broken = True
    sim.engine.step()
    assert "no scratch" in sim.heard.failed["a"].message
    sim.ask("b", [2] * 4)
    sim.run()
    assert sim.heard.finished["b"] == "length"


def test_two_models_share_time_and_pages() -> None:
    sim = Sim()
    pages = CountingPages(24)
    sim.add("m", pages, blocks=90)
    sim.add("n", pages, blocks=90)
    for i in range(4):
        sim.ask(f"m{i}", [i + 1] * 8, output=30)
        sim.ask(f"n{i}", [i + 1] * 8, output=30, model="n")
    sim.run()
    assert len(sim.heard.finished) == 8
    names = [e.model for e in sim.heard.events if hasattr(e, "model")]
    runs = "".join(names)
    assert "m" * 6 not in runs and "n" * 6 not in runs


def test_an_idle_models_cached_prefixes_make_room() -> None:
    sim = Sim()
    pages = CountingPages(5)
    idle = sim.add("n", pages, blocks=48)
    sim.add("m", pages, blocks=48)
    sim.ask("warm", list(range(40)), model="n", output=2)
    sim.run()
    assert idle.cache.stats().cached > 0
    sim.ask("big", [7] * 44, output=2)
    sim.run()
    assert sim.heard.finished["big"] == "length"
    assert idle.cache.stats().cached < 10


def test_models_that_hold_all_pages_between_them_do_not_deadlock() -> None:
    sim = Sim()
    pages = CountingPages(10)
    sim.add("m", pages, blocks=40)
    sim.add("n", pages, blocks=40)
    for i in range(3):
        sim.ask(f"m{i}", [i + 1] * 12, output=12)
        sim.ask(f"n{i}", [i + 1] * 12, output=12, model="n")
    sim.run()
    assert len(sim.heard.finished) == 6 and not sim.heard.failed


def test_unloading_fails_what_is_left_and_names_the_model() -> None:
    sim = Sim()
    sim.add()
    sim.ask("r", [1] * 4, output=100)
    sim.engine.step()
    sim.engine.handle(UnloadModel("m"))
    assert sim.heard.failed["r"].code == "unavailable" and "m" in sim.heard.failed["r"].message
    assert any(isinstance(e, ModelDown) for e in sim.heard.events)
    sim.ask("again", [1])
    assert sim.heard.failed["again"].code == "model_not_found"


def test_a_generator_embeds_nothing() -> None:
    sim = Sim()
    sim.add()
    sim.engine.handle(Embed("e", "m", [[1]]))
    assert sim.heard.failed["e"].code == "invalid_request_error"


def test_stats_count_what_happened() -> None:
    sim = Sim()
    sim.add()
    sim.ask("a", list(range(20)), output=4)
    sim.run()
    sim.ask("b", list(range(20)), output=4)
    sim.run()
    sim.engine.handle(AskStats("s"))
    stats = sim.heard.events[-1]
    assert isinstance(stats, DeviceStats) and stats.integrity == []
    model = stats.models[0]
    assert model.generated_tokens == 8 and model.cached_tokens == 4 * BLOCK
    assert model.prompt_tokens == 20 + 20 - 4 * BLOCK
    assert (model.running, model.waiting) == (0, 0)


@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_the_same_requests_give_the_same_decisions(policy: str) -> None:
    def decisions() -> Any:
        sim = Sim(policy=policy, max_running=3)
        sim.add(pages=CountingPages(14), blocks=60)
        for i in range(12):
            sim.ask(f"r{i}", [i % 3] * (8 + i), output=6)
        sim.run()
        return sim.recorders["m"].plans, sim.heard.order

    assert decisions() == decisions()


def test_lpm_prefers_the_longest_cached_prefix() -> None:
    sim = Sim(policy="lpm", max_running=1)
    sim.add()
    sim.ask("seed", list(range(32)), output=1)
    sim.run()
    sim.heard.order.clear()
    sim.ask("cold", [90] * 32, output=1)
    sim.ask("warm", [*range(32), 5], output=1)
    sim.run()
    assert sim.heard.order == ["warm", "cold"]


def test_an_embedding_request_is_cut_into_steps() -> None:
    import torch

    from tenfold.core.messages import Embedded
    from tenfold.core.types import ModelFacts
    from tenfold.engine.instance import EmbedInstance

    sim = Sim()
    asked: list[int] = []

    def embed(texts: list[list[int]]) -> torch.Tensor:
        asked.append(len(texts))
        sim.clock.advance(0.01 * sum(len(t) for t in texts))
        return torch.ones(len(texts), 2)

    facts = ModelFacts("e", "embed", "bert", 64, 100, 2, 0, 0, 0)
    weights = CountedWeights(ModelPages(CountingPages(1)), 0)
    encoder = EmbedInstance(facts, embed, sim.clock, lambda: None, lambda: (0, 0), weights, 0.2)
    sim.engine.attach("e", encoder)
    sim.add()
    sim.engine.handle(Embed("x", "e", [[1] * 10] * 40))
    sim.ask("r", [1] * 4, output=30)
    sim.run()
    assert sum(asked) == 40 and max(asked[3:]) <= 3
    done = [e for e in sim.heard.events if isinstance(e, Embedded)]
    assert len(done) == 1 and len(done[0].vectors) == 40 and done[0].prompt_tokens == 400


def test_settings_out_of_range_are_refused_by_name() -> None:
    from tenfold.core.messages import Generate
    from tenfold.core.types import EngineRequest, SamplingParams

    sim = Sim()
    sim.add()
    for field, value in (("min_p", 1.5), ("max_tokens", 0), ("temperature", float("nan"))):
        params = SamplingParams(**{field: value})  # type: ignore[arg-type]
        sim.engine.handle(Generate(EngineRequest(field, "m", "c", [1], params, 0.0)))
        assert sim.heard.failed[field].param == field


def test_a_load_that_is_called_off_leaves_nothing() -> None:
    import threading

    from tenfold.core.messages import LoadModel

    sim = Sim()
    batcher = sim.add("built")
    built = sim.engine.instances.pop("built")
    go, closed = threading.Event(), []
    built.close = lambda: closed.append(1) or []  # type: ignore[method-assign, func-returns-value]

    def load(*_: object) -> object:
        go.wait(10)
        return built

    sim.engine.device.load = load  # type: ignore[method-assign, assignment]
    sim.engine.handle(LoadModel("late", "/nowhere"))
    sim.engine.handle(LoadModel("late", "/nowhere"))
    sim.engine.handle(UnloadModel("late"))
    go.set()
    while sim.engine.loading:
        sim.engine.step()
    down = [e for e in sim.heard.events if isinstance(e, ModelDown)]
    assert [d.name for d in down] == ["late"] and "unloaded" in down[0].message
    assert closed == [1] and "late" not in sim.engine.instances and not batcher.has_work
