"""rms_norm, gated, rope and store_kv of every column against float64 and their own repetition."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import COLUMNS, make
from torch import Tensor

SIZES = [1, 7, 8, 31, 32, 64, 100, 576]


def close(got: Tensor, want: Tensor, roundings: float = 8) -> bool:
    return bool(torch.allclose(got.double(), want, rtol=roundings * 2.0**-24, atol=1e-30))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("column", COLUMNS)
def test_rms_norm(column: str, n: int) -> None:
    kernels = make(column)
    g = torch.Generator().manual_seed(n)
    x, weight = torch.randn(23, n, generator=g) * 3, torch.randn(n, generator=g)
    want = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    got = kernels.rms_norm(x, weight, 1e-6)
    assert close(got, want)
    for rows in (slice(0, 1), slice(5, 6), slice(3, 20)):
        assert torch.equal(kernels.rms_norm(x[rows], weight, 1e-6), got[rows])


@pytest.mark.parametrize("column", COLUMNS)
def test_rms_norm_of_strided_heads(column: str) -> None:
    kernels = make(column)
    qkv = torch.randn(11, 5 * 64)
    heads = qkv.view(11, 5, 64)[:, 1:4]
    weight = torch.randn(64)
    got = kernels.rms_norm(heads, weight, 1e-6)
    assert got.shape == (11, 3, 64)
    rows = kernels.rms_norm(heads.reshape(-1, 64), weight, 1e-6)
    assert torch.equal(got.view(-1, 64), rows)
    four = heads.reshape(11, 3, 1, 64)
    assert torch.equal(kernels.rms_norm(four, weight, 1e-6), got.view(four.shape))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("column", COLUMNS)
def test_gated(column: str, n: int, activation: str) -> None:
    kernels = make(column)
    g = torch.Generator().manual_seed(n)
    x = torch.randn(19, 2 * n, generator=g) * torch.logspace(-2, 1.5, 19)[:, None]
    gate, up = x.double().chunk(2, -1)
    if activation == "silu":
        want = torch.nn.functional.silu(gate) * up
    else:
        want = torch.nn.functional.gelu(gate, approximate="tanh") * up
    got = kernels.gated(x, activation)  # type: ignore[arg-type]
    # gelu's float64 tail cancels in torch's own formula; compare where it still has digits.
    solid = want.abs() > 1e-10 * up.abs()
    assert close(got[solid], want[solid], 64)
    assert torch.equal(kernels.gated(x[4:5], activation), got[4:5])  # type: ignore[arg-type]


@pytest.mark.parametrize("column", COLUMNS)
def test_gated_at_the_ends(column: str) -> None:
    gate = torch.tensor([[200.0, -200.0, 0.0, torch.nan, 1e30, -1e30, 88.0, -88.0]])
    got = make(column).gated(torch.cat([gate, torch.ones_like(gate)], 1), "silu")[0]
    assert got[0] == 200 and got[4] == 1e30 and got[6] == 88
    assert torch.isnan(got[3]) and got[2] == 0 and got[[1, 7]].abs().max() < 1e-30
    assert got[5].abs() < 1  # x e^x underflows; the exponent is limited


@pytest.mark.parametrize("dim", [2, 8, 20, 64, 80, 256])
@pytest.mark.parametrize("column", COLUMNS)
def test_rope(column: str, dim: int) -> None:
    kernels = make(column)
    qkv = torch.randn(13, 6, dim)
    before = qkv.clone()
    angle = torch.rand(40, dim // 2, dtype=torch.float64) * 6
    positions = torch.randint(0, 40, (13,), dtype=torch.int32)
    heads = qkv[:, 1:4]
    kernels.rope(heads, positions, angle.cos().float(), angle.sin().float())
    cos, sin = (t[positions.long()][:, None] for t in (angle.cos(), angle.sin()))
    a, b = before[:, 1:4].double().chunk(2, -1)
    want = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    assert torch.allclose(heads.double(), want, atol=1e-6)
    assert torch.equal(qkv[:, :1], before[:, :1]) and torch.equal(qkv[:, 4:], before[:, 4:])
    one = before[6:7, 1:4].clone()
    kernels.rope(one, positions[6:7], angle.cos().float(), angle.sin().float())
    assert torch.equal(one, heads[6:7])


@pytest.mark.parametrize("block_tokens", [1, 16, 32])
@pytest.mark.parametrize("column", COLUMNS)
def test_store_kv(column: str, block_tokens: int) -> None:
    kernels = make(column)
    tokens, kv_heads, dim = 37, 3, 20
    spaced = torch.zeros(40, 4, 2, kv_heads, block_tokens, dim)
    cache = spaced[:, :3]
    qkv = torch.randn(tokens, 2 * kv_heads + 5, dim)
    k, v = qkv[:, 5 : 5 + kv_heads], qkv[:, 5 + kv_heads :]
    slots = torch.randperm(40 * block_tokens)[:tokens].to(torch.int32)
    want = spaced.clone()
    for t, slot in enumerate(slots.tolist()):
        want[slot // block_tokens, 1, 0, :, slot % block_tokens] = k[t]
        want[slot // block_tokens, 1, 1, :, slot % block_tokens] = v[t]
    kernels.store_kv(k, v, cache, 1, slots)
    assert torch.equal(spaced, want)


@pytest.mark.parametrize("column", COLUMNS)
def test_torch_s_default_type_is_not_relied_on(column: str) -> None:
    kernels, x = make(column), torch.randn(3, 64)
    want = kernels.rms_norm(x, torch.ones(64), 1e-6)
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = kernels.rms_norm(x, torch.ones(64, dtype=torch.float32), 1e-6)
        half = kernels.gated(x, "silu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype is half.dtype is torch.float32 and torch.equal(got, want)
