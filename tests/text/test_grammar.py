from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.errors import InvalidRequest, TenfoldError
from tenfold.core.types import Constraint
from tenfold.text.grammar import GrammarFactory, compile_constraint
from tenfold.text.tokenizer import load_tokenizer
from text.grammars import Letters, allowed, wander

LETTERS = Letters()
FACTORY = GrammarFactory(LETTERS)
A, B, C = b"abc"


def regex(text: str) -> Constraint:
    return Constraint("regex", text)


def schema(value: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


# --- the matcher --------------------------------------------------------------------------------
def test_a_matcher_walks_its_grammar():
    matcher = FACTORY.compile(regex("[ax]b+c"))
    start = {A, ord("x"), LETTERS.id_of("ab")}
    assert allowed(matcher) == start
    assert not matcher.accept(C) and allowed(matcher) == start
    assert matcher.accept(A) and matcher.accept(B)
    assert allowed(matcher) == {B, C}
    assert not matcher.accepting and not matcher.finished
    assert matcher.accept(C)
    assert matcher.accepting and matcher.finished
    assert allowed(matcher) == set(LETTERS.eos_ids)
    assert not matcher.accept(B)
    assert matcher.accept(LETTERS.eos_ids[1]) and matcher.finished


def test_an_end_may_come_before_all_is_said():
    matcher = FACTORY.compile(regex("ab?"))
    assert matcher.accept(A)
    assert matcher.accepting and not matcher.finished
    assert allowed(matcher) == {B, *LETTERS.eos_ids}
    assert matcher.accept(LETTERS.eos_ids[0]) and matcher.finished


def test_rollback():
    matcher = FACTORY.compile(regex("abc"))
    for token in (A, B, C):
        assert matcher.accept(token)
    matcher.rollback(2)
    assert not matcher.finished and B in allowed(matcher)
    matcher.rollback(0)
    with pytest.raises(TenfoldError, match="back 9"):
        matcher.rollback(9)


def test_a_mask_of_another_length():
    matcher = FACTORY.compile(regex("a"))
    longer = np.full(matcher.words + 3, 0xFFFFFFFF, dtype=np.uint32)
    matcher.mask(longer)
    assert not longer[matcher.words :].any() and longer[A // 32] == 1 << A % 32
    shorter = np.zeros(4, dtype=np.uint32)
    matcher.mask(shorter)
    assert shorter.tolist() == longer[:4].tolist()


def test_special_tokens_are_not_spelled():
    """What ends a turn is never part of a text that only looks like it."""
    matcher = FACTORY.compile(regex(r"<\|im_end\|>"))
    assert allowed(matcher) == {ord("<")}


def test_forced_text_is_spelled_as_the_model_spells_it():
    matcher = FACTORY.compile(regex("ab"))
    assert allowed(matcher) == {A}  # this tokeniser never merges, although there is a token "ab"


def test_matchers_of_one_grammar_do_not_share_their_place():
    first, second = (FACTORY.compile(regex("ab")) for _ in range(2))
    assert first.accept(A)
    assert A in allowed(second) and B in allowed(first)


def test_a_model_without_end_tokens():
    letters = Letters()
    letters.eos_ids = []
    matcher = compile_constraint(regex("a"), letters)
    assert matcher.accept(A) and matcher.finished
    assert not {id for id in allowed(matcher) if id < letters.vocab_size}


def test_end_tokens_may_be_the_model_s():
    factory = GrammarFactory(Letters(), eos_ids=[C, 10**6])
    matcher = factory.compile(regex("a"))
    assert matcher.accept(A) and allowed(matcher) == {C}


def test_many_grammars():
    factory = GrammarFactory(LETTERS)
    for number in range(80):
        matcher = factory.compile(regex(f"a{{{number + 1}}}"))
        assert allowed(matcher) >= {A}


# --- what comes out -----------------------------------------------------------------------------
SCHEMAS = [
    True,
    {"type": "object"},
    {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 700}, "minItems": 1},
    {"enum": ["red", "green", 5, None]},
    {"type": "string", "minLength": 2, "maxLength": 9},
    {"type": "string", "pattern": "^(abc|de?f)+$"},
    {"type": "string", "format": "date"},
    {"const": {"a": [1, "é"]}},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
            "size": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
        "$defs": {"tag": {"enum": ["big", "small"]}},
    },
]


@pytest.mark.parametrize("value", SCHEMAS, ids=lambda value: json.dumps(value)[:40])
@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_random_answers_satisfy_their_schema(value, seed):
    text = wander(FACTORY.compile(schema(value)), LETTERS, seed)
    if text is not None:
        # JSON may say 1e999, which the validator cannot read.
        said = json.loads(text, parse_float=lambda number: max(-1e99, min(1e99, float(number))))
        jsonschema_rs.validate(value, said)


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_random_answers_in_json_mode_are_objects(seed):
    text = wander(FACTORY.compile(Constraint("json_object")), LETTERS, seed)
    assert text is None or isinstance(json.loads(text), dict)


REGEXES = [
    "[a-z]{2,5}@[a-z]+[.](com|org)",
    r"\d{3}-\d{4}",
    "(yes|no)(, (yes|no)){0,3}",
    "a/b",
    r"\w\s\w",
    "x?",
]


@pytest.mark.parametrize("pattern", REGEXES)
@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_random_answers_match_their_regex(pattern, seed):
    text = wander(FACTORY.compile(regex(pattern)), LETTERS, seed)
    assert text is None or re.fullmatch(pattern, text, re.ASCII)


def test_lark():
    grammar = 'start: "SELECT " (name ("," name)*) ";"\nname: /[ab]{1,3}/'
    texts = {wander(FACTORY.compile(Constraint("grammar", grammar)), LETTERS, s) for s in range(20)}
    assert len(texts) > 5
    assert all(re.fullmatch("SELECT [ab]{1,3}(,[ab]{1,3})*;", text or "") for text in texts)


def test_a_real_tokeniser(smollm2_path: Path):
    tokenizer = load_tokenizer(smollm2_path)
    factory = GrammarFactory(tokenizer)
    matcher = factory.compile(schema({"const": {"temperature": "reddish"}}))
    rng = np.random.default_rng(0)
    ids: list[int] = []
    while not matcher.finished:
        ids.append(int(rng.choice(sorted(allowed(matcher)))))
        assert matcher.accept(ids[-1])
    assert json.loads(tokenizer.decode(ids)) == {"temperature": "reddish"}
    matcher = factory.compile(Constraint("grammar", 'start: "the temperature is reddish"'))
    spelled = tokenizer.encode("the temperature is reddish", special=False)
    for id in spelled:
        assert allowed(matcher) == {id} and matcher.accept(id)
    assert matcher.finished and allowed(matcher) == set(tokenizer.eos_ids)


# --- errors -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("constraint", "field", "message"),
    [
        (schema({"type": "objec"}), "response_format", "objec"),
        (schema([1]), "response_format", "not list"),
        (schema(False), "response_format", "matches nothing"),
        (Constraint("json_schema", "{"), "response_format", "not JSON"),
        (Constraint("json_schema", ""), "response_format", "not JSON"),
        (Constraint("json_schema", '{"maximum": NaN}'), "response_format", "NaN"),
        (Constraint("json_schema", '{"not":' * 30000), "response_format", "deep"),
        (schema({"not": {}}), "response_format", "Unimplemented"),
        (schema({"$ref": "http://a.example/b"}), "response_format", "a.example"),
        (
            schema({"minLength": 5, "maxLength": 2, "type": "string"}),
            "response_format",
            "minLength",
        ),
        (regex("a("), "guided_regex", "unclosed group"),
        (regex("(?=a)b"), "guided_regex", "look-around"),
        (regex("a\\"), "guided_regex", "backslash"),
        (regex("a" * 300_000), "guided_regex", "300000"),
        (regex("\ud800"), "guided_regex", "Unicode"),
        (Constraint("grammar", "start: foo"), "guided_grammar", "foo"),
        (Constraint("grammar", ""), "guided_grammar", "Empty"),
        (Constraint("grammar", 'root ::= "a"'), "guided_grammar", "GBNF"),
    ],
)
def test_a_bad_constraint_names_its_field(constraint, field, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        FACTORY.compile(constraint)
    assert caught.value.param == field and field in caught.value.message
    assert len(caught.value.message) < 400 and "\n" not in caught.value.message
    with pytest.raises(InvalidRequest) as caught:
        FACTORY.compile(constraint, param="tools")
    assert caught.value.param == "tools"


def test_a_grammar_that_nothing_matches():
    matcher = FACTORY.compile(regex(r"a[^\s\S]"))
    with pytest.raises(InvalidRequest, match="no text matches"):
        allowed(matcher)


def test_a_grammar_that_takes_too_long_fails_its_own_request():
    factory = GrammarFactory(LETTERS, seconds=1e-9)
    with pytest.raises(InvalidRequest, match="make it simpler") as caught:
        factory.compile(regex("[a-z]{1,20}"))
    assert caught.value.param == "guided_regex"
    slow = GrammarFactory(LETTERS, seconds=10)
    matcher = slow.compile(regex("[a-z]{1,20}"))
    matcher._seconds = 1e-9
    with pytest.raises(InvalidRequest, match="make it simpler"):
        allowed(matcher)


def test_a_panic_fails_its_own_request(monkeypatch: pytest.MonkeyPatch):
    class PanicException(BaseException):
        pass

    class Broken:
        def is_stopped(self) -> bool:
            return False

        def unsafe_compute_mask_ptr(self, *args: int) -> None:
            raise PanicException("assertion failed")

        def try_consume_tokens(self, tokens: list[int]) -> int:
            raise PanicException("assertion failed")

    matcher = FACTORY.compile(regex("a"))
    monkeypatch.setattr(matcher, "_matcher", Broken())
    with pytest.raises(InvalidRequest, match="too complex"):
        allowed(matcher)
    with pytest.raises(InvalidRequest, match="too complex"):
        matcher.accept(A)


def test_llguidance_is_imported_late():
    code = "import sys, tenfold.text.grammar; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
