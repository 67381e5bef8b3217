"""Weights that wait in page-locked memory, over pages of main memory."""

from __future__ import annotations

import pytest
import torch

from engine.test_cuda_device import MainMemory
from tenfold.core.errors import ModelFileError
from tenfold.engine.cuda_weights import PinnedWeights
from tenfold.memory.backends import open_backend
from tenfold.memory.pool import PagePool

PAGE = 4096


def test_bytes_come_back_from_the_host_and_packing_is_for_when_it_has_none() -> None:
    pool = PagePool(open_backend("anon", PAGE), 8)
    space = pool.create("m", "weights", 3 * PAGE)
    whole = space.view((3 * PAGE,), torch.uint8)
    wanted = torch.arange(3 * PAGE, dtype=torch.int64).to(torch.uint8)
    packed: list[str] = []

    def pack() -> None:
        packed.append("again")
        if len(packed) == 2:
            raise ModelFileError("the file is gone")
        whole.copy_(wanted)

    copies = MainMemory()
    weights = PinnedWeights(space, pack, copies, lambda: None, lambda: packed.append("arrived"))
    assert weights.missing() <= 0 and weights.map()
    whole.copy_(wanted)
    weights.unmap()
    assert copies.waits == 1 and space.mapped_pages == 0 and not whole.any()
    assert weights.map()
    weights.fill()
    assert torch.equal(whole, wanted) and packed == [] and copies.waits == 2
    weights.unmap()
    weights.leave_host()
    weights.unmap()  # a model that paused has none mapped, and there is nothing to keep
    assert weights._host is None and copies.waits == 2
    assert weights.map()
    packed.append("before")
    with pytest.raises(ModelFileError):
        weights.fill()
    weights.unmap()
    assert weights._host is None  # what was half written is not kept
    assert weights.map()
    weights.fill()
    assert torch.equal(whole, wanted) and packed[-1] == "arrived"
    pool.close()
