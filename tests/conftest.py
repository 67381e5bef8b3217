"""Shared fixtures: the real models, where they are cached. And, before anything imports Triton:
without an NVIDIA driver its kernels are interpreted, for which it looks at the environment once.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tenfold.core.errors import TenfoldError
from tenfold.fleet.store import Store

# How long an example takes says nothing on a machine that has other work.
settings.register_profile("tenfold", deadline=None)
settings.load_profile("tenfold")

# Set TRITON_INTERPRET=1 yourself to interpret on a machine with a GPU; then its own tests skip.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Taken when the tests begin: some of them point TENFOLD_HOME elsewhere for themselves.
_STORE = Store()


def _cached(name: str, catalogue_name: str) -> Path:
    """A catalogue model: in the folder TENFOLD_TEST_MODELS as ``name``, else in the store."""
    override = os.environ.get("TENFOLD_TEST_MODELS")
    if override and (path := Path(override) / name).exists():
        return path
    try:
        return _STORE.path(catalogue_name)
    except TenfoldError as exc:
        pytest.skip(exc.message)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return _cached("smollm2.gguf", "smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    return _cached("gemma3.gguf", "gemma3-270m")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    return _cached("minilm", "minilm-l6")
