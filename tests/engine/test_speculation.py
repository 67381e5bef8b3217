"""Speculation changes how many steps an answer takes, and nothing else about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.harness import BLOCK, Sim, costs
from engine.test_exact import Real, with_scratch
from models.tiny import make_tiny
from tenfold.core.errors import ConfigError
from tenfold.core.messages import Generate, StepDone
from tenfold.core.types import EngineRequest, SamplingParams
from tenfold.costs.step import FixedStepModel, StepCosts
from tenfold.engine.sequence import Choice, Sequence, StepPlan
from tenfold.engine.simulated import CountingPages, SimulatedRunner
from tenfold.engine.speculator import PROBE_STEPS, Speculator, speculator
from tenfold.kvcache.cache import SequenceKV
from tenfold.kvcache.hashing import IntArray


# --- over made-up tokens --------------------------------------------------------------------------
def _round(seq: Sequence, ahead: int) -> int:
    """1 2 3 1 2 3 …, whatever the prompt."""
    return (seq.tokens.length + ahead) % 3 + 1


LOOP = [1, 2, 3, 1, 2, 3, 1]  # position p holds p % 3 + 1


def _looping(**settings: object) -> Sim:
    sim = Sim(speculation="ngram", **settings)
    sim.add(executor=SimulatedRunner(sim.clock, costs(), _round))
    return sim


def _outputs(sim: Sim, name: str) -> list[list[int]]:
    steps = [event for event in sim.heard.events if isinstance(event, StepDone)]
    return [o.token_ids for step in steps for o in step.outputs if o.request_id == name]


def test_a_right_guess_saves_steps_and_its_tokens_leave_together() -> None:
    sim = _looping()
    sim.ask("r", LOOP, output=19)
    sim.run()
    # The prompt's step chooses one token; then each step verifies eight and chooses one more.
    assert [len(out) for out in _outputs(sim, "r")] == [1, 9, 9]
    assert sim.recorders["m"].plans == [[("r", 0, 7)], [("r", 7, 9)], [("r", 16, 9)]]
    stats = sim.engine.instances["m"].stats()
    assert (stats.generated_tokens, stats.drafted_tokens, stats.accepted_tokens) == (19, 16, 16)


def test_a_wrong_guess_costs_its_blocks_only_for_the_step() -> None:
    def novel(seq: Sequence, ahead: int) -> int:
        """Every other token is a 1, with something new behind it: every guess is wrong."""
        place = seq.tokens.length + ahead
        return 100 + place if place % 2 else 1

    sim = Sim(speculation="ngram", draft_match=1, prefix_cache=False)
    batcher = sim.add(executor=SimulatedRunner(sim.clock, costs(), novel))
    sim.ask("r", [1, 7, 1, 8, 1, 9], output=12)
    used = []
    while sim.engine.step():
        used += [(s.tokens.length, len(batcher.cache.table(s.kv, 0))) for s in batcher.running]
    assert all(blocks * BLOCK < length + BLOCK for length, blocks in used)
    stats = sim.engine.instances["m"].stats()
    assert (stats.drafted_tokens, stats.accepted_tokens) == (4 * 8 - 4, 0)
    assert len(sim.heard.tokens["r"]) == 12


@pytest.mark.parametrize("output", range(1, 14))
def test_a_token_limit_inside_a_guess_ends_the_answer_there(output: int) -> None:
    sim = _looping()
    sim.ask("r", LOOP, output)
    sim.run()
    assert sim.heard.tokens["r"] == [(7 + i) % 3 + 1 for i in range(output)]
    assert sim.heard.finished["r"] == "length"


def test_the_context_ends_an_answer_inside_a_guess() -> None:
    sim = Sim(speculation="ngram")
    sim.add(context=20, executor=SimulatedRunner(sim.clock, costs(), _round))
    sim.ask("r", LOOP, output=50)
    sim.run()
    assert len(sim.heard.tokens["r"]) == 13 and sim.heard.finished["r"] == "length"
    assert max(start + count for plan in sim.recorders["m"].plans for _, start, count in plan) <= 20


def test_a_stop_token_inside_a_right_guess_ends_the_answer_there() -> None:
    sim = _looping()
    sampling = SamplingParams(max_tokens=50, min_tokens=4, stop_token_ids=(3,))
    sim.engine.handle(Generate(EngineRequest("r", "m", "c", LOOP, sampling, 0.0)))
    sim.run()
    assert sim.heard.tokens["r"] == [2, 3, 1, 2, 3] and sim.heard.finished["r"] == "stop"


def test_guesses_count_in_the_budget_of_a_step_and_leave_half_of_it_to_prompts() -> None:
    sim = _looping(max_step_tokens=12)
    for name in ("a", "b"):
        sim.ask(name, LOOP, output=60)
    for _ in range(4):
        sim.engine.step()
    sim.ask("long", [9] * 40, output=1)
    sim.run()
    plans = sim.recorders["m"].plans
    assert all(sum(count for *_, count in plan) <= 12 for plan in plans)
    beside = [plan for plan in plans if len(plan) == 3]
    assert all({n: c for n, _, c in plan}["long"] >= 5 for plan in beside[:-1]) and beside


def test_nobody_gives_way_to_a_guess() -> None:
    """Blocks for both answers and not one more: guesses get none, and nobody is preempted."""
    pages = CountingPages(4)  # 16 blocks of 4 tokens
    sim = Sim(speculation="ngram", prefix_cache=False)
    batcher = sim.add(pages=pages, executor=SimulatedRunner(sim.clock, costs(), _round))
    for name in ("a", "b"):
        sim.ask(name, LOOP, output=25)
    sim.run()
    assert batcher.preemptions == 0
    assert sim.heard.tokens["a"] == sim.heard.tokens["b"] == [(7 + i) % 3 + 1 for i in range(25)]


def test_every_token_of_a_step_has_its_block_when_guesses_are_refused_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half the memory that the answers need: what a step computes has a place all the same."""
    sim = Sim(speculation="ngram", prefix_cache=False)
    batcher = sim.add(pages=CountingPages(4), executor=SimulatedRunner(sim.clock, costs(), _round))
    cache, inner, refused = batcher.cache, sim.recorders["m"].inner, []
    reserve = cache.reserve

    def noting(kv: SequenceKV, upto: int) -> bool:
        given = reserve(kv, upto)
        if not given and any(s.kv is kv and s.tokens.length < upto for s in batcher.running):
            refused.append(upto)
        return given

    def execute(plan: StepPlan) -> list[Choice]:
        for piece in plan.slices:
            assert piece.seq.kv is not None
            room = len(cache.table(piece.seq.kv, 0)) * BLOCK
            assert piece.start + piece.count <= room, "a token without a place"
        return SimulatedRunner.execute(inner, plan)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "reserve", noting)
    monkeypatch.setattr(inner, "execute", execute)
    for name in ("a", "b", "c", "d"):
        sim.ask(name, LOOP, output=25)
    sim.run()
    assert refused and batcher.drafts is not None and batcher.drafts.accepted > 0
    for name in ("a", "b", "c", "d"):
        assert sim.heard.tokens[name] == [(7 + i) % 3 + 1 for i in range(25)]


def test_settings_that_make_no_sense_are_refused() -> None:
    for mode, tokens, match in (("fast", 8, 3), ("ngram", 0, 3), ("auto", 8, 0)):
        with pytest.raises(ConfigError, match=r"speculation|draft_tokens"):
            speculator(mode, tokens, match)  # type: ignore[arg-type]


# --- where it pays --------------------------------------------------------------------------------
def _auto(draft_token: float, next_token: object, *, streams: int = 1, output: int = 200) -> Sim:
    """The rule over a device on which a guessed token costs ``draft_token`` seconds and a step
    without any 20 ms."""
    sim = Sim(speculation="auto")
    batcher = sim.add(blocks=2000)
    device = FixedStepModel(StepCosts(0.01, 0.001, 0.01, 0, 0, draft_token))
    batcher.steps = device
    sim.recorders["m"].inner = SimulatedRunner(sim.clock, device, next_token)  # type: ignore[arg-type]
    for number in range(streams):
        sim.ask(f"r{number}", LOOP, output)
    sim.run()
    return sim


def _drafted(sim: Sim) -> int:
    return sim.engine.instances["m"].stats().drafted_tokens


def test_auto_drafts_where_guesses_are_right_and_cheap() -> None:
    sim = _auto(0.001, _round)
    assert len(sim.recorders["m"].plans) < 40
    assert sim.heard.tokens["r0"] == [(7 + i) % 3 + 1 for i in range(200)]


def test_auto_hardly_drafts_what_costs_more_than_it_brings() -> None:
    sim = _auto(0.05, _round)
    assert 0 < _drafted(sim) <= 8 * (200 // PROBE_STEPS + 1)


def test_auto_stops_when_guesses_are_wrong() -> None:
    def noise(seq: Sequence, ahead: int) -> int:
        """Two tokens that were there before, then one that was not expected behind them."""
        place = seq.tokens.length + ahead
        return place % 3 if place % 3 else 10 + place * 7919 % 1009

    sim = _auto(0.004, noise, output=300)
    assert len(sim.heard.tokens["r0"]) == 300
    assert _drafted(sim) < 60
    assert _drafted(_auto(0.004, _round, output=300)) > 200


def test_auto_keeps_a_step_within_the_wished_time_between_tokens() -> None:
    sim = Sim(speculation="auto", itl_target=0.025)
    batcher = sim.add(blocks=2000)
    batcher.steps = FixedStepModel(StepCosts(0.01, 0.001, 0.01, 0, 0, 0.002))
    sim.recorders["m"].inner = SimulatedRunner(sim.clock, batcher.steps, _round)
    sim.ask("r", LOOP, 50)
    sim.run()
    assert max(count for plan in sim.recorders["m"].plans[1:] for *_, count in plan) == 3


# --- over a real (tiny) model ---------------------------------------------------------------------
def _prompts() -> dict[str, list[int]]:
    random = np.random.default_rng(3)
    words = [random.integers(3, 300, 6).tolist() for _ in range(3)]
    prompts = {f"loop{i}": (words[i] * 6)[: 20 + 7 * i] for i in range(3)}
    prompts["mixed"] = [token for i in (0, 1, 0, 2, 1, 0) for token in words[i]]
    prompts["own"] = random.integers(3, 300, 50).tolist()
    return prompts


KNOBS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 11, "top_p": 0.9},
    "near": {"temperature": 0.3, "seed": 5, "top_k": 20, "logprobs": 3},
    "penalised": {"frequency_penalty": 0.4, "presence_penalty": 0.1, "repetition_penalty": 1.05},
    "reluctant": {"min_tokens": 9, "stop_token_ids": tuple(range(3, 150)), "logprobs": 0},
    "biased": {"logit_bias": {7: 30.0}, "temperature": 0.8, "seed": 1},
}


class Speaking(Real):
    """Hears log-probabilities and endings too, and asks with any settings."""

    def _hear(self, event: object) -> None:
        super()._hear(event)
        if isinstance(event, StepDone):
            for out in event.outputs:
                said = self.__dict__.setdefault("said", {}).setdefault(out.request_id, [])
                said += [(one.token_id, one.logprob, one.top) for one in out.logprobs or []]
                said += [out.finish] if out.finish else []

    def speak(self, prompts: dict[str, list[int]], output: int) -> None:
        for prompt_name, prompt in prompts.items():
            for name, knobs in KNOBS.items():
                sampling = replace(SamplingParams(max_tokens=output, temperature=0.0), **knobs)  # type: ignore[arg-type]
                request = EngineRequest(f"{prompt_name}-{name}", "m", "c", prompt, sampling, 0.0)
                self.engine.handle(Generate(request))
        self.run()


def _speak(path: Path, output: int = 40, **settings: object) -> Speaking:
    real = Speaking(path, **settings)
    real.speak(_prompts(), output)
    real.close()
    return real


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "qwen2_moe"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(request.param, tmp_path_factory.mktemp("speculation") / request.param)


@pytest.fixture(scope="module")
def plainly(tiny: Path) -> Speaking:
    return _speak(tiny, prefix_cache=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"speculation": "ngram"},
        {"speculation": "auto", "draft_tokens": 4},
        {"speculation": "ngram", "draft_match": 1, "block_tokens": 5, "max_step_tokens": 40},
    ],
    ids=["ngram", "auto", "one-token matches, short blocks"],
)
def test_any_settings_give_the_same_output(
    tiny: Path, plainly: Speaking, settings: dict[str, object]
) -> None:
    real = _speak(tiny, **settings)
    assert real.tokens == plainly.tokens
    assert real.said == plainly.said  # type: ignore[attr-defined]
    drafts = real.instance.batcher.drafts
    assert drafts is not None and 0 < drafts.accepted < drafts.drafted
    assert real.instance.totals.generated_tokens == sum(map(len, real.tokens.values()))


def test_preemption_among_guesses_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tiny = make_tiny("llama", tmp_path_factory.mktemp("tight") / "m")
    roomy = _speak(tiny, output=60, prefix_cache=False)
    blocks = -(-(50 + 60) // 16)
    preemptions = accepted = 0
    for slack in (6, 3, 1):
        pages = sum(
            -(-blocks * group.block_bytes(16) // (16 << 10)) + 1
            for group in roomy.instance.batcher.cache.groups
        )
        memory = with_scratch(roomy, pages + slack)
        tight = _speak(tiny, output=60, memory_bytes=memory, speculation="ngram")
        assert tight.tokens == roomy.tokens and tight.said == roomy.said  # type: ignore[attr-defined]
        preemptions += tight.instance.batcher.preemptions
        assert tight.instance.batcher.drafts is not None
        accepted += tight.instance.batcher.drafts.accepted
    assert preemptions > 0 and accepted > 0


def test_what_guesses_left_in_the_cache_is_right(tiny: Path, plainly: Speaking) -> None:
    """The answers again as prompts: their prefixes come from blocks that drafts filled."""
    answers = {
        name: [*prompt, *plainly.tokens[f"{name}-greedy"]] for name, prompt in _prompts().items()
    }
    fresh = Speaking(tiny, prefix_cache=False)
    fresh.speak(answers, 8)
    fresh.close()
    real = Speaking(tiny, speculation="ngram")
    real.speak(_prompts(), 40)
    for kept in (real.tokens, real.said):  # type: ignore[attr-defined]
        kept.clear()
    real.speak(answers, 8)
    real.close()
    assert max(real.cached.values()) > 32
    assert real.tokens == fresh.tokens and real.said == fresh.said  # type: ignore[attr-defined]


# --- the distribution -----------------------------------------------------------------------------
class Fixed:
    """Guesses the same tokens whatever the sequence."""

    def __init__(self, guess: list[int]) -> None:
        self.guess = guess

    def propose(self, tokens: IntArray, most: int) -> list[int]:
        return self.guess[:most]


def _counts(path: Path, seeds: range, guess: list[int]) -> dict[tuple[int, ...], int]:
    """How often each continuation of three tokens is sampled, over so many seeds."""
    real = Real(path, max_running=256)
    batcher = real.instance.batcher
    if guess:
        batcher.drafts = Speculator(lambda: Fixed(guess), len(guess), always=True)
    for seed in seeds:
        sampling = SamplingParams(max_tokens=3, top_k=3, seed=seed, ignore_eos=True)
        real.engine.handle(Generate(EngineRequest(str(seed), "m", "c", [5, 6, 7], sampling, 0.0)))
    real.run()
    if guess:
        stats = real.instance.stats()
        assert len(seeds) // 20 < stats.accepted_tokens < 0.9 * stats.drafted_tokens
    found: dict[tuple[int, ...], int] = {}
    for tokens in real.tokens.values():
        found[tuple(tokens)] = found.get(tuple(tokens), 0) + 1
    real.close()
    return found


def _chi_square(a: dict[tuple[int, ...], int], b: dict[tuple[int, ...], int]) -> tuple[float, int]:
    """The two-sample statistic over cells of ten or more, the rest pooled; degrees of freedom."""
    cells = [(a.get(key, 0), b.get(key, 0)) for key in sorted({*a, *b})]
    kept = [cell for cell in cells if sum(cell) >= 10]
    rest = [cell for cell in cells if sum(cell) < 10]
    if rest:
        kept.append((sum(x for x, _ in rest), sum(y for _, y in rest)))
    x, y = np.array(kept, dtype=float).T
    ratio = np.sqrt(y.sum() / x.sum())
    return float(((x * ratio - y / ratio) ** 2 / (x + y)).sum()), len(kept) - 1


def test_the_sampled_distribution_is_that_of_no_speculation(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Chi-square over all three-token answers of 2 x 3000 different seeds."""
    path = make_tiny("llama", tmp_path_factory.mktemp("chi") / "m")
    plain = _counts(path, range(3000), [])
    first, second, third = max(plain, key=lambda key: plain[key])
    guessed = _counts(path, range(10_000, 13_000), [second, third])
    statistic, freedom = _chi_square(plain, guessed)
    assert freedom >= 8
    # The 99.9th percentile, after Wilson and Hilferty (1931).
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound, (plain, guessed)
    assert first in {key[0] for key in guessed}
