"""Back ends and pools over real memory of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tenfold.memory.backends import open_backend
from tenfold.memory.base import PageBackend
from tenfold.memory.pool import PagePool

SMALL = 64 << 10
LARGE = 2 << 20


@pytest.fixture(params=["anon", "memfd"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[SMALL, LARGE], ids=["64K", "2M"])
def page_bytes(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def backend(name: str, page_bytes: int) -> Iterator[PageBackend]:
    made = open_backend(name, page_bytes)
    yield made
    made.close()


@pytest.fixture
def make_pool(name: str) -> Iterator[Callable[..., PagePool]]:
    """Pools of small pages; each is checked against the system once more, then closed."""
    made: list[PagePool] = []

    def make(capacity: int = 16, **options: int) -> PagePool:
        made.append(PagePool(open_backend(name, SMALL), capacity, **options))
        return made[-1]

    yield make
    for pool in made:
        assert pool.check() == []
        pool.close()
