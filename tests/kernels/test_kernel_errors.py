"""What does not fit is refused with the values in the message, and nothing is read or written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import COLUMNS, attend, make, packed, paged, random_raw

from tenfold.core.errors import ModelFileError, TenfoldError
from tenfold.kernels.base import PackedWeight
from tenfold.kernels.checks import ShapeError

pytestmark = pytest.mark.parametrize("column", COLUMNS)


def weight_of(column: str) -> PackedWeight:
    return packed(make(column), "q8_0", 40, 64, random_raw("q8_0", 40, 64))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 63), "63 features"),
        (torch.zeros(64), "2 dimensions"),
        (torch.zeros(2, 64, dtype=torch.float64), "float64"),
    ],
)
def test_linear(column: str, x: torch.Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        make(column).linear(x, weight_of(column))


def test_weights(column: str) -> None:
    kernels, weight = make(column), weight_of(column)
    with pytest.raises(ShapeError, match="39 values, needs 40"):
        kernels.linear(torch.zeros(1, 64), weight, torch.zeros(39))
    whole, weight.data = weight.data, weight.data[:-3000]
    with pytest.raises(ShapeError, match="its data has"):
        kernels.linear(torch.zeros(1, 64), weight)
    with pytest.raises(ShapeError, match="its data has"):
        kernels.embed(torch.zeros(1, dtype=torch.int32), weight)
    weight.data, weight.layout = whole, "another"
    with pytest.raises(ShapeError, match="packed as 'another'"):
        kernels.linear(torch.zeros(1, 64), weight)


def test_pack(column: str) -> None:
    kernels = make(column)
    raw, size = random_raw("q4_1", 40, 64), kernels.packed_bytes("q4_1", 40, 64)
    with pytest.raises(ShapeError, match=f"{size} dense bytes"):
        kernels.pack("q4_1", 40, 64, raw, torch.empty(size - 64, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="dense bytes"):
        kernels.pack("q4_1", 40, 64, raw[:-1], torch.empty(size, dtype=torch.uint8))
    with pytest.raises(ModelFileError, match="blocks of 256"):
        kernels.packed_bytes("q6_k", 40, 64)


@pytest.mark.parametrize("bad", [-1, 40, 2**31 - 1])
def test_ids(column: str, bad: int) -> None:
    with pytest.raises(ShapeError, match=str(bad)):
        make(column).embed(torch.tensor([0, bad], dtype=torch.int32), weight_of(column))


def test_ids_must_be_int32(column: str) -> None:
    with pytest.raises(ShapeError, match="int32"):
        make(column).embed(torch.tensor([0]), weight_of(column))


def test_gated(column: str) -> None:
    with pytest.raises(ShapeError, match="odd"):
        make(column).gated(torch.zeros(2, 7), "silu")
    with pytest.raises(ShapeError, match="relu"):
        make(column).gated(torch.zeros(2, 8), "relu")  # type: ignore[arg-type]


def test_norm_and_rope(column: str) -> None:
    kernels = make(column)
    with pytest.raises(ShapeError, match="7 values, needs 8"):
        kernels.rms_norm(torch.zeros(2, 8), torch.zeros(7), 1e-6)
    table = torch.zeros(10, 4)
    with pytest.raises(ShapeError, match="half the head dim"):
        kernels.rope(torch.zeros(2, 1, 10), torch.zeros(2, dtype=torch.int32), table, table)
    for bad in (-1, 10):
        with pytest.raises(ShapeError, match=f"position {bad}"):
            positions = torch.tensor([0, bad], dtype=torch.int32)
            kernels.rope(torch.zeros(2, 1, 8), positions, table, table)


@pytest.mark.parametrize("bad", [-1, 48])
def test_slots(column: str, bad: int) -> None:
    cache, k = torch.zeros(3, 2, 2, 2, 16, 8), torch.ones(2, 2, 8)
    with pytest.raises(ShapeError, match=f"slot {bad}"):
        slots = torch.tensor([0, bad], dtype=torch.int32)
        make(column).store_kv(k, k, cache, 1, slots)
    assert not cache.any()


def test_cache(column: str) -> None:
    kernels, k = make(column), torch.ones(2, 2, 8)
    slots = torch.tensor([0, 1], dtype=torch.int32)
    for shape in ((3, 2, 2, 3, 16, 8), (3, 2, 1, 2, 16, 8), (3, 2, 2, 2, 16, 9)):
        with pytest.raises(ShapeError, match="cache must be"):
            kernels.store_kv(k, k, torch.zeros(shape), 1, slots)
    with pytest.raises(ShapeError, match="layer 2"):
        kernels.store_kv(k, k, torch.zeros(3, 2, 2, 2, 16, 8), 2, slots)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"table_SB": torch.tensor([[0, 1, 99]], dtype=torch.int32)}, "99"),
        ({"table_SB": torch.tensor([[0, -1, 2]], dtype=torch.int32)}, "-1"),
        ({"table_SB": torch.tensor([[0, 1]], dtype=torch.int32)}, "3 blocks"),
        ({"starts_S1": torch.tensor([0, 4], dtype=torch.int32)}, "starts must run"),
        ({"starts_S1": torch.tensor([1, 5], dtype=torch.int32)}, "starts must run"),
        ({"starts_S1": torch.tensor([0, 5])}, "int32"),
        ({"context_S": torch.tensor([-3], dtype=torch.int32)}, "-3"),
        ({"context_S": torch.tensor([30, 1], dtype=torch.int32)}, "context"),
        ({"q_THD": torch.zeros(5, 3, 8)}, "do not divide"),
        ({"q_THD": torch.zeros(5, 4, 16)}, "cache must be"),
    ],
)
def test_attention(column: str, change: dict[str, Any], words: str) -> None:
    case = paged([(30, 5)], heads=4, kv_heads=2, dim=8)
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ShapeError, match=words):
        attend(make(column), case)


@pytest.mark.parametrize("options", [{"window": 0}, {"softcap": 0.0}, {"softcap": float("nan")}])
def test_attention_options(column: str, options: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match=next(iter(options))):
        attend(make(column), paged([(30, 5)], heads=4, kv_heads=2, dim=8), **options)


def test_errors_are_tenfold_s(column: str) -> None:
    with pytest.raises(TenfoldError):
        make(column).linear(torch.zeros(1, 1), weight_of(column))
