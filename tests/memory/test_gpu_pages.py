"""The promises of the CUDA back end on a real GPU. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tenfold.memory.backends import open_backend
from tenfold.memory.pool import PagePool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PAGE = 2 << 20


@pytest.fixture
def pool() -> Iterator[PagePool]:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    made = PagePool(open_backend("cuda", PAGE), capacity_pages=64)
    yield made
    made.close()


def test_tensors_over_mapped_pages_compute(pool: PagePool) -> None:
    weights = pool.create("a", "w", 8 * PAGE)
    assert weights.map_all()
    square = weights.view((1024, 1024), torch.float32)
    assert not square.any()
    square.copy_(torch.eye(1024))
    assert torch.equal(square @ square, torch.eye(1024, device=square.device))
    assert pool.check() == []


def test_pages_go_from_one_model_to_another_and_read_zero(pool: PagePool) -> None:
    one, two = pool.create("a", "kv", 32 * PAGE), pool.create("b", "kv", 64 * PAGE)
    assert one.map_all()
    one.view((32 * PAGE,), torch.uint8).fill_(7)
    one.unmap(range(8, 32))
    assert two.map(range(0, 48, 2))
    seen = two.view((64, PAGE), torch.uint8)
    assert not seen.any()  # mapped and unmapped pages alike
    assert int(one.view((32 * PAGE,), torch.uint8).count_nonzero()) == 8 * PAGE
    assert pool.check() == []


def test_the_devices_free_memory_moves(pool: PagePool) -> None:
    vrange = pool.create("a", "kv", 64 * PAGE)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    assert vrange.map_all()
    assert before - torch.cuda.mem_get_info()[0] >= 60 * PAGE
    vrange.unmap(range(64))
    assert abs(before - torch.cuda.mem_get_info()[0]) <= 4 * PAGE
