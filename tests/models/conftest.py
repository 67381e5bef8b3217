"""What the models' tests share: the torch kernels, and loading without a page pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold.kernels.base import Kernels
from tenfold.kernels.table import build_kernels
from tenfold.models.loading import LoadedModel, load_model


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors lose more to torch's threads than they gain, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    return build_kernels(native=False)


@pytest.fixture(scope="session")
def load(kernels: Kernels) -> Callable[..., LoadedModel]:
    """``load(path, cache_dir=None, **options)`` into ordinary memory."""

    def load(path: Path, cache_dir: Path | None = None, **options: Any) -> LoadedModel:
        options = {"kernels": kernels, "name": path.name, **options}
        table = options.pop("kernels")
        return load_model(path, table, allocate, cache_dir=cache_dir, **options)

    return load


def allocate(nbytes: int) -> torch.Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)
