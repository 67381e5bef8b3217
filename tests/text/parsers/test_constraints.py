from __future__ import annotations

import json

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.errors import InvalidRequest
from tenfold.text.grammar import GrammarFactory, validate_constraint
from tenfold.text.parsers.tools import tool_constraint
from text.grammars import Letters, wander
from text.parsers.chunks import parse, parser

LETTERS = Letters()
FACTORY = GrammarFactory(LETTERS)
SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"city": {"enum": ["Oslo", 'the "old" town']}},
    },
    'odd "name"\n': {"properties": {"x": {"type": "boolean"}}, "additionalProperties": False},
    "now": None,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]


@pytest.mark.parametrize("style", ["hermes", "qwen", "llama", "json"])
@pytest.mark.parametrize("choice", ["required", "weather"])
@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=20, deadline=None)
def test_forced_calls_are_legal_and_the_parser_reads_them(style, choice, seed, parallel):
    constraint = tool_constraint(TOOLS, choice, style, parallel=parallel)
    text = wander(FACTORY.compile(constraint), LETTERS, seed, limit=600)
    if text is None:
        return
    answer = parse(parser(style, TOOLS), list(text))
    assert answer.content == "" and answer.calls
    assert len(answer.calls) == 1 or (parallel and choice == "required")
    for call in answer.calls:
        assert choice in ("required", call.name)
        said = json.loads(call.arguments)
        jsonschema_rs.validate(SCHEMAS[call.name] or {"maxProperties": 0}, said)


def test_several_calls_only_where_allowed():
    texts = {
        parallel: [
            wander(
                FACTORY.compile(tool_constraint(TOOLS[2:], "required", "json", parallel=parallel)),
                LETTERS,
                seed,
            )
            for seed in range(30)
        ]
        for parallel in (False, True)
    }
    most = {
        parallel: max((t or "").count("now") for t in found) for parallel, found in texts.items()
    }
    assert most[False] == 1 and most[True] > 1


def test_the_grammar_passes_the_gate():
    for style in ("hermes", "llama"):
        validate_constraint(tool_constraint(TOOLS, "required", style), param="tools")
    broken = {"type": "function", "function": {"name": "f", "parameters": {"type": "objec"}}}
    with pytest.raises(InvalidRequest) as caught:
        validate_constraint(tool_constraint([broken], "f", "json"), param="tools")
    assert caught.value.param == "tools" and "objec" in caught.value.message


@pytest.mark.parametrize(
    ("tools", "choice", "field"),
    [
        ([], "required", "tool_choice"),
        (TOOLS, "nothing", "tool_choice"),
        ([{"type": "function"}], "required", "tools"),
        ([{"function": {"name": ""}}], "required", "tools"),
        ([{"function": {"name": "f", "parameters": [1]}}], "required", "tools"),
    ],
)
def test_malformed_requests(tools, choice, field):
    with pytest.raises(InvalidRequest) as caught:
        tool_constraint(tools, choice, "hermes")
    assert caught.value.param == field
