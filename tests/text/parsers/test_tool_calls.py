from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.errors import ConfigError
from tenfold.text.parsers.base import random_call_id
from tenfold.text.parsers.tools import pick_tool_style, tool_parser, tool_parsers
from text.parsers.chunks import Answer, cut, parse, parser, tool

WEATHER = tool("weather", city={"type": "string"}, days={"type": "integer"})
STYLES = ["hermes", "json", "llama", "qwen"]


def read(style: str, text: str, tools=()) -> Answer:
    """The answer; every way of cutting in two, and single characters, must agree."""
    whole = parse(parser(style, tools), [text])
    assert parse(parser(style, tools), text) == whole
    for at in range(len(text)):
        assert parse(parser(style, tools), [text[:at], text[at:]]) == whole
    return whole


# --- calls --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {"city": "Oslo"}, "name": "weather"}</tool_call>'),
        ("hermes", '<tool_call>[{"name": "weather", "arguments": {"city": "Oslo"}}]</tool_call>'),
        ("hermes", '\n\n<tool_call>{"name":"weather","arguments":{"city": "Oslo"}}</tool_call>\n'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}'),
        (
            "hermes",
            '<tool_call>{"id":[1,{"name":2}],"name":"weather","arguments":{"city": "Oslo"}}',
        ),
        ("qwen", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'),
        ("llama", '{"name": "weather", "parameters": {"city": "Oslo"}}'),
        ("llama", '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}'),
        ("llama", '{"type":"function","name":"weather","parameters":{"city": "Oslo"}}'),
        ("json", ' {"name": "weather", "arguments": {"city": "Oslo"}}\n'),
        ("json", '[{"name": "weather", "arguments": {"city": "Oslo"}}]'),
    ],
)
def test_one_call(style, text):
    answer = read(style, text, [WEATHER])
    assert answer.named == [("weather", '{"city": "Oslo"}')]
    assert answer.content == "" and answer.calls[0].id == "id-0"


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("hermes", "<tool_call>{0}</tool_call>\n<tool_call>{1}</tool_call>"),
        ("hermes", "<tool_call>[{0}, {1}]</tool_call>"),
        ("llama", "{0}; {1}"),
        ("llama", "{0}\n{1}"),
        ("llama", "<|python_tag|>{0};<|python_tag|>{1}"),
        ("json", "[{0},\n {1}]"),
        ("json", "{0}\n{1}"),
    ],
)
def test_several_calls(style, text):
    calls = ['{"name": "a", "arguments": {"x": 1}}', '{"name": "b", "arguments": {}}']
    answer = read(style, text.replace("{0}", calls[0]).replace("{1}", calls[1]))
    assert answer.named == [("a", '{"x": 1}'), ("b", "{}")]
    assert answer.content == "" and [call.id for call in answer.calls] == ["id-0", "id-1"]


def test_text_around_calls_is_content():
    call = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    answer = read("hermes", f"Let me look.\n{call}\n and then {call} done ")
    assert answer.content == "Let me look.\n\n and then  done "
    assert answer.named == [("a", "{}"), ("a", "{}")]


def test_arguments_stream_while_they_are_written():
    stream = parser("hermes")
    assert stream.push('<tool_call>{"name": "a", "argu').tool_calls == []
    first = stream.push('ments": {"text": "once').tool_calls
    assert [(part.name, part.arguments) for part in first] == [("a", ""), (None, '{"text": "once')]
    (second,) = stream.push(" upon").tool_calls
    assert (second.index, second.name, second.arguments) == (0, None, " upon")
    (last,) = stream.push(' a time"}}</tool_call>').tool_calls
    assert last.arguments == ' a time"}'


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('"{\\"x\\": 1}"', '{"x": 1}'),
        ("null", "{}"),
        ('{"x": [1.5e3, "}", {"y": null}]}', '{"x": [1.5e3, "}", {"y": null}]}'),
    ],
)
def test_forms_of_arguments(written, arguments):
    text = f'<tool_call>{{"name": "a", "arguments": {written}}}</tool_call>'
    assert read("hermes", text).named == [("a", arguments)]


def test_a_call_in_tags_needs_no_arguments():
    assert read("hermes", '<tool_call>{"name": "now"}</tool_call>').named == [("now", "{}")]
    assert read("json", '{"name": "now"}').content == '{"name": "now"}'


# --- no calls -----------------------------------------------------------------------------------
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "Hello, world! ",
        "a < b <tool b <|python <functional",
        "<tool_call>",
        "<tool_call>no JSON</tool_call>",
        '<tool_call>{"name": "a"',
        '<tool_call>{"name": "a", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "a", "arguments": "not an object"}</tool_call>',
        '<tool_call>{"name": "a", arguments: {}}</tool_call>',
        "<tool_call><tool_call>x",
        "<|python_tag|>print(1)",
        "<function=>\n</function>",
        "<function=a b></function>",
        "<tool_call><function=",
        '{"name": "Bob", "age": 7}',
        '{"name": "Bob", "arguments": 7}',
        '{"answer": 42}',
        "[1, 2]",
        "{",
        "[",
        '[{"a": 1}, 2]',
        '{"name": "a", "arguments": ' + "9" * 5000 + "}",
        "[" * 3000,
        '{"a": ' * 3000,
    ],
)
def test_what_is_no_call_is_content_unchanged(style, text):
    for pieces in ([text], list(text), [text[: len(text) // 2], text[len(text) // 2 :]]):
        assert parse(parser(style), pieces) == Answer(content=text)


def test_a_bare_call_of_an_unknown_tool_is_content():
    text = '{"name": "Ada", "parameters": {"born": 1815}}'
    assert read("llama", text, [WEATHER]).content == text
    assert read("llama", text).named == [("Ada", '{"born": 1815}')]
    tagged = f"<|python_tag|>{text}"
    assert read("llama", tagged, [WEATHER]).named == [("Ada", '{"born": 1815}')]


def test_arguments_that_stop_being_json_end_the_call():
    answer = read("hermes", '<tool_call>{"name": "a", "arguments": {"x": 1} oops</tool_call>')
    assert answer.named == [("a", '{"x": 1}')] and answer.content == "oops</tool_call>"
    answer = read("hermes", '<tool_call>{"name": "a", "arguments": {"x": oops')
    assert answer.named == [("a", '{"x": ')] and answer.content == "oops"


def test_an_answer_cut_short_keeps_what_came():
    answer = read("hermes", '<tool_call>{"name": "a", "arguments": {"x": "lo')
    assert answer.named == [("a", '{"x": "lo')] and answer.content == ""


# --- Qwen3-Coder's XML --------------------------------------------------------------------------
CODER = tool(
    "edit",
    path={"type": "string"},
    line={"type": "integer"},
    flags={"anyOf": [{"type": "array"}, {"type": "null"}]},
    force={"type": "boolean"},
    ratio={"type": ["number", "string"]},
)


def test_xml_call():
    text = (
        '<tool_call>\n<function=edit>\n<parameter=path>\na"b\n\n</parameter>\n<parameter=line>\n'
        "12\n</parameter>\n<parameter=flags>[1, 2]</parameter><parameter=force>True</parameter>\n"
        "<parameter=ratio>1</parameter>\n<parameter=new>7</parameter>\n</function>\n</tool_call>\n"
    )
    answer = read("qwen", text, [CODER])
    assert answer.content == "" and [call.name for call in answer.calls] == ["edit"]
    assert json.loads(answer.calls[0].arguments) == {
        "path": 'a"b\n', "line": 12, "flags": [1, 2], "force": True, "ratio": "1", "new": "7",
    }  # fmt: skip


@pytest.mark.parametrize("value", ["", "\n", "\n\n", "</para", "x\n</parameter", "NaN", "{'a': 1}"])
@pytest.mark.parametrize("key", ["path", "line"])
def test_xml_values_that_are_no_json_become_strings(key, value):
    text = f"<function=edit><parameter={key}>\n{value}\n</parameter></function>"
    assert json.loads(read("qwen", text, [CODER]).calls[0].arguments) == {key: value}


def test_xml_calls_follow_each_other():
    call = "<function=now></function>"
    answer = read("qwen", f"Well.{call}\n<tool_call>{call}</tool_call>{call}</tool_call>.")
    assert answer.named == [("now", "{}")] * 3 and answer.content == "Well.."


def test_xml_that_breaks_off():
    answer = read("qwen", "<function=edit>\n<parameter=path>a</parameter>\nsorry", [CODER])
    assert answer.named == [("edit", '{"path": "a"}')] and answer.content == "sorry"
    answer = read("qwen", "<function=edit>\n<parameter=path>\nabc\n</par", [CODER])
    assert answer.named == [("edit", '{"path": "abc\\n</par')] and answer.content == ""
    answer = read("qwen", "<function=edit>\n<parameter=line>\n12", [CODER])
    assert answer.named == [("edit", '{"line": 12')]


# --- properties ---------------------------------------------------------------------------------
FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<tool_", "call>", "<|python_tag|>", "<function=edit>",
    "<function=", "</function>", "<parameter=path>", "<parameter=line>", "</parameter>",
    '{"name": "weather", ',
    '"arguments": {', '"parameters": {"x": 1}', '"city": "Oslo"', "}", "}}", "{", "[", "]", ",",
    ";", '"', "\\", "\n", " ", "12", "true", "héllo 🙂", ":", '{"name": "a", "arguments": {}}',
]  # fmt: skip
noise = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)


@pytest.mark.parametrize("style", STYLES)
@given(cut(noise))
@settings(max_examples=250, deadline=None)
def test_cutting_never_matters(style, case):
    text, pieces = case
    tools = [WEATHER, CODER]
    whole = parse(parser(style, tools), [text])
    assert parse(parser(style, tools), pieces) == whole
    if not whole.calls:
        assert whole.content == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
arguments = st.dictionaries(st.text(max_size=5), json_values, max_size=4)


@pytest.mark.parametrize("style", STYLES)
@given(st.data(), st.lists(arguments, min_size=1, max_size=3), st.booleans())
@settings(max_examples=120, deadline=None)
def test_written_calls_come_back(style, data, wanted, ascii_only):
    calls = [
        json.dumps({"name": f"f{i}", "arguments": value}, ensure_ascii=ascii_only, indent=i or None)
        for i, value in enumerate(wanted)
    ]
    if style in ("hermes", "qwen"):
        text = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
    else:
        text = "\n".join(calls)
    _, pieces = data.draw(cut(st.just(text)))
    answer = parse(parser(style), pieces)
    assert answer.content == ""
    assert [json.loads(call.arguments) for call in answer.calls] == wanted


# --- choosing a style ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("template", "family", "style"),
    [
        ("… <tool_call> …", "llama", "hermes"),
        ("… <tool_call> …", "qwen3", "qwen"),
        ("<tool_call><function=x><parameter=y>", "qwen3_moe", "qwen"),
        ("", "qwen2", "qwen"),
        ("<|start_header_id|>ipython<|end_header_id|>", "llama", "llama"),
        ("<|python_tag|>", "llama", "llama"),
        ("<|start_header_id|>", "llama", "llama"),
        ("<|im_start|>", "llama", "json"),
        ("<start_of_turn>", "gemma3", "json"),
    ],
)
def test_style_of_a_model(template, family, style):
    assert pick_tool_style(template, family) == style


def test_registry():
    assert tool_parsers().names() == STYLES
    with pytest.raises(ConfigError, match="hermes, json, llama, qwen"):
        tool_parser("morse")
    assert random_call_id() != random_call_id()
