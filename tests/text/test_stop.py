"""Stop strings against a plain search, for any text in any parts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.errors import InvalidRequest
from tenfold.text.stop import StopStrings


def searched(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The first stop string to be complete, the longest of those that end together."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def cut(text: str, sizes: list[int]) -> list[str]:
    parts = []
    for size in sizes:
        parts.append(text[:size])
        text = text[size:]
    return [*parts, text]


texts = st.text(alphabet="ab", max_size=40)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=4)
size_lists = st.lists(st.integers(0, 5), max_size=20)


@settings(max_examples=1000, deadline=None)
@given(text=texts, stops=stop_lists, sizes=size_lists, include=st.booleans())
def test_equals_a_plain_search(
    text: str, stops: list[str], sizes: list[int], include: bool
) -> None:
    machine = StopStrings(stops, include_stop=include)
    sent = ""
    results = [machine.push(part) for part in cut(text, sizes)]
    sent = "".join(result.text for result in results) + machine.flush()
    before, matched = searched(text, stops)
    assert results[-1].matched == matched
    assert sent == before + (matched or "" if include else "")


@settings(max_examples=500, deadline=None)
@given(text=texts, stops=stop_lists)
def test_holds_back_no_more_than_it_must(text: str, stops: list[str]) -> None:
    machine = StopStrings(stops)
    sent = ""
    for place, char in enumerate(text):
        result = machine.push(char)
        if result.matched is not None:
            break
        sent += result.text
        seen = text[: place + 1]
        possible = [
            size
            for size in range(len(seen) + 1)
            if any(len(stop) > size and stop.startswith(seen[len(seen) - size :]) for stop in stops)
        ]
        assert len(seen) - len(sent) == max(possible, default=0)


def test_across_parts() -> None:
    machine = StopStrings(["\n\nHuman:"])
    assert machine.push("Fine.\n") == ("Fine.", None)
    assert machine.push("\nHum") == ("", None)
    assert machine.push("ming\n\nHuman: hi") == ("\n\nHumming", "\n\nHuman:")
    assert machine.push("more") == ("", "\n\nHuman:")
    assert machine.flush() == ""


def test_flush_returns_what_was_held() -> None:
    machine = StopStrings(["</s>"])
    assert machine.push("a </") == ("a ", None)
    assert machine.flush() == "</"
    assert machine.flush() == ""


def test_the_first_to_be_complete_wins() -> None:
    assert StopStrings(["abcd", "bc"]).push("xabcd") == ("xa", "bc")
    assert StopStrings(["bc", "abc"]).push("xabc") == ("x", "abc")


def test_without_stops_text_passes() -> None:
    assert StopStrings().push("anything") == ("anything", None)


def test_any_characters() -> None:
    machine = StopStrings(["👨‍👩‍👧", "\x00"])
    assert machine.push("a👨‍👩") == ("a", None)
    assert machine.push("‍👧b") == ("", "👨‍👩‍👧")


def test_long_stop_strings_stay_cheap() -> None:
    machine = StopStrings(["a" * 5000 + "b"])
    sent = sum(len(machine.push("a").text) for _ in range(20_000))
    assert sent == 15_000


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty") as caught:
        StopStrings(["a", ""])
    assert caught.value.param == "stop"
