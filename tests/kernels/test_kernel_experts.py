"""A mixture's native operations: routing, products expert by expert, and their sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import KINDS, NATIVE_COLUMNS, make_native, packed, random_raw

from tenfold.kernels.base import GroupedKernels, MixtureKernels, WeightKind
from tenfold.kernels.checks import ShapeError
from tenfold.kernels.native import NativeKernels
from tenfold.kernels.native_experts import ExpertMatrices
from tenfold.models.elementwise import sigmoid

EXPERTS, TOP, COLS, ROWS = 5, 3, 256, 40


def matrices(kernels: NativeKernels, kind: WeightKind, rows: int = ROWS) -> ExpertMatrices:
    weights = [
        packed(kernels, kind, rows, COLS, random_raw(kind, rows, COLS, seed))
        for seed in range(EXPERTS)
    ]
    return kernels.expert_matrices(weights)


def chosen(tokens: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, EXPERTS, generator=g).argsort(-1)[:, :TOP].int().contiguous()


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", NATIVE_COLUMNS)
def test_every_row_is_its_own_product(column: str, kind: WeightKind, mode: str) -> None:
    """Bit by bit, whatever the company, the threads and the place of the result."""
    kernels = make_native(column, 2, mode)
    experts = matrices(kernels, kind)
    for tokens in (1, 2, 37):
        ids, x = chosen(tokens, tokens), torch.randn(tokens, COLS)
        way = kernels.route(ids, EXPERTS)
        want = torch.cat(
            [
                kernels.linear(x[t : t + 1], experts.weights[e])
                for t in range(tokens)
                for e in ids[t].tolist()
            ]
        )
        assert torch.equal(kernels.grouped_linear(x, experts, way, TOP), want)
        wide = torch.zeros(tokens * TOP, ROWS + 50)
        kernels.grouped_linear(x, experts, way, TOP, wide[:, 20 : 20 + ROWS])
        assert torch.equal(wide[:, 20 : 20 + ROWS], want)
        assert not wide[:, :20].any() and not wide[:, 20 + ROWS :].any()
        pairs = x.repeat_interleave(TOP, 0)
        assert torch.equal(kernels.grouped_linear(pairs, experts, way, 1), want)
        alone = make_native(column, 1, mode)
        with alone.scope():
            way = alone.route(ids, EXPERTS)
            assert torch.equal(alone.grouped_linear(x, matrices(alone, kind), way, TOP), want)


@pytest.mark.parametrize("column", NATIVE_COLUMNS)
def test_an_expert_named_twice_by_a_token(column: str) -> None:
    kernels = make_native(column)
    experts, x = matrices(kernels, "q8_0"), torch.randn(2, COLS)
    way = kernels.route(torch.tensor([[1, 1, 1], [1, 4, 1]], dtype=torch.int32), EXPERTS)
    got = kernels.grouped_linear(x, experts, way, TOP)
    for pair, expert in enumerate((1, 1, 1, 1, 4, 1)):
        row = x[pair // TOP : pair // TOP + 1]
        assert torch.equal(got[pair : pair + 1], kernels.linear(row, experts.weights[expert]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 8), st.booleans(), st.integers(0, 99))
def test_the_heaviest_are_chosen(tokens: int, top_k: int, more: int, norm: bool, seed: int) -> None:
    kernels = make_native("portable")
    torch.manual_seed(seed)
    logits = torch.randn(tokens, top_k + more) * 4
    weights, ids = kernels.choose(logits, top_k, norm)
    want, places = torch.topk(torch.softmax(logits.double(), -1), top_k)
    if norm:
        want = want / want.sum(-1, keepdim=True)
    assert torch.equal(ids.long(), places)
    assert torch.allclose(weights.double(), want, rtol=1e-6, atol=1e-9)
    one = kernels.choose(logits[-1:], top_k, norm)
    assert torch.equal(one[0], weights[-1:]) and torch.equal(one[1], ids[-1:])


def test_ties_and_nan_choose_each_expert_once() -> None:
    kernels = make_native("portable")
    logits = torch.zeros(3, 4)
    logits[1, 2], logits[2, 0] = float("nan"), float("inf")
    weights, ids = kernels.choose(logits, 3, True)
    assert ids[0].tolist() == [0, 1, 2] and all(len(set(row.tolist())) == 3 for row in ids)
    assert torch.allclose(weights[0], torch.full((3,), 1 / 3))
    assert bool(weights[1].isnan().all())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 200])
def test_the_sum_is_in_order(tokens: int, shared: bool) -> None:
    kernels = make_native("portable")
    out, weights = torch.randn(tokens * TOP, 96), torch.rand(tokens, TOP)
    parts = out.view(tokens, TOP, 96)
    want = parts[:, 0] * weights[:, :1]
    for slot in range(1, TOP):
        want += parts[:, slot] * weights[:, slot : slot + 1]
    extra: list[torch.Tensor] = []
    if shared:
        extra = [torch.randn(tokens, 96), torch.randn(tokens, 1)]
        want += sigmoid(extra[1]) * extra[0]
    got = kernels.mix(out, weights, *extra)
    assert torch.equal(got, want) if not shared else torch.allclose(got, want, atol=1e-6)
    last = [x[-1:] for x in extra]
    assert torch.equal(kernels.mix(out[-TOP:], weights[-1:], *last), got[-1:])


@pytest.mark.parametrize("column", NATIVE_COLUMNS)
def test_a_tape_routes_by_what_lies_there_now(column: str) -> None:
    kernels = make_native(column)
    router = packed(kernels, "f32", EXPERTS, COLS, random_raw("f32", EXPERTS, COLS))
    experts, x = matrices(kernels, "q4_1", COLS), torch.randn(6, COLS)

    def run() -> torch.Tensor:
        weights, ids = kernels.choose(kernels.linear(x, router), TOP, True)
        return kernels.mix(
            kernels.grouped_linear(x, experts, kernels.route(ids, EXPERTS), TOP), weights
        )

    tape = kernels.tape()
    with kernels.scope():
        with tape.recording():
            result = run()
        for seed in range(3):
            x.copy_(torch.randn(6, COLS, generator=torch.Generator().manual_seed(seed)))
            tape.replay()
            got = result.clone()
            with kernels.scope():
                assert torch.equal(got, run())


def test_what_does_not_fit_is_refused() -> None:
    kernels = make_native("portable")
    experts, x = matrices(kernels, "f32"), torch.randn(4, COLS)
    assert isinstance(kernels, MixtureKernels) and isinstance(kernels, GroupedKernels)
    for wrong in (-1, EXPERTS):
        ids = chosen(4)
        ids[2, 1] = wrong
        with pytest.raises(ShapeError, match=f"expert {wrong} of {EXPERTS}"):
            kernels.route(ids, EXPERTS)
    way = kernels.route(chosen(4), EXPERTS)
    for bad in (x[:3], x[:, : COLS - 1], torch.randn(COLS, 4).T, x.double()):
        with pytest.raises(ShapeError):
            kernels.grouped_linear(bad, experts, way, TOP)
    with pytest.raises(ShapeError, match="routed"):
        kernels.grouped_linear(x, experts, kernels.route(chosen(4), EXPERTS + 1), TOP)
    with pytest.raises(ShapeError, match="out"):
        kernels.grouped_linear(x, experts, way, TOP, torch.zeros(12, ROWS - 1))
    with pytest.raises(ShapeError, match="chosen"):
        kernels.choose(torch.randn(2, 3), 4, False)
    with pytest.raises(ShapeError, match="weights"):
        kernels.mix(torch.randn(6, 8), torch.rand(2, 4)[:, :3])
    with pytest.raises(ShapeError, match="no matrices"):
        kernels.expert_matrices([])
    other = packed(kernels, "f32", ROWS + 1, COLS, random_raw("f32", ROWS + 1, COLS))
    with pytest.raises(ShapeError, match="outputs"):
        kernels.expert_matrices([experts.weights[0], other])
