"""Fast mode: every row of the table gives the definition's bits; alike in any company."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import KINDS, QUANTISED, packed, random_raw
from torch import Tensor

from tenfold.core.errors import ModelFileError
from tenfold.kernels import exact
from tenfold.kernels.base import Kernels, WeightKind
from tenfold.kernels.checks import ShapeError
from tenfold.kernels.quant import block_of, dequantise
from tenfold.kernels.torch_fast import FOUR_BIT, TorchFastKernels, quantise, quantise_bytes

NATIVE = ("avx512", "avx2", "portable")


def fast(column: str, threads: int = 2) -> Kernels:
    if column == "torch":
        return TorchFastKernels()
    extension = pytest.importorskip("tenfold._native", reason="the extension is not built")
    from tenfold.kernels.native import NativeKernels

    try:
        return NativeKernels(extension, threads, column, "fast")
    except ShapeError as exc:
        pytest.skip(str(exc))


def ordinary(tokens: int, cols: int, seed: int = 0) -> Tensor:
    """Rows as models have them: one scale a row, a few columns far above the others."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, cols, generator=g) * torch.logspace(-3, 3, tokens)[:, None]
    x[:, :: max(1, cols // 3)] *= 300.0
    return x


def product(kernels: Kernels, kind: WeightKind, rows: int, x: Tensor, bias: bool = True) -> Tensor:
    cols = x.shape[1]
    weight = packed(kernels, kind, rows, cols, random_raw(kind, rows, cols, seed=rows + cols))
    b = torch.randn(rows, generator=torch.Generator().manual_seed(1)) if bias else None
    return kernels.linear(x, weight, b)


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("column", NATIVE)
def test_the_definition_s_bits(column: str, kind: WeightKind) -> None:
    kernels, reference = fast(column), fast("torch")
    x = ordinary(29, 512)
    want = product(reference, kind, 75, x)
    for tokens in (1, 2, 3, 4, 5, 8, 12, 13, 29):
        assert torch.equal(product(kernels, kind, 75, x[:tokens]), want[:tokens]), tokens


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("column", NATIVE)
def test_odd_shapes(column: str, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(QUANTISED))
    values = block_of(kind).values
    cols = values * data.draw(st.integers(1, max(1, 600 // values)))
    rows, tokens = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 40))
    wide = ordinary(tokens, cols + data.draw(st.integers(0, 5)), seed=rows)
    x = wide[:, :cols]
    bias = data.draw(st.booleans())
    got = product(fast(column), kind, rows, x, bias)
    assert got.shape == (tokens, rows)
    assert torch.equal(got, product(fast("torch"), kind, rows, x, bias))


@pytest.mark.parametrize("column", NATIVE)
def test_close_to_half_a_step(column: str) -> None:
    """One value of these lies so near to half a step that the last bit of 32512 / m decides."""
    x = ordinary(36, 416, seed=10)
    assert torch.equal(product(fast(column), "q4_0", 8, x), product(fast("torch"), "q4_0", 8, x))


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("column", [*NATIVE, "torch"])
def test_close_to_exact_products(column: str, kind: WeightKind) -> None:
    rows, cols, x = 40, 768, ordinary(9, 768)
    kernels = fast(column)
    raw = random_raw(kind, rows, cols, seed=3)
    got = kernels.linear(x, packed(kernels, kind, rows, cols, raw))
    w = dequantise(kind, rows, cols, raw).double()
    want = x.double() @ w.T
    # Half a step a column; a step is at most 2^-14 of the block's largest value (of bytes 1/127, if
    # the block is not fine). Then float32 sums of what the codes and the minima give apart.
    largest_TB = x.double().abs().unflatten(1, (-1, 32)).amax(-1)
    half_TB = torch.full_like(largest_TB, 2.0**-15)
    if kind in FOUR_BIT:
        fine = quantise_bytes(x).fine_TB
        assert 0 < fine.sum() < fine.numel()
        half_TB[~fine] = 0.503 / 127  # a value is rounded twice, to 1/256 of a step first
    largest = largest_TB.repeat_interleave(32, 1)
    rounding = (largest_TB * half_TB).repeat_interleave(32, 1) @ w.abs().T
    floats = largest @ (w.abs() + w.abs().amax()).T * 32 * 2.0**-24
    assert ((got - want).abs() <= rounding + floats).all()
    assert (got - want).abs().max() > 0


@pytest.mark.parametrize("column", NATIVE)
def test_extreme_values(column: str) -> None:
    x = torch.zeros(12, 256)
    x[1] = 1e-45
    x[2] = 2.0**-100
    x[3] = 1e30
    x[4] = -3e-38
    x[5] = torch.tensor([32767.5, -32768.0] * 128)  # one rounds out of range, one does not
    x[6, ::32] = 2.0**20  # an outlier in every block
    x[6, 1::32] = 1.0
    x[7] = 1.0 - 2.0**-24
    x[8] = -1.0 + 2.0**-24
    x[9, 5] = 2.0**-102
    x[10] = torch.linspace(-1, 1, 256)
    for kind in QUANTISED:
        want = product(fast("torch"), kind, 40, x)
        assert torch.isfinite(want).all()
        assert torch.equal(product(fast(column), kind, 40, x), want)


def test_zero_rows_give_the_bias() -> None:
    bias = torch.randn(33)
    kernels = fast("torch")
    weight = packed(kernels, "q4_1", 33, 64, random_raw("q4_1", 33, 64))
    assert torch.equal(kernels.linear(torch.zeros(3, 64), weight, bias), bias.expand(3, -1))


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("column", [*NATIVE, "torch"])
def test_infinities_and_nan_stay_in_their_row(column: str, kind: WeightKind) -> None:
    kernels = fast(column)
    weight = packed(kernels, kind, 64, 256, random_raw(kind, 64, 256))
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(1))
    clean = kernels.linear(x, weight)
    x[3, 7], x[5, 0], x[8, 255] = torch.nan, torch.inf, -torch.inf
    dirty = kernels.linear(x, weight)
    kept = [0, 1, 2, 4, 6, 7]
    assert torch.equal(dirty[kept], clean[kept])
    assert torch.isnan(dirty[[3, 5, 8]]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", [*NATIVE, "torch"])
def test_a_row_does_not_depend_on_its_company(column: str, kind: WeightKind) -> None:
    kernels = fast(column)
    weight = packed(kernels, kind, 70, 256, random_raw(kind, 70, 256))
    x = ordinary(260, 256)
    everything = kernels.linear(x, weight)
    g = torch.Generator().manual_seed(2)
    for size in [*range(1, 27), 33, 250] if column != "torch" else [1, 7, 100]:
        picked = torch.randperm(260, generator=g)[:size]
        assert torch.equal(kernels.linear(x[picked], weight), everything[picked])


@pytest.mark.parametrize("tokens", [1, 4, 16, 300])
@pytest.mark.parametrize("column", NATIVE)
def test_threads_change_nothing(column: str, tokens: int) -> None:
    x = ordinary(tokens, 576)
    results = []
    for threads in (1, 2, 3, 7):
        kernels = fast(column, threads)
        results.append(product(kernels, "q8_0", 333, x))
        kernels.close()
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.slow
@pytest.mark.parametrize("column", NATIVE)
def test_a_whole_prompt(column: str) -> None:
    x = ordinary(4096, 576)
    got = product(fast(column), "q4_1", 200, x)
    assert torch.equal(got[::511], product(fast("torch"), "q4_1", 200, x[::511]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", [*NATIVE, "torch"])
def test_embed_gives_the_checkpoint_s_values(column: str, kind: WeightKind) -> None:
    kernels = fast(column)
    raw = random_raw(kind, 70, 512)
    ids = torch.randint(0, 70, (90,), dtype=torch.int32)
    got = kernels.embed(ids, packed(kernels, kind, 70, 512, raw), 2.0)
    want = dequantise(kind, 70, 512, raw)[ids.long()] * 2.0
    if column == "torch" and block_of(kind).values == 1:  # the reference's grid of 26 bits
        assert ((got - want).abs() <= want.abs().amax(1, keepdim=True) * 2.0**-26).all()
    else:
        assert torch.equal(got, want)


def test_wide_registers_change_nothing_in_exact_mode() -> None:
    extension = pytest.importorskip("tenfold._native")
    from tenfold.kernels.native import NativeKernels

    try:
        wide = NativeKernels(extension, 2, "avx512")
    except ShapeError as exc:
        pytest.skip(str(exc))
    narrow = NativeKernels(extension, 2, "avx2")
    for kind in KINDS:
        for tokens in (1, 3, 6, 20):
            x = ordinary(tokens, 768)
            assert torch.equal(product(wide, kind, 75, x), product(narrow, kind, 75, x))
    x, weight = ordinary(5, 130), torch.rand(130)
    assert torch.equal(wide.rms_norm(x, weight, 1e-5), narrow.rms_norm(x, weight, 1e-5))
    for activation in ("silu", "gelu_tanh"):
        assert torch.equal(wide.gated(x, activation), narrow.gated(x, activation))


def test_steps() -> None:
    x = torch.zeros(1, 96)
    x[0, :3] = torch.tensor([1.0, -0.5, 2.0**-16])
    x[0, 32:34] = torch.tensor([0.999, 1.5 * 2.0**-15])
    steps = quantise(x)
    assert steps.step_TB.tolist() == [[2.0**-14, 2.0**-15, 2.0**-101]]
    assert steps.values_TI[0, [0, 1, 2, 32, 33, 64]].tolist() == [16384, -8192, 0, 32735, 2, 0]


def test_bytes() -> None:
    x = torch.zeros(1, 128)
    x[0, :3] = torch.tensor([1.27, -0.635, 0.0149])
    x[0, 32:34] = torch.tensor([127.0, -126.4])
    x[0, 64] = 40.0
    steps = quantise_bytes(x)
    assert steps.fine_TB.tolist() == [
        [False, True, False, False]
    ]  # 127 > 1.5 * (1.27 + 127 + 40) / 4
    assert torch.allclose(steps.step_TB, torch.tensor([[0.01, 1.0, 40 / 127, 2.0**-87 / 127]]))
    assert steps.high_TI[0, [0, 1, 2, 32, 33, 64, 96]].tolist() == [127, -63, 1, 127, -126, 127, 0]
    # -0.635 lies between two steps: exactly half of 1.27, and floor((-16256 + 128) / 256) = -63
    assert steps.low_TI[0, [0, 1, 2, 32, 33, 64, 96]].tolist() == [0, 0, 0, 0, -102, 0, 0]


def test_blocks_that_stand_out_lose_little() -> None:
    """The definition's reason to be: an outlier's block is as good as in 16 bits."""
    x = torch.randn(8, 512, generator=torch.Generator().manual_seed(5))
    x[:, 40] = 60.0
    steps = quantise_bytes(x)
    back = (steps.high_TI + steps.low_TI / 256.0).unflatten(1, (-1, 32)) * steps.step_TB[..., None]
    error = (back - x.unflatten(1, (-1, 32))).abs().amax(-1)
    assert steps.fine_TB[:, 1].all() and not steps.fine_TB[:, 2:].any()
    assert (error[:, 1] <= 60.0 * 2.0**-15).all()
    assert (error <= x.abs().unflatten(1, (-1, 32)).amax(-1) * (0.503 / 127)).all()


@given(st.data())
def test_fma_rounds_once(data: st.DataObject) -> None:
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    a, b, c = (data.draw(number) for _ in range(3))
    got = exact.fma(*(torch.tensor([v], dtype=torch.float32) for v in (a, b, c)))
    true = Fraction(a) * Fraction(b) + Fraction(c)
    if not torch.isfinite(got).all():
        assert abs(true) >= Fraction(torch.finfo(torch.float32).max)
        return
    near = [got, torch.nextafter(got, torch.tensor(torch.inf))]
    near.append(torch.nextafter(got, torch.tensor(-torch.inf)))
    errors = [abs(Fraction(n.item()) - true) for n in near if torch.isfinite(n).all()]
    assert errors[0] == min(errors)


@pytest.mark.parametrize("kind", QUANTISED)
def test_torch_refuses_infinities(kind: WeightKind) -> None:
    raw = random_raw(kind, 40, 256)
    at = 208 if kind == "q6_k" else 0
    raw[at : at + block_of(kind).bytes][:4] = 0xFF
    kernels = fast("torch")
    out = torch.empty(kernels.packed_bytes(kind, 40, 256), dtype=torch.uint8)
    with pytest.raises(ModelFileError, match="infinities or NaN"):
        kernels.pack(kind, 40, 256, raw, out)
