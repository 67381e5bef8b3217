from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.core.errors import ConfigError
from tenfold.core.sizes import format_bytes, parse_bytes, parse_share


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (0, 0),
        (17, 17),
        ("17", 17),
        ("17 B", 17),
        ("2K", 2048),
        ("2 KiB", 2048),
        ("2kB", 2000),
        ("4GiB", 4 << 30),
        ("4g", 4 << 30),
        ("4 GB", 4_000_000_000),
        ("1.5MiB", 1_572_864),
        (".5k", 512),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_as_people_write_them(text: int | str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "4 apples", "-1", "1e9", "4iB", "nan", True, -3, 1.5])
def test_what_is_not_a_size_is_refused(text: int | str) -> None:
    with pytest.raises(ConfigError):
        parse_bytes(text)


@given(st.integers(min_value=0, max_value=1 << 60))
def test_whole_numbers_are_exact(count: int) -> None:
    assert parse_bytes(str(count)) == count
    assert parse_bytes(f"{count} KiB") == count * 1024


def test_shares() -> None:
    assert parse_share("60%", 1000) == 600
    assert parse_share("100 %", 1000) == 1000
    assert parse_share("1KiB", 1000) == 1024
    for wrong in ("0%", "101%", "-1%", "nan%", "many%"):
        with pytest.raises(ConfigError):
            parse_share(wrong, 1000)


def test_formatting() -> None:
    assert format_bytes(0) == "0 B"
    assert format_bytes(1023) == "1023 B"
    assert format_bytes(98_362_432) == "93.8 MiB"
    assert format_bytes(5 << 40) == "5.0 TiB"
