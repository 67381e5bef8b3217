"""Operations between the products, scratch memory, and recorded runs."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import COLUMNS, make, packed, random_raw

from tenfold.kernels.checks import ShapeError
from tenfold.kernels.native import NativeKernels
from tenfold.kernels.scratch import HeapMemory, Scratch

NATIVE = [column for column in COLUMNS if column != "torch"]


def native(column: str) -> NativeKernels:
    kernels = make(column)
    assert isinstance(kernels, NativeKernels)
    return kernels


@pytest.mark.parametrize("n", [1, 7, 64, 576])
@pytest.mark.parametrize("sandwich", [False, True])
@pytest.mark.parametrize("column", COLUMNS)
def test_add_rms_norm_is_its_parts(column: str, sandwich: bool, n: int) -> None:
    kernels = make(column)
    x, delta, weight, other = torch.randn(41, n), torch.randn(41, n), torch.randn(n), torch.randn(n)
    want_x = x + (kernels.rms_norm(delta, other, 1e-6) if sandwich else delta)
    want = kernels.rms_norm(want_x, weight, 1e-6)
    options = {"delta_weight_I": other} if sandwich else {}
    residual = x.clone()
    got = kernels.add_rms_norm(residual, delta.clone(), weight, 1e-6, **options)
    assert torch.equal(residual, want_x) and torch.equal(got, want)
    residual, reused = x.clone(), delta.clone()
    kernels.add_rms_norm(residual, reused, weight, 1e-6, out_TI=reused, **options)
    assert torch.equal(residual, want_x) and torch.equal(reused, want)


@pytest.mark.parametrize("column", COLUMNS)
def test_add_rms_norm_refuses_what_does_not_fit(column: str) -> None:
    kernels, x = make(column), torch.randn(3, 8)
    with pytest.raises(ShapeError, match="delta"):
        kernels.add_rms_norm(x, torch.randn(2, 8), torch.ones(8), 1e-6)
    with pytest.raises(ShapeError, match="x"):
        kernels.add_rms_norm(torch.randn(3, 16)[:, :8], x, torch.ones(8), 1e-6)


@pytest.mark.parametrize("column", COLUMNS)
def test_gather_and_softcap(column: str) -> None:
    kernels, x = make(column), torch.randn(9, 30) * 40
    rows = torch.tensor([8, 0, 0, 3], dtype=torch.int32)
    assert torch.equal(kernels.gather(x, rows), x[rows.long()])
    with pytest.raises(ShapeError, match="9"):
        kernels.gather(x, torch.tensor([9], dtype=torch.int32))
    capped = x.clone()
    kernels.softcap(capped, 30.0)
    want = torch.tanh(x.double() / 30) * 30
    assert torch.allclose(capped.double(), want, rtol=1e-6, atol=1e-6)
    one = x[4:5].clone()
    kernels.softcap(one, 30.0)
    assert torch.equal(one, capped[4:5])


@pytest.mark.parametrize("n", [1, 5, 8, 300, 4096, 4097, 49_152])
@pytest.mark.parametrize("column", COLUMNS)
def test_largest_is_the_first_of_equals(column: str, n: int) -> None:
    kernels = make(column)
    x = torch.randint(-20, 20, (5, n)).float()
    ids, values = kernels.largest(x)
    want = torch.from_numpy(x.numpy().argmax(-1))
    assert ids.tolist() == want.tolist()
    assert values.tolist() == x.max(-1).values.tolist()


@pytest.mark.parametrize("column", COLUMNS)
def test_largest_with_odd_values(column: str) -> None:
    kernels = make(column)
    x = torch.zeros(5, 9000)
    x[0] = -math.inf
    x[1, 8500], x[1, 3] = math.inf, 7
    x[2, 4700] = x[2, 8999] = math.nan
    x[2, 1] = math.inf
    x[3] = -math.inf
    x[3, 8998] = -1e30
    x[4, 0] = math.nan
    ids, values = kernels.largest(x)
    assert ids.tolist() == [0, 8500, 4700, 8998, 0]
    assert values[:2].tolist() == [-math.inf, math.inf]
    assert math.isnan(values[2]) and math.isnan(values[4])


@pytest.mark.parametrize("column", COLUMNS)
def test_slots(column: str) -> None:
    kernels = make(column)
    table = torch.tensor([[5, 2, -1], [0, 7, 9]], dtype=torch.int32)
    starts = torch.tensor([0, 3, 5], dtype=torch.int32)
    context = torch.tensor([3, 8], dtype=torch.int32)
    got = kernels.slots(table, starts, context, 5, 4)
    assert got.tolist() == [5 * 4 + 3, 2 * 4, 2 * 4 + 1, 9 * 4, 9 * 4 + 1]
    with pytest.raises(ShapeError):
        kernels.slots(table, starts, torch.tensor([3, 12], dtype=torch.int32), 5, 4)
    with pytest.raises(ShapeError):
        kernels.slots(table, starts, context, 6, 4)


@pytest.mark.parametrize("column", COLUMNS)
def test_linear_writes_where_it_is_told(column: str) -> None:
    kernels = make(column)
    weight = packed(kernels, "q8_0", 40, 64, random_raw("q8_0", 40, 64))
    x, wide = torch.randn(7, 64), torch.zeros(7, 100)
    want = kernels.linear(x, weight)
    assert kernels.linear(x, weight, None, wide[:, 30:70]).data_ptr() == wide[:, 30:70].data_ptr()
    assert torch.equal(wide[:, 30:70], want)
    assert not wide[:, :30].any() and not wide[:, 70:].any()
    with pytest.raises(ShapeError, match="out"):
        kernels.linear(x, weight, None, wide[:, :39])


def test_scratch_is_a_stack() -> None:
    scratch = Scratch(HeapMemory(256))
    with scratch.scope():
        first = scratch.take(3, 5)
        with scratch.scope():
            inner = scratch.take(2, 100)
            large = scratch.take(3, 1000)
        again = scratch.take(2, 100)
        assert again.data_ptr() == inner.data_ptr() and large.shape == (3, 1000)
        first.fill_(1)
        again.fill_(2)
        assert bool((first == 1).all())
    size = scratch.nbytes
    for _ in range(5):
        with scratch.scope():
            assert scratch.take(3, 5).data_ptr() == first.data_ptr()
            scratch.take(2, 100)
            scratch.take(3, 1000)
    assert scratch.nbytes == size and not scratch.active


@pytest.mark.parametrize("column", NATIVE)
def test_results_outside_a_scope_are_tensors_of_their_own(column: str) -> None:
    kernels, x = native(column), torch.randn(4, 64)
    first = kernels.rms_norm(x, torch.ones(64), 1e-6)
    kept = first.clone()
    kernels.rms_norm(x * -3, torch.ones(64), 1e-6)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("column", NATIVE)
def test_a_tape_computes_again_on_what_lies_there_now(column: str) -> None:
    kernels = native(column)
    weight = packed(kernels, "q4_1", 64, 64, random_raw("q4_1", 64, 64))
    ids, norm = torch.tensor([3, 9], dtype=torch.int32), torch.rand(64)

    def run() -> torch.Tensor:
        with kernels.scope():
            x = kernels.embed(ids, weight, 2.0)
            with kernels.scope():
                y = kernels.rms_norm(x, norm, 1e-6)
                branch = kernels.linear(y, weight)
                kernels.add_rms_norm(x, branch, norm, 1e-6, out_TI=branch)
            return kernels.linear(x, weight).clone()

    tape = kernels.tape()
    with kernels.scope():
        with tape.recording():
            x = kernels.embed(ids, weight, 2.0)
            with kernels.scope():
                y = kernels.rms_norm(x, norm, 1e-6)
                branch = kernels.linear(y, weight)
                kernels.add_rms_norm(x, branch, norm, 1e-6, out_TI=branch)
            result = kernels.linear(x, weight)
        assert torch.equal(result, run())
    for chosen in ([60, 0], [5, 5]):
        ids[:] = torch.tensor(chosen, dtype=torch.int32)
        want = run()
        with kernels.scope():
            tape.replay()
            assert torch.equal(result, want)
    ids[0] = 64
    with pytest.raises(ShapeError, match="64"):
        tape.replay()


@pytest.mark.parametrize("column", NATIVE)
def test_a_tape_refuses_what_it_could_not_repeat(column: str) -> None:
    kernels = native(column)
    weight = packed(kernels, "f32", 8, 64, random_raw("f32", 8, 64))
    across = torch.randn(64, 3).T
    with pytest.raises(ShapeError, match="recorded"), kernels.tape().recording():
        kernels.linear(across, weight)
    assert kernels.linear(across, weight).shape == (3, 8)


@pytest.mark.parametrize("column", NATIVE)
def test_time_inside_operations_is_counted(column: str) -> None:
    kernels = native(column)
    before = kernels.busy_seconds()
    kernels.rms_norm(torch.randn(64, 64), torch.ones(64), 1e-6)
    assert kernels.busy_seconds() > before
