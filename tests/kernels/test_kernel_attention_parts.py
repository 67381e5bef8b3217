"""Sinks and the log-sum-exp of paged_attention: what they mean, and merging parts with them."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import COLUMNS, Paged, attend, attention_and_lse, make, paged
from torch import Tensor

from tenfold.kernels.base import Kernels
from tenfold.kernels.checks import ShapeError

HEADS = 6


def call(
    kernels: Kernels, case: Paged, table: Tensor, context: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    """Every query as a sequence of its own, with its own ``context``."""
    tokens = case.q_THD.shape[0]
    lse = torch.empty(case.q_THD.shape[:2])
    out = kernels.paged_attention(
        case.q_THD, case.cache, 1, table.expand(tokens, -1),
        torch.arange(tokens + 1, dtype=torch.int32), context.to(torch.int32),
        scale=0.2, lse_TH=lse, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return out, lse


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint positions, from each part's result."""
    lse = torch.stack([part for _, part in parts])
    whole = lse.logsumexp(0)
    shares = (lse - whole).exp()
    return sum(out * w[:, :, None] for (out, _), w in zip(parts, shares, strict=True)), whole  # type: ignore[return-value]


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "int8"])
@pytest.mark.parametrize("column", COLUMNS)
def test_two_halves_make_the_whole(column: str, dtype: str, sinks: bool) -> None:
    """A context cut at a block: the second half is its own sequence, its table cut as well. The
    sink, if there is one, belongs to one of the halves."""
    kernels, tokens, cut = make(column), 9, 128
    case = paged([(300, tokens)], heads=HEADS, kv_heads=2, dim=24, dtype=dtype)  # type: ignore[arg-type]
    positions = torch.arange(300, 300 + tokens)
    extra = {"sinks_H": 3 * torch.randn(HEADS)} if sinks else {}
    whole = call(kernels, case, case.table_SB, positions, **extra)
    first = call(kernels, case, case.table_SB, torch.full((tokens,), cut - 1), **extra)
    second = call(kernels, case, case.table_SB[:, cut // 16 :], positions - cut)
    for got, want in zip(merge([first, second]), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-6)
    wrong, _ = merge([second, second])
    assert (wrong - whole[0]).abs().max() > 1e-2


@pytest.mark.parametrize("column", COLUMNS)
def test_a_window_and_what_lies_before_it(column: str) -> None:
    kernels, tokens = make(column), 5
    case = paged([(600, tokens)], heads=HEADS, kv_heads=1, dim=32)
    positions = torch.arange(600, 600 + tokens)
    whole = call(kernels, case, case.table_SB, positions)
    near = call(kernels, case, case.table_SB, positions, window=100)
    far = call(kernels, case, case.table_SB, positions - 100)
    for got, want in zip(merge([near, far]), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("size", [-60.0, 0.0, 4.0, 60.0])
@pytest.mark.parametrize("column", COLUMNS)
def test_sinks(column: str, size: float) -> None:
    """From a sink that takes nothing to one that takes all; other heads' sinks do not matter."""
    case = paged([(290, 3), (0, 40)], heads=HEADS, kv_heads=2, dim=16)
    sinks = torch.randn(HEADS) + size
    lse = torch.empty(43, HEADS)
    got = attend(make(column), case, scale=0.3, sinks_H=sinks, lse_TH=lse)
    want, want_lse = attention_and_lse(case, scale=0.3, sinks=sinks)
    torch.testing.assert_close(got.double(), want, rtol=4e-6, atol=float(want.abs().max()) * 2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=2e-6)
    if size == 60.0:
        assert got.abs().max() < 1e-18
    one = sinks.clone()
    one[4] = 2.0
    other = attend(make(column), case, scale=0.3, sinks_H=one)
    assert torch.equal(other[:, [0, 1, 2, 3, 5]], got[:, [0, 1, 2, 3, 5]])


@pytest.mark.parametrize("column", COLUMNS)
def test_asking_changes_nothing(column: str) -> None:
    case = paged([(290, 3), (0, 40)], heads=HEADS, kv_heads=2, dim=16)
    lse = torch.empty(43, HEADS)
    assert torch.equal(attend(make(column), case, lse_TH=lse), attend(make(column), case))
    nothing = torch.full((HEADS,), -torch.inf)
    plain = attend(make(column), case, sinks_H=nothing)
    torch.testing.assert_close(plain, attend(make(column), case), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("column", COLUMNS)
def test_shapes_are_checked(column: str) -> None:
    case = paged([(3, 2)], heads=HEADS, kv_heads=2, dim=16)
    with pytest.raises(ShapeError, match="sinks has 5 values, needs 6"):
        attend(make(column), case, sinks_H=torch.zeros(5))
    for lse in (torch.empty(2, 5), torch.empty(6, 2).T):
        with pytest.raises(ShapeError, match="lse must be"):
            attend(make(column), case, lse_TH=lse)
