"""linear, embed and pack of every column against float64; alike in any company and thread count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import COLUMNS, KINDS, QUANTISED, make, packed, random_raw
from torch import Tensor

from tenfold.core.errors import ModelFileError
from tenfold.kernels.base import Kernels, WeightKind
from tenfold.kernels.quant import block_of, dequantise

ROUNDING = 2.0**-24


def check_linear(kernels: Kernels, kind: WeightKind, rows: int, cols: int, x: Tensor) -> Tensor:
    raw = random_raw(kind, rows, cols, seed=rows * 7 + cols)
    weight = packed(kernels, kind, rows, cols, raw)
    bias = torch.randn(rows, generator=torch.Generator().manual_seed(1))
    got = kernels.linear(x, weight, bias)
    w = dequantise(kind, rows, cols, raw).double()
    want = x.double() @ w.T + bias
    size = x.double().abs() @ w.abs().T + bias.abs()
    assert got.shape == want.shape and got.dtype is torch.float32
    worst = ((got - want).abs() / size).max()
    # A float32 sum of a chunk of 256, in random directions: far below 256 roundings.
    assert worst <= 24 * ROUNDING, worst
    return got


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 6, 7, 16, 29])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", COLUMNS)
def test_every_kind(column: str, kind: WeightKind, tokens: int) -> None:
    x = torch.randn(tokens, 768, generator=torch.Generator().manual_seed(tokens))
    check_linear(make(column), kind, 80, 768, x)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("column", COLUMNS)
def test_odd_shapes(column: str, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    values = block_of(kind).values
    cols = values * data.draw(st.integers(1, max(1, 600 // values)))
    rows, tokens = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 40))
    spare = data.draw(st.integers(0, 5))
    wide = torch.randn(tokens, cols + spare, generator=torch.Generator().manual_seed(rows))
    check_linear(make(column), kind, rows, cols, wide[:, :cols])


@pytest.mark.parametrize("column", COLUMNS)
def test_many_rows(column: str) -> None:
    x = torch.randn(600, 576, generator=torch.Generator().manual_seed(5))
    check_linear(make(column), "q4_1", 200, 576, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_row_does_not_depend_on_its_company(column: str, kind: WeightKind) -> None:
    kernels = make(column)
    weight = packed(kernels, kind, 144, 1280, random_raw(kind, 144, 1280))
    g = torch.Generator().manual_seed(2)
    x = torch.randn(260, 1280, generator=g) * torch.logspace(-3, 3, 260)[:, None]
    alone = torch.cat([kernels.linear(row[None], weight) for row in x[:32]])
    everything = kernels.linear(x, weight)
    assert torch.equal(everything[:32], alone)
    for size in [*range(2, 20), 33, 250] if column != "torch" else [2, 7, 16, 100]:
        picked = torch.randperm(260, generator=g)[:size]
        assert torch.equal(kernels.linear(x[picked], weight), everything[picked])


@pytest.mark.parametrize("tokens", [1, 4, 16, 300])
@pytest.mark.parametrize("column", COLUMNS[:-1])
def test_threads_change_nothing(column: str, tokens: int) -> None:
    x = torch.randn(tokens, 576, generator=torch.Generator().manual_seed(4))
    raw = random_raw("q8_0", 333, 576)
    results = []
    for threads in (1, 2, 3, 7):
        kernels = make(column, threads)
        results.append(kernels.linear(x, packed(kernels, "q8_0", 333, 576, raw)))
        kernels.close()
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("tokens", [1, 4, 16, 100])
def test_torch_threads_change_nothing(tokens: int) -> None:
    kernels = make("torch")
    x = torch.randn(tokens, 576, generator=torch.Generator().manual_seed(4))
    weight = packed(kernels, "q4_1", 700, 576, random_raw("q4_1", 700, 576))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kernels.linear(x, weight))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("column", COLUMNS)
def test_infinities_and_nan_stay_in_their_row(column: str) -> None:
    kernels = make(column)
    weight = packed(kernels, "q8_0", 64, 256, random_raw("q8_0", 64, 256))
    x = torch.randn(9, 256)
    clean = kernels.linear(x, weight)
    x[3, 7], x[5, 0], x[8, 255] = torch.nan, torch.inf, -torch.inf
    dirty = kernels.linear(x, weight)
    kept = [0, 1, 2, 4, 6, 7]
    assert torch.equal(dirty[kept], clean[kept])
    assert not torch.isfinite(dirty[[3, 5, 8]]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", COLUMNS[:-1])
def test_embed_gives_the_checkpoint_s_values(column: str, kind: WeightKind) -> None:
    kernels = make(column)
    raw = random_raw(kind, 70, 512)
    ids = torch.randint(0, 70, (90,), dtype=torch.int32)
    weight = packed(kernels, kind, 70, 512, raw)
    assert torch.equal(kernels.embed(ids, weight), dequantise(kind, 70, 512, raw)[ids.long()])


@pytest.mark.parametrize("kind", KINDS)
def test_torch_embed_is_within_its_grid(kind: WeightKind) -> None:
    kernels = make("torch")
    raw = random_raw(kind, 70, 512)
    want = dequantise(kind, 70, 512, raw)
    got = kernels.embed(torch.arange(70, dtype=torch.int32), packed(kernels, kind, 70, 512, raw))
    assert ((got - want).abs() <= want.abs().amax(1, keepdim=True) * 2.0**-26).all()


@pytest.mark.parametrize("column", COLUMNS)
def test_no_tokens(column: str) -> None:
    kernels = make(column)
    weight = packed(kernels, "q8_0", 40, 64, random_raw("q8_0", 40, 64))
    assert kernels.linear(torch.empty(0, 64), weight).shape == (0, 40)
    assert kernels.embed(torch.empty(0, dtype=torch.int32), weight).shape == (0, 64)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", *QUANTISED])
@pytest.mark.parametrize("column", COLUMNS)
def test_pack_refuses_infinities(column: str, kind: WeightKind) -> None:
    kernels = make(column)
    raw = random_raw(kind, 40, 256)
    at = 208 if kind == "q6_k" else 0
    raw[at : at + block_of(kind).bytes][:4] = 0xFF  # NaN as float32, float16 and bfloat16
    out = torch.empty(kernels.packed_bytes(kind, 40, 256), dtype=torch.uint8)
    with pytest.raises(ModelFileError, match="infinities or NaN"):
        kernels.pack(kind, 40, 256, raw, out)
