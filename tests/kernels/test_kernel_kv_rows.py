"""What a cached row of each type holds, in every column, and that nothing else decides it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import COLUMNS, make
from torch import Tensor

from tenfold.core.types import KVDtype, KVGroup
from tenfold.kernels.kv_rows import KV_DTYPES, decode, encode, kv_dtype_of, kv_row

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
HARD = torch.tensor(
    [
        *[0.0, -0.0, 1.0, -1.0, 65504.0, 65519.0, 65520.0, 1e30, 3.3895314e38],
        *[6.1e-5, 5.96e-8, 2.98e-8, 2.9803e-8, 1e-40, 1e-45, 2.0**-14, 0.1, -0.3, 3.5],
        *[2.0**-14 - 2.0**-25, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8],
        *[127.5, 2.5, 65536.0],
    ]
)
"""Ties, ends of ranges, subnormal numbers of float16 and of float32."""


def empty_cache(dtype: KVDtype, dim: int, heads: int = 2) -> Tensor:
    """A strided one: every other block of a larger tensor, its layers further apart than dense."""
    row, kind = kv_row(dtype, dim)
    return torch.zeros(8, 3, 2, heads, 5, row, dtype=kind)[::2, :2]


def test_types_and_sizes() -> None:
    for dtype in KV_DTYPES:
        row, kind = kv_row(dtype, 20)
        assert kind is TORCH[dtype]
        assert row * kind.itemsize == KVGroup("g", (0,), 1, 20, dtype=dtype).row_bytes
        assert kv_dtype_of(torch.empty(0, dtype=kind)) == dtype
    assert kv_dtype_of(torch.empty(0, dtype=torch.uint8)) is None
    assert KVGroup("g", (3, 4), 3, 64, dtype="int8").block_bytes(16) == 2 * 2 * 3 * 16 * 68


def test_int8_by_hand() -> None:
    rows = encode(torch.tensor([[2.54, -1.27, 0.004, 0.016]]), torch.int8)
    assert rows[0, :4].tolist() == [127, -64, 0, 1]  # -63.5 to the even neighbour
    assert rows[0, 4:].contiguous().view(torch.float32).item() == pytest.approx(0.02)
    assert torch.equal(decode(encode(torch.zeros(3, 4), torch.int8)), torch.zeros(3, 4).double())


@given(seed=st.integers(0, 1 << 30), power=st.integers(-44, 37), dim=st.integers(1, 40))
def test_int8_is_within_half_a_step(seed: int, power: int, dim: int) -> None:
    x = torch.randn(5, dim, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    step = x.abs().amax(-1, keepdim=True).double() / 127
    assert ((decode(encode(x, torch.int8)) - x).abs() <= step * 0.50001 + 1e-43).all()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("column", COLUMNS)
def test_store(column: str, dtype: KVDtype, data: st.DataObject) -> None:
    """Every column writes the same bytes, those and no others, from strided input."""
    tokens, dim = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 70))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    wide = torch.randn(tokens, 7, dim, generator=g) * 10.0 ** data.draw(st.integers(-42, 36))
    k, v = wide[:, 1:3], wide[:, 4:6]
    slots = torch.randperm(20, generator=g)[:tokens].to(torch.int32)
    cache = empty_cache(dtype, dim)
    make(column).store_kv(k, v, cache, 1, slots)
    want = empty_cache(dtype, dim)
    for t, slot in enumerate(slots.tolist()):
        want[slot // 5, 1, 0, :, slot % 5] = encode(k[t], TORCH[dtype])
        want[slot // 5, 1, 1, :, slot % 5] = encode(v[t], TORCH[dtype])
    assert torch.equal(cache.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("column", COLUMNS)
def test_hard_numbers(column: str, dtype: KVDtype) -> None:
    slots = torch.tensor([7], dtype=torch.int32)
    for x in (HARD, -HARD, torch.where(HARD > 60000, 0.5, HARD), HARD * 1e-40, HARD[:3]):
        k = x.view(1, 1, -1)
        cache = empty_cache(dtype, x.numel(), heads=1)
        make(column).store_kv(k, k, cache, 0, slots)
        got, want = cache[1, 0, 1, 0, 2], encode(x, TORCH[dtype])
        assert torch.equal(got.contiguous().view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("column", COLUMNS)
def test_what_is_not_finite_stays_so(column: str, dtype: KVDtype, bad: float) -> None:
    k = torch.ones(3, 2, 19)
    k[1, 0, 17] = bad
    cache = empty_cache(dtype, 19)
    make(column).store_kv(k, k, cache, 0, torch.tensor([0, 6, 12], dtype=torch.int32))
    read = decode(cache)
    assert torch.isfinite(read[0, 0, :, :, 0]).all() and torch.isfinite(read[1, 0, :, 1, 1]).all()
    assert not torch.isfinite(read[1, 0, :, 0, 1, 17]).any()


@pytest.mark.parametrize("column", ["avx2", "portable"])
def test_many_rows_on_many_threads(column: str) -> None:
    k, v = torch.randn(2, 700, 3, 64)
    slots = torch.randperm(800)[:700].to(torch.int32)
    for dtype in KV_DTYPES:
        row, kind = kv_row(dtype, 64)
        caches = [torch.zeros(50, 1, 2, 3, 16, row, dtype=kind) for _ in range(3)]
        for threads, cache in zip((1, 2, 5), caches, strict=True):
            make(column, threads).store_kv(k, v, cache, 0, slots)
        assert torch.equal(caches[0], caches[1]) and torch.equal(caches[0], caches[2])
        make("torch").store_kv(k, v, caches[1], 0, slots)
        assert torch.equal(caches[0], caches[1])
