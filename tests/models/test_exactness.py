"""The pieces on which exact mode rests: no element may depend on its neighbours or on history."""

from __future__ import annotations

import pytest
import torch

from models.paged import PagedRun, worst_share
from models.tiny import FAMILIES, make_tiny
from tenfold.core.errors import ConfigError
from tenfold.kernels.table import build_kernels
from tenfold.models.elementwise import blockwise, sigmoid
from tenfold.models.moe import Mixture
from tenfold.models.rope import RopeTable
from tenfold.models.spec import RopeSpec


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, torch.nn.functional.gelu])
@pytest.mark.parametrize("cols", [1, 7, 16, 96, 1536])
def test_an_elements_function_is_its_own(function, cols, threads):
    x = torch.randn(77, cols, generator=torch.Generator().manual_seed(cols))
    whole = blockwise(function, x)
    assert whole.shape == x.shape
    assert torch.allclose(whole, function(x), atol=1e-6)
    for rows in (slice(0, 1), slice(3, 10), slice(40, 77)):
        assert torch.equal(blockwise(function, x[rows]), whole[rows])


def test_a_column_of_sigmoids(threads):
    x = torch.linspace(-9, 9, 50)[:, None]
    assert torch.allclose(sigmoid(x), torch.sigmoid(x), atol=1e-6)
    assert torch.equal(sigmoid(x[17:18]), sigmoid(x)[17:18])


@pytest.mark.parametrize("head_dim", [16, 64, 256])
def test_rotations_do_not_depend_on_how_the_table_grew(head_dim, threads):
    spec = RopeSpec(1e4)
    at_once, slowly = RopeTable(spec, head_dim, 8192), RopeTable(spec, head_dim, 8192)
    at_once.ensure(8000)
    for position in (0, 5, 900, 1024, 3000, 8000):
        slowly.ensure(position)
        assert len(slowly.cos) > position
    rows = min(len(at_once.cos), len(slowly.cos))
    assert torch.equal(at_once.cos[:rows], slowly.cos[:rows])
    assert torch.equal(at_once.sin[:rows], slowly.sin[:rows])


def test_rotations_are_right():
    table = RopeTable(RopeSpec(1e4), 8, 64)
    table.ensure(10)
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])
    assert torch.allclose(table.cos[10], torch.cos(10 * frequencies), atol=1e-6)
    assert torch.allclose(table.sin[10], torch.sin(10 * frequencies), atol=1e-6)


@pytest.mark.parametrize("norm", [True, False])
def test_a_mixture_is_its_definition(norm, threads):
    """Against a plain double loop; and a token's output is its own."""
    generator = torch.Generator().manual_seed(0)
    router = torch.randn(5, 16, generator=generator)
    matrices = torch.randn(5, 16, 16, generator=generator)
    experts = [lambda x, m=m: torch.stack([m @ row for row in x]) for m in matrices]
    mixture = Mixture(lambda x: torch.stack([router @ row for row in x]), experts, 3, norm)
    x = torch.randn(20, 16, generator=generator)
    whole = mixture(x)
    for token, row in zip(x, whole, strict=True):
        shares, chosen = torch.softmax(router @ token, -1).topk(3)
        shares = shares / shares.sum() if norm else shares
        wanted = sum(s * (matrices[e] @ token) for s, e in zip(shares, chosen, strict=True))
        assert torch.allclose(row, wanted, atol=1e-5)
    assert torch.equal(mixture(x[4:5]), whole[4:5])
    assert torch.equal(mixture(x[2:9]), whole[2:9])


@pytest.fixture(scope="module")
def native():
    try:
        kernels = build_kernels(native=True, threads=2)
    except ConfigError:
        pytest.skip("the compiled kernels are not built")
    yield kernels
    kernels.close()


def test_native_kernels_give_the_same_vectors(tmp_path, load, native):
    folder, texts = make_tiny("bert", tmp_path), [[1, 50, 60, 2], [1, *range(9, 40), 2], [1, 2]]
    got = load(folder, kernels=native).model.embed(texts)
    assert float((got - load(folder).model.embed(texts)).abs().max()) <= 1e-5
    assert torch.equal(load(folder, kernels=native).model.embed(texts[1:2])[0], got[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_native_kernels_give_the_same_model(family, tmp_path, load, native):
    folder = make_tiny(family, tmp_path)
    tokens = [(11 * i + 5) % 304 for i in range(50)]
    fast, plain = load(folder, kernels=native), load(folder)
    wanted = PagedRun(plain.model).step({0: tokens})[0]
    got = PagedRun(fast.model).step({0: tokens})[0]
    assert worst_share(got, wanted) <= 1e-4
    other = [(3 * i) % 304 for i in range(21)]
    crowd = PagedRun(fast.model, seed=2).step({1: other, 0: tokens})[0]
    assert torch.equal(crowd, got)
