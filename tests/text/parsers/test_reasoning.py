from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.text.parsers.reasoning import TagReasoning, reasoning_parser
from text.parsers.chunks import cut


def split(pieces, *, begun: bool = False) -> tuple[str, str]:
    parser = TagReasoning(begun=begun)
    deltas = [*map(parser.push, pieces), parser.flush()]
    return "".join(d.reasoning for d in deltas), "".join(d.content for d in deltas)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nYes.\n", "hm", "Yes.\n"),
        ("\n <think>a\n\nb</think>c", "a\n\nb", "c"),
        ("<think></think>x", "", "x"),
        ("<think>\n\n</think>\n\nx", "", "x"),
        ("<think>never closed\n</thi", "never closed\n</thi", ""),
        ("<think>", "", ""),
        ("no thinking <think>at all</think>", "", "no thinking <think>at all</think>"),
        ("\n\nplain", "", "\n\nplain"),
        ("<thin", "", "<thin"),
        ("<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d"),
        ("", "", ""),
        ("  ", "", "  "),
    ],
)
def test_block_written_by_the_model(text, reasoning, content):
    for pieces in ([text], list(text)):
        assert split(pieces) == (reasoning, content)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("\nhm\n</think>\n\nYes.", "hm", "Yes."),
        ("<think>\nhm</think>Yes.", "hm", "Yes."),
        ("all of it\n", "all of it\n", ""),
        ("</think>Yes.", "", "Yes."),
        ("<thi", "<thi", ""),
        ("", "", ""),
    ],
)
def test_block_opened_by_the_prompt(text, reasoning, content):
    for pieces in ([text], list(text)):
        assert split(pieces, begun=True) == (reasoning, content)


def test_thinking_streams():
    parser = TagReasoning()
    assert parser.push("<think>one ").reasoning == "one "
    assert parser.push("two\n").reasoning == "two"
    assert parser.push("</thi").reasoning == ""
    assert parser.push("ng").reasoning == "\n</thing"
    assert parser.push("</think>\n").reasoning == ""
    assert parser.push("\nfour").content == "four"


NOISE = ["<think>", "</think>", "<th", "ink>", "</", "\n", " ", "a", "🙂"]


@given(cut(st.lists(st.sampled_from(NOISE), max_size=12).map("".join)), st.booleans())
@settings(max_examples=400, deadline=None)
def test_cutting_never_matters(case, begun):
    text, pieces = case
    assert split(pieces, begun=begun) == split([text], begun=begun)


def test_who_thinks():
    assert reasoning_parser("{{ messages }}") is None
    assert reasoning_parser("", "user: hi") is None
    for template, tail, answer, want in [
        ("… </think> …", "assistant\n", "<think>a</think>b", ("a", "b")),
        ("… <think> …", "assistant\n<think>\n", "a</think>b", ("a", "b")),
        ("", "assistant<think>", "a</think>b", ("a", "b")),
        ("… <think> …", "<think>\n\n</think>\n\n", "b", ("", "b")),
        ("[THINK]", "", "[THINK]a[/THINK]b", ("a", "b")),
    ]:
        parser = reasoning_parser(template, tail)
        assert parser is not None
        got, rest = parser.push(answer), parser.flush()
        assert (got.reasoning + rest.reasoning, got.content + rest.content) == want
