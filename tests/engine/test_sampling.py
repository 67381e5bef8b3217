"""The sampler against a plain float64 reference, against transformers, and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from engine.sampling_reference import Ambiguous, kept, reference
from tenfold.core.errors import InvalidRequest, TenfoldError
from tenfold.core.types import SamplingParams
from tenfold.engine.draw import uniform
from tenfold.engine.sampler_state import SamplerState
from tenfold.engine.sampling import LOGPROB_FLOOR, Sampled, Sampler

EOS = 1


def sample_one(row, params: SamplingParams, prompt=(), output=(), matcher=None) -> Sampled:
    state = SamplerState(params, list(prompt), len(row), [EOS], matcher, output)
    logits = torch.tensor(np.array([row]), dtype=torch.float32)
    (got,) = Sampler("tiny").sample(logits, [state])
    return got


def token_of(got: Sampled) -> int:
    assert got.error is None
    return got.token


VOCAB = 12
ids = st.integers(0, VOCAB - 1)
all_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.1]),
    top_k=st.sampled_from([0, -1, 1, 3, VOCAB, 100]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 2**40),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.6]),
    logit_bias=st.dictionaries(ids, st.floats(-5, 5, width=32), max_size=3),
    min_tokens=st.integers(0, 4),
    stop_token_ids=st.lists(ids, max_size=2).map(tuple),
    ignore_eos=st.booleans(),
)
tokens = st.lists(ids, max_size=6)


@given(
    st.lists(st.floats(-6, 6, width=32), min_size=VOCAB, max_size=VOCAB), all_params, tokens, tokens
)
@settings(max_examples=400, deadline=None)
def test_every_knob_agrees_with_the_reference(row, params, prompt, output):
    try:
        want = reference(row, params, prompt, output, EOS)
    except Ambiguous:
        reject()
    assert token_of(sample_one(row, params, prompt, output)) == want


# --- chance -------------------------------------------------------------------------------------
CHI_SQUARE_1_IN_100000 = {1: 19.6, 2: 23.1, 3: 26.0, 4: 28.5, 5: 30.9, 6: 33.2, 7: 35.3}
"""Upper critical values of the chi-square distribution, by degrees of freedom."""


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"top_k": 5, "top_p": 0.7},
    ],
    ids=str,
)
def test_tokens_are_drawn_with_their_probabilities(knobs):
    row = [0.0, 1.0, 0.3, -0.4, 0.8, -1.0, 0.1, 0.55]
    params = SamplingParams(**knobs)
    p = kept(np.array(row), params)
    draws, batch = 4000, 50
    logits = torch.tensor([row] * batch)
    states = [
        SamplerState(SamplingParams(seed=seed, **knobs), [], len(row), [EOS])
        for seed in range(batch)
    ]
    counts = np.zeros(len(row))
    for _ in range(draws // batch):
        for got in Sampler("tiny").sample(logits, states):
            counts[token_of(got)] += 1
    assert not counts[p == 0].any()
    allowed = p > 0
    chi = ((counts - draws * p) ** 2)[allowed] / (draws * p[allowed])
    assert chi.sum() < CHI_SQUARE_1_IN_100000[int(allowed.sum()) - 1]


def test_uniform_is_a_pure_function_and_uniform():
    values = [uniform(seed, position) for seed in range(40) for position in range(100)]
    assert values == [uniform(seed, position) for seed in range(40) for position in range(100)]
    assert len(set(values)) == len(values)
    counts, _ = np.histogram(values, bins=8, range=(0, 1))
    assert ((counts - 500) ** 2 / 500).sum() < CHI_SQUARE_1_IN_100000[7]
    assert 0 <= uniform(-5, 0) < 1 and 0 <= uniform(2**80, 2**40) < 1


# --- independence of the batch, of order, of preemption -------------------------------------------
def run(params: SamplingParams, steps: int, companions: int, slot: int) -> list[int]:
    """The tokens one sequence gets among others that come and go."""
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(steps, 300, generator=generator)
    noise = np.random.default_rng(companions)
    state = SamplerState(params, [3, 4], 300, [EOS])
    out = []
    for step in range(steps):
        others = [SamplerState(SamplingParams(), [], 300, [EOS]) for _ in range(companions)]
        logits = torch.from_numpy(noise.standard_normal((companions + 1, 300)).astype(np.float32))
        logits[slot] = table[step]
        states = [*others[:slot], state, *others[slot:]]
        out.append(token_of(Sampler("tiny").sample(logits, states)[slot]))
    return out


def test_a_row_does_not_depend_on_its_batch():
    params = SamplingParams(seed=11, top_p=0.9, frequency_penalty=0.2)
    alone = run(params, 20, companions=0, slot=0)
    assert run(params, 20, companions=3, slot=0) == alone
    assert run(params, 20, companions=9, slot=5) == alone


def test_a_restored_sequence_goes_on_as_the_first_one():
    table = torch.randn(20, 500, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(seed=99, frequency_penalty=0.5, repetition_penalty=1.2, min_tokens=15)
    whole = SamplerState(params, [5, 6], 500, [EOS])
    out = [token_of(Sampler("t").sample(table[i : i + 1], [whole])[0]) for i in range(20)]
    again = SamplerState(params, [5, 6], 500, [EOS], output=out[:9])
    assert again.position == 9
    rest = [token_of(Sampler("t").sample(table[i : i + 1], [again])[0]) for i in range(9, 20)]
    assert rest == out[9:]


def test_seeds():
    row = torch.zeros(1, 1000)

    def draw(seed: int | None) -> int:
        state = SamplerState(SamplingParams(seed=seed), [], 1000, [EOS])
        return token_of(Sampler("t").sample(row, [state])[0])

    assert draw(5) == draw(5)
    assert len({draw(seed) for seed in range(20)}) > 15
    assert len({draw(None) for _ in range(20)}) > 15


# --- greedy -------------------------------------------------------------------------------------
def test_greedy_takes_the_lowest_id_of_equals():
    row = [0.0, 2.0, -1.0, 2.0, 2.0]
    assert token_of(sample_one(row, SamplingParams(temperature=0))) == 1
    biased = SamplingParams(temperature=0, logit_bias={1: -1.0})
    assert token_of(sample_one(row, biased)) == 3
    assert token_of(sample_one([7.0] * 9, SamplingParams(temperature=1e-7))) == 0


def test_logits_are_not_changed():
    logits = torch.randn(1, 50)
    before = logits.clone()
    params = SamplingParams(repetition_penalty=2.0, logit_bias={3: 9.0}, min_tokens=3, logprobs=2)
    Sampler("t").sample(logits, [SamplerState(params, [1, 2], 50, [EOS])])
    assert torch.equal(logits, before)


# --- against other people's code ------------------------------------------------------------------
def test_repetition_penalty_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    row = torch.randn(1, 40, generator=torch.Generator().manual_seed(1))
    prompt, output = [3, 3, 7, 20], [8, 7, 39]
    state = SamplerState(SamplingParams(repetition_penalty=1.7), prompt, 40, [EOS], output=output)
    ours = row[0].numpy().copy()
    state.alter(ours)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), row.clone())
    np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("knobs", [{"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.1}], ids=str)
def test_each_cut_is_that_of_transformers(knobs, temperature):
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from tenfold.engine.draw import truncate

    row = torch.randn(1, 200, generator=torch.Generator().manual_seed(2)) * 2
    warpers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    ((name, value),) = knobs.items()
    theirs = warpers[name](value)(None, row / temperature)[0].softmax(-1).numpy()
    found = truncate(row[0].numpy(), temperature=temperature, **knobs)
    assert found.ids is not None
    assert found.ids.tolist() == np.flatnonzero(theirs).tolist()
    np.testing.assert_allclose(found.weights / found.weights.sum(), theirs[found.ids], rtol=1e-5)


def test_logprobs_are_those_of_the_raw_logits():
    row = torch.randn(1, 5000, generator=torch.Generator().manual_seed(4)) * 3
    params = SamplingParams(logprobs=6, temperature=0.4, top_p=0.5, logit_bias={9: 4.0}, seed=1)
    (got,) = Sampler("t").sample(row, [SamplerState(params, [], 5000, [EOS])])
    want = torch.log_softmax(row[0].double(), -1)
    best = torch.topk(want, 6)
    assert got.logprob is not None and got.logprob.token_id == got.token
    assert got.logprob.logprob == pytest.approx(float(want[got.token]), abs=1e-5)
    assert [id for id, _ in got.logprob.top] == best.indices.tolist()
    assert [p for _, p in got.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_of_equals_and_of_impossible_tokens():
    row = [1.0, 3.0, 3.0, -math.inf, 3.0]
    top = sample_one(row, SamplingParams(temperature=0, logprobs=5)).logprob
    assert top is not None
    assert [id for id, _ in top.top] == [1, 2, 4, 0, 3]
    assert top.top[-1][1] == LOGPROB_FLOOR
    none = sample_one(row, SamplingParams(temperature=0, logprobs=0)).logprob
    assert none is not None and none.top == []


# --- min_tokens, bans, errors ---------------------------------------------------------------------
def test_min_tokens_bans_stops_until_reached():
    row = [0.0, 9.0, 8.0, 7.0]
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(2, 77))
    assert token_of(sample_one(row, params)) == 3
    assert token_of(sample_one(row, params, output=[3])) == 3
    assert token_of(sample_one(row, params, output=[3, 3])) == EOS
    ignoring = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(2,), ignore_eos=True)
    assert token_of(sample_one(row, ignoring)) == EOS


@pytest.mark.parametrize(
    "knobs", [{"temperature": 0}, {"temperature": 1}, {"logprobs": 1}], ids=str
)
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_a_bad_row_fails_alone_and_names_the_model(knobs, bad):
    logits = torch.randn(3, 64)
    logits[1, 40] = bad
    states = [SamplerState(SamplingParams(**knobs), [], 64, [EOS]) for _ in range(3)]
    first, second, third = Sampler("broken-7b").sample(logits, states)
    assert first.error is None and third.error is None
    assert isinstance(second.error, TenfoldError) and "broken-7b" in second.error.message
    assert second.token == -1 and states[1].position == 0


def test_no_finite_logit_is_an_error():
    got = sample_one([-math.inf] * 5, SamplingParams())
    assert got.error is not None and "no finite logit" in got.error.message
    params = SamplingParams(min_tokens=1, stop_token_ids=(0, 1, 2))
    got = sample_one([1.0, 2.0, 3.0], params)
    assert isinstance(got.error, InvalidRequest)


def test_logit_bias_outside_the_vocabulary_is_refused():
    with pytest.raises(InvalidRequest, match="token 12") as caught:
        SamplerState(SamplingParams(logit_bias={12: 1.0}), [], 12, [EOS])
    assert caught.value.param == "logit_bias"


def test_extreme_temperatures_stay_finite():
    row = [0.0, 5.0, -80.0, 4.999]
    assert token_of(sample_one(row, SamplingParams(temperature=2e-5, seed=1))) == 1
    seen = {token_of(sample_one(row, SamplingParams(temperature=1e30, seed=s))) for s in range(60)}
    assert seen == {0, 1, 2, 3}


def test_the_best_token_found_on_a_device_is_the_same():
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 5.0], [1.0, math.nan, 9.0]])
    ids, values = Sampler("t")._best_of(logits)
    assert ids.tolist() == [1, 0, 1]
    assert values.tolist()[:2] == [3.0, 5.0] and math.isnan(values[2])


def test_the_best_tokens_may_be_given():
    states = [SamplerState(SamplingParams(temperature=0.0), [], 3, [EOS]) for _ in range(2)]
    given = torch.tensor([2, 0], dtype=torch.int32), torch.tensor([1.0, math.nan])
    first, second = Sampler("t").sample(torch.zeros(2, 3), states, given)
    assert first.token == 2 and second.error is not None


def test_no_rows():
    assert Sampler("t").sample(torch.empty(0, 9), []) == []


@pytest.mark.gpu
def test_rows_on_a_gpu_give_what_they_give_here():
    logits = torch.randn(8, 4000, generator=torch.Generator().manual_seed(5)) * 3
    knobs = [
        {"temperature": 0.0},
        {"seed": 3},
        {"temperature": 0.0, "logprobs": 2},
        {"seed": 4},
    ] * 2

    def states() -> list[SamplerState]:
        return [SamplerState(SamplingParams(**k), [], 4000, [EOS]) for k in knobs]

    assert Sampler("t").sample(logits.cuda(), states()) == Sampler("t").sample(logits, states())
