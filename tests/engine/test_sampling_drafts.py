"""``Sampler.verify``: whatever is guessed, tokens and states are those of single steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.test_sampling import EOS, VOCAB, all_params
from tenfold.core.types import Constraint, SamplingParams
from tenfold.engine.sampler_state import SamplerState
from tenfold.engine.sampling import Sampled, Sampler
from tenfold.text.grammar import GrammarFactory
from text.grammars import Letters

drafts_st = st.lists(st.integers(0, VOCAB - 1), max_size=5)


def _state(params: SamplingParams) -> SamplerState:
    return SamplerState(params, [1, 2, 3], VOCAB, [EOS])


def _one_by_one(rows: np.ndarray, state: SamplerState, draft: list[int]) -> list[Sampled]:
    """The definition: sample row after row, for as long as the draft says what came."""
    run: list[Sampled] = []
    for row, guess in zip(rows, [*draft, None], strict=True):
        (got,) = Sampler("t").sample(torch.tensor(row[None]), [state])
        run.append(got)
        if got.token != guess:
            break
    return run


@given(st.lists(st.tuples(all_params, drafts_st), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_a_draft_changes_no_token_no_logprob_and_no_state(
    asked: list[tuple[SamplingParams, list[int]]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    for params, _ in asked:
        params.logprobs = [None, 2][int(random.integers(2))]
    states = [_state(params) for params, _ in asked]
    twins = [_state(params) for params, _ in asked]
    sizes = [1 + len(draft) for _, draft in asked]
    logits = random.standard_normal((sum(sizes), VOCAB)).astype(np.float32) * 3
    # Half of the guesses are what the model likes best, so that some runs are long.
    at = 0
    for _, draft in asked:
        for i in range(len(draft)):
            if random.integers(2):
                draft[i] = int(logits[at + i].argmax())
        at += 1 + len(draft)
    runs = Sampler("t").verify(torch.tensor(logits), states, [draft for _, draft in asked])
    at = 0
    for run, twin, (_, draft), size in zip(runs, twins, asked, sizes, strict=True):
        assert run == _one_by_one(logits[at : at + size], twin, draft)
        at += size
    probe = torch.tensor(random.standard_normal((len(asked), VOCAB)).astype(np.float32))
    assert [s.position for s in states] == [s.position for s in twins]
    assert Sampler("t").sample(probe, states) == Sampler("t").sample(probe, twins)


def test_a_broken_row_ends_a_run_behind_its_good_tokens() -> None:
    logits = torch.zeros(4, VOCAB)
    logits[0, 5] = logits[1, 6] = logits[3, 7] = 1
    logits[2] = float("nan")
    state = _state(SamplingParams(temperature=0.0))
    ((first, second, broken),) = Sampler("t").verify(logits, [state], [[5, 6, 7]])
    assert (first.token, second.token) == (5, 6) and state.position == 2
    assert broken.error is not None and "damaged" in broken.error.message


@pytest.mark.parametrize("guess", ["abab", "abba", "abx", "zzzz", "ab"])
def test_a_grammar_takes_right_guesses_refuses_others_and_ends_a_run(guess: str) -> None:
    letters = Letters()
    params = SamplingParams(temperature=0.0, constraint=Constraint("regex", "(ab){2}"))

    def fresh() -> SamplerState:
        assert params.constraint is not None
        matcher = GrammarFactory(letters).compile(params.constraint)
        return SamplerState(params, [1], letters.vocab_size, letters.eos_ids, matcher)

    random = np.random.default_rng(4)
    # Longer pieces would do for several letters: let them be unlikely.
    rows = random.standard_normal((len(guess) + 3, letters.vocab_size)).astype(np.float32)
    rows[:, 256 : letters.vocab_size - 2] -= 50
    draft = [*guess.encode(), letters.eos_ids[0], 97]
    state, twin = fresh(), fresh()
    (run,) = Sampler("t").verify(torch.tensor(rows), [state], [draft])
    expected: list[Sampled] = []
    for row, token in zip(rows, [*draft, None], strict=True):
        expected += Sampler("t").sample(torch.tensor(row[None]), [twin])
        if twin.finished_by_grammar or expected[-1].token != token:
            break
    assert run == expected and state.position == twin.position == len(run)
    assert state.finished_by_grammar == twin.finished_by_grammar
    assert b"".join(bytes([one.token]) for one in run if one.token < 256) in b"abab"
    if guess == "abab":
        assert state.finished_by_grammar and len(run) <= 5
