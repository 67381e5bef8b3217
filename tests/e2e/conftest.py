"""What the end-to-end tests share: a store of their own, tiny models, and one server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from e2e.serving import SMALL, Server, serve
from models.tiny import make_tiny


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """``tiny`` and ``other`` generate, ``embedder`` makes vectors. All weights are seeded noise."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": make_tiny("llama", folder / "tiny", max_position_embeddings=8192),
        "other": make_tiny("qwen3", folder / "other", max_position_embeddings=2048),
        "embedder": make_tiny("bert", folder / "embedder"),
    }


@pytest.fixture(scope="session")
def server(
    tiny: Mapping[str, Path], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of all three tiny models, for all tests that leave it as they found it."""
    with serve(tmp_path_factory.mktemp("server"), home, tiny, *SMALL) as made:
        yield made
