"""paged_attention of every column against its definition; alike in any company and chunking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import COLUMNS, attend, attention_definition, make, paged
from torch import Tensor

from tenfold.core.types import KVDtype
from tenfold.kernels.kv_rows import KV_DTYPES

NATIVE = ("avx512", "avx2", "portable")


def assert_close(got: Tensor, want: Tensor, limit: float = 2e-6) -> None:
    assert torch.isfinite(got).all(), "something unread was read"
    worst = (got - want).abs().max() / want.abs().max()
    assert worst < limit, worst


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256, 8, 20, 6])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("column", COLUMNS)
def test_shapes(column: str, group: int, dim: int) -> None:
    case = paged([(37, 5), (0, 19), (300, 1)], heads=2 * group, kv_heads=2, dim=dim, seed=dim)
    assert_close(attend(make(column), case), attention_definition(case, scale=dim**-0.5))


@pytest.mark.parametrize("block_tokens", [1, 5, 16, 32, 512])
@pytest.mark.parametrize("window", [None, 1, 16, 100, 256, 1000])
@pytest.mark.parametrize("column", COLUMNS)
def test_windows_and_blocks(column: str, window: int | None, block_tokens: int) -> None:
    case = paged(
        [(500, 40), (3, 2), (255, 1), (256, 1)],
        heads=3, kv_heads=1, dim=16, block_tokens=block_tokens, window=window,
    )  # fmt: skip
    got = attend(make(column), case, window=window)
    assert_close(got, attention_definition(case, scale=0.25, window=window))


@pytest.mark.parametrize("column", COLUMNS)
def test_softcap_and_scale(column: str) -> None:
    case = paged([(90, 33), (0, 1)], heads=4, kv_heads=2, dim=64)
    for scale, softcap in ((0.3, 5.0), (0.01, 30.0), (2.0, 50.0)):
        got = attend(make(column), case, scale=scale, softcap=softcap)
        want = attention_definition(case, scale=scale, softcap=softcap)
        assert_close(got, want, limit=1e-5)  # a score near 50 is itself rounded by 2e-6


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("column", COLUMNS)
def test_random_batches(column: str, data: st.DataObject) -> None:
    context = st.integers(0, 60 if column == "torch" else 600)
    lengths = data.draw(st.lists(st.tuples(context, st.integers(0, 30)), min_size=1, max_size=4))
    window = data.draw(st.none() | st.integers(1, 400))
    group, kv_heads = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 3))
    dim = 2 * data.draw(st.integers(1, 40))
    case = paged(
        lengths, heads=group * kv_heads, kv_heads=kv_heads, dim=dim,
        block_tokens=data.draw(st.sampled_from([1, 16, 32])), window=window,
    )  # fmt: skip
    got = attend(make(column), case, scale=0.3, window=window)
    if got.numel():
        assert_close(got, attention_definition(case, scale=0.3, window=window))


@pytest.mark.parametrize("window", [None, 48, 300])
@pytest.mark.parametrize("group", [1, 3, 4, 16])
@pytest.mark.parametrize("column", COLUMNS)
def test_chunks_and_company_change_nothing(column: str, group: int, window: int | None) -> None:
    """A prompt in one call, in chunks of any size, token by token, and beside others."""
    kernels = make(column)
    total = 560 if column != "torch" else 150
    case = paged([(0, total)], heads=2 * group, kv_heads=2, dim=32, seed=group)
    whole = attend(kernels, case, window=window)
    g = torch.Generator().manual_seed(group)
    at = 0
    while at < total:
        size = int(torch.randint(1, 90, (), generator=g))
        end = min(total, at + size)
        part = kernels.paged_attention(
            case.q_THD[at:end], case.cache, 1, case.table_SB,
            torch.tensor([0, end - at], dtype=torch.int32),
            torch.tensor([at], dtype=torch.int32),
            scale=32**-0.5, window=window,
        )  # fmt: skip
        assert torch.equal(part, whole[at:end])
        at = end
    ones = torch.tensor([0, 1, 17, 47, 48, 49, 100, 149, *range(255, 260), 511, 559])
    ones = ones[ones < total]
    beside = kernels.paged_attention(
        case.q_THD[ones], case.cache, 1, case.table_SB.expand(len(ones), -1),
        torch.arange(len(ones) + 1, dtype=torch.int32), ones.to(torch.int32),
        scale=32**-0.5, window=window,
    )  # fmt: skip
    assert torch.equal(beside, whole[ones])


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("column", NATIVE)
def test_threads_change_nothing(column: str, tokens: int) -> None:
    case = paged([(900, tokens), (5, tokens)], heads=6, kv_heads=2, dim=64)
    results = [attend(make(column, threads), case) for threads in (1, 2, 3, 8)]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("dim", [20, 64, 72, 96, 128])
def test_wide_registers_change_nothing(dim: int, dtype: KVDtype) -> None:
    case = paged([(300, 1), (40, 2), (250, 30)], heads=6, kv_heads=2, dim=dim, dtype=dtype)
    for options in ({}, {"window": 100, "softcap": 3.0}):
        wide, narrow = (attend(make(column), case, **options) for column in ("avx512", "avx2"))
        assert torch.equal(wide, narrow)


def test_torch_threads_change_nothing() -> None:
    case, kernels = paged([(400, 30), (5, 3)], heads=6, kv_heads=2, dim=64), make("torch")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(attend(kernels, case))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("column", COLUMNS)
def test_nan_reaches_only_those_who_see_it(column: str) -> None:
    case = paged([(30, 40)], heads=3, kv_heads=1, dim=16)
    clean = attend(make(column), case, window=20)
    block, slot = int(case.table_SB[0, 50 // 16]), 50 % 16
    for part in (0, 1):
        dirty = case.cache[block, 1, part, 0, slot, 3].clone()
        case.cache[block, 1, part, 0, slot, 3] = torch.nan
        got = attend(make(column), case, window=20)
        case.cache[block, 1, part, 0, slot, 3] = dirty
        assert torch.equal(got[:20], clean[:20])  # positions 30..49 come before 50
        assert torch.isnan(got[20:40, :, 3]).all()


@pytest.mark.parametrize("column", COLUMNS)
def test_strided_queries_and_large_scores(column: str) -> None:
    case = paged([(70, 9)], heads=6, kv_heads=2, dim=24)
    wide = torch.randn(9, 10, 24) * 300
    case.q_THD = wide[:, 2:8]
    want = attention_definition(case, scale=24**-0.5)
    assert_close(attend(make(column), case), want, limit=1e-3)  # scores near 1000
