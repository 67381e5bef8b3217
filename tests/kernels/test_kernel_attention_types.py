"""paged_attention over caches of every type and of odd shapes, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import COLUMNS, Paged, attend, attention_and_lse, make, paged
from torch import Tensor

from tenfold.core.types import KVDtype
from tenfold.kernels.checks import ShapeError
from tenfold.kernels.kv_rows import KV_DTYPES, encode

NATIVE = ("avx512", "avx2", "portable")
DIMS = [64, 80, 96, 128, 256]


def worst(got: Tensor, want: Tensor) -> float:
    """Largest difference as a share of the largest value; infinite where one is not finite."""
    if not torch.isfinite(got).all():
        return torch.inf
    return float((got - want).abs().max() / want.abs().max())


def strided(case: Paged) -> Paged:
    """The same case with queries, cache blocks and table further apart than dense."""
    tokens, heads, dim = case.q_THD.shape
    q = torch.full((tokens, heads + 3, dim), torch.nan)
    q[:, 2:-1] = case.q_THD
    table = torch.full((case.table_SB.shape[0], case.table_SB.shape[1] + 5), 99, dtype=torch.int32)
    table[:, :-5] = case.table_SB
    blocks, layers, pair, heads, tokens, row = case.cache.shape
    cache = case.cache.new_zeros(blocks, layers, heads, pair, tokens + 1, row).transpose(2, 3)
    cache[..., :-1, :] = case.cache
    case.q_THD, case.table_SB, case.cache = q[:, 2:-1], table[:, :-5], cache[..., :-1, :]
    return case


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("column", COLUMNS)
def test_each_type(column: str, dim: int, dtype: KVDtype) -> None:
    case = paged([(270, 33), (0, 19), (300, 1)], heads=6, kv_heads=2, dim=dim, dtype=dtype)
    want, want_lse = attention_and_lse(case, scale=dim**-0.5)
    lse = torch.empty(case.q_THD.shape[:2])
    assert worst(attend(make(column), strided(case), lse_TH=lse), want) < 2e-6
    assert worst(lse, want_lse) < 1e-6


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("column", COLUMNS)
def test_anything(column: str, data: st.DataObject) -> None:
    """Shapes, types, windows, caps, sinks and strides together."""
    few = column == "torch"
    context = st.integers(0, 60 if few else 700)
    new = st.one_of(st.just(1), st.integers(0, 30 if few else 90))
    lengths = data.draw(st.lists(st.tuples(context, new), min_size=1, max_size=4))
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 16))
    dim = data.draw(st.sampled_from(DIMS) | st.integers(1, 40))
    window = data.draw(st.none() | st.integers(1, 400))
    softcap = data.draw(st.none() | st.sampled_from([5.0, 30.0]))
    sinks = 4 * torch.randn(group * kv_heads) if data.draw(st.booleans()) else None
    case = paged(
        lengths, heads=group * kv_heads, kv_heads=kv_heads, dim=dim, window=window,
        block_tokens=data.draw(st.sampled_from([16, 32, 7])),
        dtype=data.draw(st.sampled_from(KV_DTYPES)), seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    if data.draw(st.booleans()):
        strided(case)
    lse = torch.empty(case.q_THD.shape[:2])
    got = attend(make(column), case, window=window, softcap=softcap, sinks_H=sinks, lse_TH=lse)
    if got.numel():
        want, want_lse = attention_and_lse(
            case, scale=dim**-0.5, window=window, softcap=softcap, sinks=sinks
        )
        assert worst(got, want) < 4e-6
        assert (lse - want_lse).abs().max() < 4e-6 * max(1.0, float(want_lse.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_long_prompt(column: str, dtype: KVDtype) -> None:
    tokens = 1024 if column == "torch" else 4096
    case = paged([(0, tokens), (tokens, 1)], heads=3, kv_heads=1, dim=64, dtype=dtype)
    assert worst(attend(make(column), case), attention_and_lse(case, scale=0.125)[0]) < 4e-6


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("column", NATIVE)
def test_many_short_sequences(column: str, dtype: KVDtype) -> None:
    lengths = [(i * 37 % 90, 1 + (i % 9 == 0) * 20) for i in range(300)]
    case = paged(lengths, heads=4, kv_heads=2, dim=32, dtype=dtype, block_tokens=32)
    want = attention_and_lse(case, scale=32**-0.5)[0]
    assert worst(attend(make(column), case), want) < 4e-6


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("column", COLUMNS)
def test_chunks_company_and_threads_change_nothing(column: str, group: int, dtype: KVDtype) -> None:
    """Prompts in one call, in chunks, token by token beside each other, on one thread or three."""
    total = 300 if column != "torch" else 60
    g = torch.Generator().manual_seed(group)
    case = paged([(0, total)], heads=2 * group, kv_heads=2, dim=40, seed=group, dtype=dtype)
    sinks = torch.randn(2 * group)
    whole_lse = torch.empty(total, 2 * group)
    options = {"window": 40 if column == "torch" else 200, "sinks_H": sinks, "scale": 0.2}
    whole = attend(make(column, 3), case, lse_TH=whole_lse, **options)
    kernels, at = make(column, 1), 0
    while at < total:
        end = min(total, at + int(torch.randint(1, 60, (), generator=g)))
        lse = torch.empty(end - at, 2 * group)
        part = kernels.paged_attention(
            case.q_THD[at:end], case.cache, 1, case.table_SB,
            torch.tensor([0, end - at], dtype=torch.int32),
            torch.tensor([at], dtype=torch.int32), lse_TH=lse, **options,
        )  # fmt: skip
        assert torch.equal(part, whole[at:end]) and torch.equal(lse, whole_lse[at:end])
        at = end
    alone = kernels.paged_attention(
        case.q_THD, case.cache, 1, case.table_SB.expand(total, -1),
        torch.arange(total + 1, dtype=torch.int32), torch.arange(total, dtype=torch.int32),
        **options,
    )  # fmt: skip
    assert torch.equal(alone, whole)


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("column", COLUMNS)
def test_an_int8_row_that_is_not_finite_reaches_only_those_who_see_it(
    column: str, tokens: int
) -> None:
    case = paged([(30, tokens)], heads=3, kv_heads=1, dim=16, dtype="int8")
    clean = attend(make(column), case, window=20)
    broken = encode(torch.full((16,), torch.nan), torch.int8)
    for position, seen in ((30, slice(0, 20)), (10, slice(0, 0)), (11, slice(0, 1))):
        block, slot = int(case.table_SB[0, position // 16]), position % 16
        for part in (0, 1):
            row = case.cache[block, 1, part, 0, slot]
            kept = row.clone()
            row.copy_(broken)
            got = attend(make(column), case, window=20)
            row.copy_(kept)
            rest = slice(seen.stop, tokens)
            assert torch.isnan(got[seen]).all() and torch.equal(got[rest], clean[rest])


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("column", NATIVE)
def test_a_page_moved_as_bytes_is_the_same(column: str, dtype: KVDtype) -> None:
    case = paged([(40, 1)], heads=2, kv_heads=2, dim=20, dtype=dtype)
    want = attend(make(column), case)
    cache, table = case.cache.contiguous(), case.table_SB
    order = torch.randperm(cache.shape[0])
    moved = cache.view(torch.uint8).flatten(1)[order].view(cache.dtype).view(cache.shape)
    case.cache, case.table_SB = moved, order.argsort()[table.long()].to(torch.int32)
    assert torch.equal(attend(make(column), case), want)


@pytest.mark.parametrize("column", COLUMNS)
def test_rows_of_the_wrong_length(column: str) -> None:
    case = paged([(3, 1)], heads=2, kv_heads=2, dim=8, dtype="int8")
    case.cache = case.cache[..., :8]
    with pytest.raises(ShapeError, match="block tokens, 12"):
        attend(make(column), case)
    case.cache = case.cache.view(torch.uint8)
    with pytest.raises(ShapeError, match="uint8"):
        attend(make(column), case)
