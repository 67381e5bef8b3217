"""Shared fixtures: the real models, where they are cached."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def _cached(name: str) -> Path:
    """A catalogue model's path in the store, or in TENFOLD_TEST_MODELS while building the store."""
    override = os.environ.get("TENFOLD_TEST_MODELS")
    if override and (path := Path(override) / name).exists():
        return path
    pytest.skip(f"{name} is not fetched; run `tenfold pull` first")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return _cached("smollm2.gguf")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    return _cached("gemma3.gguf")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    return _cached("minilm")
