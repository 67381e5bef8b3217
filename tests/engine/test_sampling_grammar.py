"""Sampling under a grammar: a "model" of random logits can only write what matches."""

from __future__ import annotations

import json
import re

import jsonschema_rs
import numpy as np
import pytest
import torch

from tenfold.core.errors import InvalidRequest, TenfoldError
from tenfold.core.types import Constraint, SamplingParams
from tenfold.engine.sampler_state import SamplerState
from tenfold.engine.sampling import Sampler
from tenfold.text.grammar import GrammarFactory
from text.grammars import Letters

LETTERS = Letters()
FACTORY = GrammarFactory(LETTERS)
PADDED = LETTERS.vocab_size + 77  # models pad their vocabulary: those ids are no tokens
A, B, C = b"abc"


def new_state(constraint: Constraint | None, output=(), **knobs) -> SamplerState:
    matcher = None if constraint is None else FACTORY.compile(constraint)
    params = SamplingParams(constraint=constraint, **knobs)
    return SamplerState(params, [1, 2], PADDED, LETTERS.eos_ids, matcher, output)


def write(states: list[SamplerState], seed: int, steps: int = 400) -> list[list[int]]:
    """Run a batch on random logits until each sequence ends by its grammar."""
    generator = torch.Generator().manual_seed(seed)
    outputs: list[list[int]] = [[] for _ in states]
    for _ in range(steps):
        live = [i for i, state in enumerate(states) if not state.finished_by_grammar]
        if not live:
            break
        logits = torch.randn(len(states), PADDED, generator=generator) * 2
        # A model that likes to end: otherwise random strings go on and on.
        logits[:, [ord('"'), ord("}"), ord("]"), *LETTERS.eos_ids]] += 5
        for i, got in zip(
            live, Sampler("t").sample(logits[live], [states[i] for i in live]), strict=True
        ):
            assert got.error is None
            outputs[i].append(got.token)
    return outputs


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["cat", "dog"]},
        "legs": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
    },
    "required": ["name", "kind", "legs"],
    "additionalProperties": False,
}


KNOBS = [
    {},
    {"temperature": 0.0},
    {"top_p": 0.3},
    {"top_k": 2},
    {"min_p": 0.5},
    {"repetition_penalty": 1.4},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_answers_satisfy_their_schema(knobs):
    constraint = Constraint("json_schema", json.dumps(SCHEMA))
    states = [new_state(constraint, seed=seed, **knobs) for seed in range(8)]
    outputs = write(states, seed=1)
    done = [ids for ids, state in zip(outputs, states, strict=True) if state.finished_by_grammar]
    assert len(done) >= 6
    for ids in done:
        jsonschema_rs.validate(SCHEMA, json.loads(LETTERS.text(ids)))


def test_constrained_and_free_rows_share_a_batch():
    pattern = "[a-f]{3}-(yes|no)"
    states = [new_state(None, seed=1), new_state(Constraint("regex", pattern), seed=2)]
    outputs = write(states, seed=3, steps=10)
    assert re.fullmatch(pattern, LETTERS.text(outputs[1]))
    assert states[1].finished_by_grammar and not states[0].finished_by_grammar
    assert len(outputs[0]) == 10


def choose(state: SamplerState, *best: int):
    """One step on logits that favour ``best``, in that order."""
    row = np.zeros(PADDED, dtype=np.float32)
    row[list(best)] = np.arange(len(best), 0, -1) * 5.0
    (got,) = Sampler("t").sample(torch.from_numpy(row)[None], [state])
    return got


def test_a_finished_grammar_finishes_the_sequence():
    state = new_state(Constraint("regex", "ab"), temperature=0)
    assert choose(state, PADDED - 1, C, A).token == A and not state.finished_by_grammar
    assert choose(state, C, B).token == B and state.finished_by_grammar
    assert choose(state, C, A).token == LETTERS.eos_ids[0]


def test_an_end_token_finishes_it_even_when_ends_are_ignored():
    state = new_state(Constraint("regex", "ab?"), temperature=0, ignore_eos=True)
    assert choose(state, A).token == A and not state.finished_by_grammar
    assert choose(state, LETTERS.eos_ids[1], B).token == LETTERS.eos_ids[1]
    assert state.finished_by_grammar


def test_min_tokens_bans_ends_until_the_grammar_has_nothing_else():
    state = new_state(Constraint("regex", "ab?"), temperature=0, min_tokens=9)
    assert choose(state, A).token == A
    assert choose(state, LETTERS.eos_ids[0], B).token == B
    assert state.finished_by_grammar
    got = choose(state, B)
    assert got.token == LETTERS.eos_ids[0] and got.error is None


def test_a_restored_sequence_is_at_its_place():
    constraint = Constraint("regex", "[ab]{4}")
    table = torch.randn(4, PADDED, generator=torch.Generator().manual_seed(5))
    whole = new_state(constraint, seed=8)
    ids = [Sampler("t").sample(table[i : i + 1], [whole])[0].token for i in range(4)]
    again = new_state(constraint, output=ids[:2], seed=8)
    assert [Sampler("t").sample(table[i : i + 1], [again])[0].token for i in (2, 3)] == ids[2:]
    assert again.finished_by_grammar
    with pytest.raises(TenfoldError, match="does not allow"):
        new_state(constraint, output=[C])


def test_a_grammar_that_fails_takes_no_other_row_with_it():
    states = [new_state(Constraint("regex", r"a[^\s\S]")), new_state(None)]
    first, second = Sampler("t").sample(torch.randn(2, PADDED), states)
    assert isinstance(first.error, InvalidRequest) and first.error.param == "guided_regex"
    assert second.error is None


def test_a_bias_that_leaves_nothing_of_the_grammar():
    state = new_state(Constraint("regex", "a"), logit_bias={A: float("-inf")})
    got = choose(state, B)
    assert isinstance(got.error, InvalidRequest) and "no token is left" in got.error.message


def test_logprobs_are_of_the_model_not_of_the_grammar():
    state = new_state(Constraint("regex", "a"), temperature=0, logprobs=1)
    got = choose(state, C, A)
    assert got.token == A and got.logprob is not None
    assert [id for id, _ in got.logprob.top] == [C] and got.logprob.logprob < got.logprob.top[0][1]
