"""The generated pages say what the program does now."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.cli.docs import pages

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["cli.md", "config.md"])
def test_generated_pages_are_fresh(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name], "run `make docs`"
