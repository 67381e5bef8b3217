"""Spans of time as text, and back."""

from __future__ import annotations

import re
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.core.durations import DURATION, format_seconds, parse_seconds
from tenfold.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        (" 2.5s ", 2.5),
        ("-1", -1.0),
        ("-5m", -300.0),
        ("1d", 86400.0),
        ("0", 0.0),
        (3, 3.0),
        (-0.5, -0.5),
    ],
)
def test_what_people_write(text: float | str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("wrong", ["", "m", "5 m", "5m3", "1w", "--1", "5m-3s", "nan", inf, nan])
def test_what_is_no_span(wrong: float | str) -> None:
    with pytest.raises(ConfigError, match="span of time"):
        parse_seconds(wrong)


@given(st.from_regex(DURATION, fullmatch=True).filter(lambda text: len(text) < 40))
def test_what_the_pattern_takes_is_read(text: str) -> None:
    assert text.isascii() and parse_seconds(text) == pytest.approx(
        (-1 if text.startswith("-") else 1) * abs(parse_seconds(text.lstrip("-")))
    )
    assert re.match(DURATION, text)


def test_reading() -> None:
    shown = [format_seconds(one) for one in (0, 3.21, 99.94, 100, 7500)]
    assert shown == ["0.0 s", "3.2 s", "99.9 s", "1 min", "2 h 5 min"]
