"""The definition of fast mode's product: quantised weights times int16 activations, in torch.

Activations are rounded to int16 in blocks of 32 columns of a row, each block on a power of two of
its own; codes of weights stay as the checkpoint has them. A block's products are summed as
integers, exactly. Per output, blocks in ascending order, with one rounding each:

    y = fma(float32(integer sum), weight scale * step of the block, y)
    y = fma(weight minimum, sum of the block's activations, y)        where the kind has minima

starting from zero, the bias added last. Dense kinds are multiplied as in exact mode.

A row's result depends on nothing but the row and the weights. The rounding of activations costs
each output at most 2^-14 of sum |w| * (largest |x| of the block). Native rows give the same bits.
Slow: meant to be read and tested against.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tenfold.core.errors import ModelFileError
from tenfold.kernels import checks, exact
from tenfold.kernels.base import PackedWeight, WeightKind
from tenfold.kernels.quant import Codes, codes_of, is_dense, raw_bytes
from tenfold.kernels.torch_ref import TorchKernels

BLOCK = 32
"""Columns that share a step."""

LEAST_EXPONENT = 40
"""The least biased float32 exponent a block counts with: values below 2^-102 become zero."""


class Steps(NamedTuple):
    """Activations as whole numbers of steps."""

    values_TI: Tensor
    """In [-32768, 32767], float64."""
    step_TB: Tensor
    """A power of two per row and block, float32; NaN where the block holds an infinity or NaN."""


def quantise(x_TI: Tensor) -> Steps:
    """Each block of 32 columns to the nearest multiples (ties to even) of its step, 2^(n - 15),
    where 2^n is the smallest power of two above its largest value."""
    x_TBK = x_TI.reshape(x_TI.shape[0], x_TI.shape[1] // BLOCK, BLOCK)
    largest = x_TBK.abs().amax(-1)
    broken = ~torch.isfinite(x_TBK).all(-1)
    biased = (largest.view(torch.int32) >> 23).clamp(min=LEAST_EXPONENT)
    step = exact.power_of_two(biased - 127 + 1 - 15)
    values = (x_TBK.double() / step[..., None]).round().clamp(max=32767.0)
    values.masked_fill_(broken[..., None], 0.0)
    step.masked_fill_(broken, torch.nan)
    return Steps(values.flatten(1), step.float())


class TorchFastKernels(TorchKernels):
    """The torch column in fast mode."""

    layout = "codes"

    def describe(self) -> str:
        return super().describe().replace("torch kernels", "torch kernels in fast mode", 1)

    def packed_bytes(self, kind: WeightKind, rows: int, cols: int) -> int:
        if is_dense(kind):
            return super().packed_bytes(kind, rows, cols)
        return -(-raw_bytes(kind, rows, cols) // 64) * 64

    def pack(self, kind: WeightKind, rows: int, cols: int, raw: Tensor, out: Tensor) -> None:
        """The checkpoint's own bytes."""
        if is_dense(kind):
            super().pack(kind, rows, cols, raw, out)
            return
        checks.packing(kind, rows, cols, raw, out, self.packed_bytes(kind, rows, cols))
        codes = codes_of(kind, rows, cols, raw)
        if not all(bool(torch.isfinite(x).all()) for x in (codes.scale_OG, codes.minimum_OB)):
            raise ModelFileError(f"a {kind} matrix {rows} x {cols} holds infinities or NaN")
        out[: raw.numel()] = raw.reshape(-1)

    def linear(
        self,
        x_TI: Tensor,
        weight: PackedWeight,
        bias_O: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        if is_dense(weight.kind):
            return super().linear(x_TI, weight, bias_O, out_TO)
        checks.floats("x", x_TI, 2)
        checks.weight_matches(weight, self.layout, x_TI.shape[1])
        tokens, rows = x_TI.shape[0], weight.rows
        y_TO = self.empty(tokens, rows) if out_TO is None else out_TO
        checks.result(y_TO, tokens, rows)
        sums_TO = _product(quantise(x_TI.contiguous()), _codes(weight))
        if bias_O is not None:
            sums_TO += checks.vector("bias", bias_O, rows)
        y_TO.copy_(sums_TO)
        return y_TO

    def embed(self, ids_T: Tensor, weight: PackedWeight, scale: float = 1.0) -> Tensor:
        if is_dense(weight.kind):
            return super().embed(ids_T, weight, scale)
        checks.weight_matches(weight, self.layout)
        ids = checks.indices("ids", ids_T, -1)
        checks.within("token id", ids, weight.rows)
        size = raw_bytes(weight.kind, weight.rows, weight.cols)
        raw = checks.packed_data(weight, size)[:size].view(weight.rows, -1)[ids.long()]
        rows_TI = codes_of(weight.kind, ids.numel(), weight.cols, raw).dense()
        return rows_TI if scale == 1.0 else rows_TI * scale


def _codes(weight: PackedWeight) -> Codes:
    size = raw_bytes(weight.kind, weight.rows, weight.cols)
    return codes_of(weight.kind, weight.rows, weight.cols, checks.packed_data(weight, size)[:size])


def _product(x: Steps, w: Codes) -> Tensor:
    """(T, O) float32."""
    tokens, rows = x.values_TI.shape[0], w.codes_OI.shape[0]
    values, codes = x.values_TI, w.codes_OI.double()
    group = values.shape[1] // w.scale_OG.shape[1]  # columns under one scale: 32, or 16
    y_TO = torch.zeros(tokens, rows)
    for block in range(x.step_TB.shape[1]):
        step_T1 = x.step_TB[:, block, None]
        for first in range(block * BLOCK, (block + 1) * BLOCK, group):
            part = slice(first, first + group)
            whole = (values[:, part] @ codes[:, part].T).float()  # exact before it is rounded
            y_TO = exact.fma(whole, w.scale_OG[:, first // group] * step_T1, y_TO)
        if w.has_minima:
            columns = slice(block * BLOCK, (block + 1) * BLOCK)
            sums_T1 = values[:, columns].sum(1, keepdim=True).float() * step_T1
            y_TO = exact.fma(w.minimum_OB[:, block].expand_as(y_TO), sums_T1, y_TO)
    return y_TO
