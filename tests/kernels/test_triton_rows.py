"""The Triton column's other operations against the torch column, which defines them."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import KINDS, packed, random_raw
from torch import Tensor
from triton_cases import PLACES, Place, make_place

from tenfold.core.errors import ModelFileError
from tenfold.kernels.base import PackedWeight
from tenfold.kernels.checks import ShapeError
from tenfold.kernels.quant import dequantise
from tenfold.kernels.torch_ref import TorchKernels

SIZES = [1, 7, 64, 100, 576]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    return make_place(request.param)


def rounded(x: Tensor, place: Place) -> Tensor:
    """As the device will hold it, back in float32."""
    return x.to(place.dtype).float()


@pytest.mark.parametrize("n", SIZES)
def test_rms_norm(place: Place, n: int) -> None:
    g = torch.Generator().manual_seed(n)
    x, weight = torch.randn(5, n, generator=g) * 3, torch.randn(n, generator=g)
    want = TorchKernels().rms_norm(x, weight, 1e-6)
    there = weight.to(place.device)
    place.close(place.kernels.rms_norm(x.to(place.device), there, 1e-6), want)
    got = place.kernels.rms_norm(place.put(x), there, 1e-6)
    place.close(got, TorchKernels().rms_norm(rounded(x, place), weight, 1e-6))
    assert torch.equal(place.kernels.rms_norm(place.put(x)[2:3], there, 1e-6), got[2:3])


def test_rms_norm_of_strided_heads(place: Place) -> None:
    qkv = rounded(torch.randn(4, 5, 64), place)
    weight = torch.randn(64)
    want = TorchKernels().rms_norm(qkv[:, 1:4], weight, 1e-6)
    got = place.kernels.rms_norm(place.put(qkv)[:, 1:4], weight.to(place.device), 1e-6)
    assert got.shape == (4, 3, 64) and got.dtype is place.dtype
    place.close(got, want)


@pytest.mark.parametrize("sandwich", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_add_rms_norm(place: Place, n: int, sandwich: bool) -> None:
    """The residual stays float32 whatever is added to it; the norm may overwrite what was added."""
    g = torch.Generator().manual_seed(n)
    x, delta = torch.randn(2, 5, n, generator=g)
    delta = rounded(delta, place)
    weight, inner = torch.randn(2, n, generator=g)
    there = x.to(place.device, copy=True)
    change = place.put(delta)
    got = place.kernels.add_rms_norm(
        there, change, weight.to(place.device), 1e-6,
        delta_weight_I=inner.to(place.device) if sandwich else None, out_TI=change,
    )  # fmt: skip
    want = TorchKernels().add_rms_norm(
        x, delta, weight, 1e-6, delta_weight_I=inner if sandwich else None
    )
    assert got is change
    assert torch.allclose(there.cpu(), x, rtol=1e-6, atol=2e-6)
    place.close(got, want)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("n", SIZES)
def test_gated(place: Place, n: int, activation: str) -> None:
    x = rounded(torch.randn(3, 2 * n, generator=torch.Generator().manual_seed(n)) * 3, place)
    want = TorchKernels().gated(x, activation)  # type: ignore[arg-type]
    got = place.kernels.gated(place.put(x), activation)  # type: ignore[arg-type]
    place.close(got, want)


def test_gated_at_the_ends(place: Place) -> None:
    gate = torch.tensor([[200.0, -200.0, 0.0, torch.nan, 3e4, -3e4]])
    got = place.kernels.gated(place.put(torch.cat([gate, torch.ones_like(gate)], 1)), "silu")[0]
    values = got.float().tolist()
    assert values[0] == 200 and values[2] == 0 and values[3] != values[3]
    assert abs(values[4] / 3e4 - 1) < 1e-2 and abs(values[1]) < 1e-30 and abs(values[5]) < 1e-30


@pytest.mark.parametrize(("heads", "dim"), [(3, 2), (3, 20), (40, 64), (1, 80), (2, 256)])
def test_rope(place: Place, heads: int, dim: int) -> None:
    qkv = rounded(torch.randn(4, heads + 2, dim), place)
    angle = torch.rand(40, dim // 2) * 6
    positions = torch.tensor([0, 39, 7, 8], dtype=torch.int32)
    there = place.put(qkv)
    place.kernels.rope(
        there[:, 1:-1], positions.to(place.device),
        angle.cos().to(place.device), angle.sin().to(place.device),
    )  # fmt: skip
    want = qkv.clone()
    TorchKernels().rope(want[:, 1:-1], positions, angle.cos(), angle.sin())
    place.close(there, want)
    assert torch.equal(there[:, 0].float().cpu(), qkv[:, 0])
    assert torch.equal(there[:, -1].float().cpu(), qkv[:, -1])


@pytest.mark.parametrize(("heads", "dim"), [(1, 6), (3, 64), (20, 80)])
def test_store_kv(place: Place, heads: int, dim: int) -> None:
    k, v = place.put(torch.randn(2, 5, heads + 1, dim))
    slots = torch.tensor([3, 0, 17, 90, 16], dtype=torch.int32)
    cache = torch.zeros(7, 3, 2, heads, 16, dim, dtype=place.dtype, device=place.device)
    want = torch.zeros(7, 3, 2, heads, 16, dim)
    spaced = cache[:, :2]
    place.kernels.store_kv(k[:, 1:], v[:, 1:], spaced, 1, slots.to(place.device))
    TorchKernels().store_kv(k[:, 1:].float().cpu(), v[:, 1:].float().cpu(), want, 1, slots)
    assert torch.equal(cache.float().cpu(), want)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_kind(place: Place, kind: str) -> None:
    """Any checkpoint becomes a plain matrix; rows of it, products with it, and a bias."""
    rows, cols = 37, 512
    raw = random_raw(kind, rows, cols)  # type: ignore[arg-type]
    weight = packed(place.kernels, kind, rows, cols, raw)  # type: ignore[arg-type]
    weight.data = weight.data.to(place.device)
    dense = rounded(dequantise(kind, rows, cols, raw), place)  # type: ignore[arg-type]
    ids = torch.tensor([36, 0, 5, 5], dtype=torch.int32, device=place.device)
    assert torch.equal(place.kernels.embed(ids, weight).cpu(), dense[[36, 0, 5, 5]])
    assert torch.equal(place.kernels.embed(ids, weight, 2.0).cpu(), dense[[36, 0, 5, 5]] * 2)
    x = rounded(torch.randn(6, cols), place)
    bias = torch.randn(rows)
    want = (x.double() @ dense.double().T + bias).float()
    got = place.kernels.linear(place.put(x), weight, bias.to(place.device))
    assert got.dtype is place.dtype
    place.close(got, want, factor=2)
    wide = torch.zeros(6, rows + 8, dtype=place.dtype, device=place.device)
    place.kernels.linear(place.put(x), weight, None, wide[:, 3 : 3 + rows])
    place.close(wide[:, 3 : 3 + rows], want - bias, factor=2)
    assert not wide[:, :3].any() and not wide[:, 3 + rows :].any()
    logits = place.kernels.logits(place.put(x), weight)  # type: ignore[attr-defined]
    assert logits.dtype is torch.float32
    assert torch.allclose(logits.cpu(), want - bias, rtol=1e-4, atol=1e-3)


def test_what_does_not_fit_the_type_is_refused() -> None:
    place = make_place("cpu-f16")
    raw = torch.full((4, 8), 1e6).view(torch.uint8).reshape(-1)
    with pytest.raises(ModelFileError, match="too large for f16"):
        packed(place.kernels, "f32", 4, 8, raw)


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "inner", "out"),
    [(1, 2, 8, 64, 48), (7, 3, 4, 100, 33), (70, 2, 3, 32, 130), (40, 1, 64, 16, 8)],
)
def test_products_by_expert(
    place: Place, tokens: int, top_k: int, experts: int, inner: int, out: int
) -> None:
    """Every pair meets its own expert's matrix, whatever lies between the matrices."""
    g = torch.Generator().manual_seed(tokens)
    gap = 64 // place.dtype.itemsize
    size = out * inner + gap
    buffer = torch.randn(experts * size, generator=g).to(place.dtype).to(place.device)
    order = torch.randperm(experts, generator=g).tolist()
    weights = [
        PackedWeight("f32", out, inner, place.kernels.layout, buffer[at * size :].view(torch.uint8))
        for at in order
    ]
    matrices = place.kernels.expert_matrices(weights)  # type: ignore[attr-defined]
    chosen = torch.stack(
        [torch.randperm(experts, generator=g)[:top_k] for _ in range(tokens)]
    ).clamp(max=max(1, experts - 2))  # the last expert gets nothing
    way = place.kernels.route(chosen.to(place.device), experts)  # type: ignore[attr-defined]
    x = rounded(torch.randn(tokens, inner, generator=g), place)
    got = place.kernels.grouped_linear(place.put(x), matrices, way, top_k)  # type: ignore[attr-defined]
    dense = [weight.data.view(place.dtype)[: out * inner].view(out, inner) for weight in weights]
    want = torch.stack(
        [dense[e].cpu().double() @ x[t].double() for t, row in enumerate(chosen) for e in row]
    )
    place.close(got, want.float(), factor=2)


def test_misfits_are_refused() -> None:
    place = make_place("cpu-f32")
    kernels = place.kernels
    ids = torch.zeros(3, dtype=torch.int32)
    cache = torch.zeros(2, 1, 2, 2, 16, 8)
    q = torch.zeros(3, 4, 8)
    with pytest.raises(ShapeError, match="int32"):
        kernels.rope(q, ids.long(), torch.zeros(4, 4), torch.zeros(4, 4))
    with pytest.raises(ShapeError, match="divide"):
        kernels.paged_attention(q[:, :3], cache, 0, ids[None], ids[:2], ids[:1], scale=1.0)
    with pytest.raises(ShapeError, match="layer 1"):
        kernels.store_kv(q[:, :2], q[:, :2], cache, 1, ids)
    with pytest.raises(ShapeError, match="context has 3"):
        kernels.paged_attention(q, cache, 0, ids[None], ids[:2], ids, scale=1.0)
    with pytest.raises(ShapeError, match="dense floats"):
        kernels.add_rms_norm(torch.zeros(2, 8), torch.zeros(3, 8), torch.zeros(8), 1e-6)
