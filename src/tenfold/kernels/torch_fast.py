"""The definition of fast mode's product: quantised weights times integer activations, in torch.

Activations are rounded to integers in blocks of 32 columns of a row; codes of weights stay as the
checkpoint has them. Eight-bit codes take int16 activations, each block on a power of two of its
own. Four-bit codes take int8, each block on 1/127 of its largest value; blocks that stand out of
their row, since their largest value is more than 1.5 times the mean of the row's blocks, take 16
bits, as two int8: what they lose would otherwise be most of what is lost. A block's products are
summed as integers, exactly. Per output, blocks in ascending order, with one rounding each:

    y = fma(float32(integer sum), weight scale * step of the block, y)
    y = fma(weight minimum, sum of the block's activations, y)        where the kind has minima

starting from zero; then, over the fine blocks,

    y = fma(float32(sum of the low bytes), weight scale * (step / 256), y)

and the bias. Dense kinds are multiplied as in exact mode.

A row's result depends on nothing but the row and the weights. The rounding of activations costs
each output at most 2^-14 of sum |w| * (largest |x| of the block) with eight-bit codes, and 1/253 of
it with four-bit ones, 2^-15 in their fine blocks. Native rows give the same bits. Slow: meant to be
read and tested against.
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

FOUR_BIT: tuple[WeightKind, ...] = ("q4_0", "q4_1", "q4_k")
"""Kinds whose products take bytes."""

BLOCK = 32
"""Columns that share a step."""

STANDS_OUT = 1.5
"""How far above the mean of its row's blocks a block's largest value is where it takes 16 bits."""

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


class ByteSteps(NamedTuple):
    """Activations as high bytes, and low ones in fine blocks: x = step (high + low / 256)."""

    high_TI: Tensor
    """In [-127, 127], float64."""
    low_TI: Tensor
    """In [-128, 127], float64; 0 in blocks that are not fine."""
    fine_TB: Tensor
    step_TB: Tensor
    """float32; NaN where the block holds an infinity or NaN."""


def quantise_bytes(x_TI: Tensor) -> ByteSteps:
    """With m a block's largest value: q = x * (32512 / m), rounded in float32 and then to the
    nearest integer (ties to even), high = (q + 128) // 256, low = q - 256 high, step = m / 127."""
    x_TBK = x_TI.reshape(x_TI.shape[0], x_TI.shape[1] // BLOCK, BLOCK)
    largest_TB = x_TBK.abs().amax(-1)
    broken = ~torch.isfinite(x_TBK).all(-1)
    total_T1 = torch.zeros(len(x_TI), 1)
    for block in range(x_TBK.shape[1]):  # in float32, one after the other
        total_T1 += largest_TB[:, block, None]
    fine_TB = largest_TB * x_TBK.shape[1] > total_T1 * STANDS_OUT
    least = 2.0 ** (LEAST_EXPONENT - 127)
    most_TB = largest_TB.masked_fill(broken, 1.0).clamp(min=least)
    inverse_TB = torch.tensor(32512.0) / most_TB  # a float / a tensor would be rounded twice
    q_TBK = (x_TBK * inverse_TB[..., None]).round().double()
    q_TBK.masked_fill_(broken[..., None], 0.0)
    high_TBK = ((q_TBK + 128.0) / 256.0).floor()
    low_TBK = (q_TBK - 256.0 * high_TBK) * fine_TB[..., None]
    step_TB = (most_TB * torch.tensor(1.0 / 127.0)).masked_fill_(broken, torch.nan)
    return ByteSteps(high_TBK.flatten(1), low_TBK.flatten(1), fine_TB, step_TB)


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
        product = _byte_product if weight.kind in FOUR_BIT else _product
        sums_TO = product(x_TI.contiguous(), _codes(weight))
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


def _product(x_TI: Tensor, w: Codes) -> Tensor:
    """(T, O) float32."""
    x, codes = quantise(x_TI), w.codes_OI.double()
    group = x_TI.shape[1] // w.scale_OG.shape[1]  # columns under one scale: 32, or 16
    y_TO = torch.zeros(len(x_TI), len(codes))
    for block in range(x.step_TB.shape[1]):
        for first in range(block * BLOCK, (block + 1) * BLOCK, group):
            part = slice(first, first + group)
            whole = (x.values_TI[:, part] @ codes[:, part].T).float()  # exact until it is rounded
            scale_TO = w.scale_OG[:, first // group] * x.step_TB[:, block, None]
            y_TO = exact.fma(whole, scale_TO, y_TO)
    return y_TO


def _byte_product(x_TI: Tensor, w: Codes) -> Tensor:
    """(T, O) float32."""
    x, codes = quantise_bytes(x_TI), w.codes_OI.double()
    parts = [slice(first, first + BLOCK) for first in range(0, x_TI.shape[1], BLOCK)]
    low_step_TB = x.step_TB / 256.0
    y_TO = torch.zeros(len(x_TI), len(codes))
    for block, part in enumerate(parts):
        high = x.high_TI[:, part]
        whole = (high @ codes[:, part].T).float()
        y_TO = exact.fma(whole, w.scale_OG[:, block] * x.step_TB[:, block, None], y_TO)
        if w.has_minima:
            both_T1 = (256.0 * high + x.low_TI[:, part]).sum(1, keepdim=True).float()
            sums_T1 = both_T1 * low_step_TB[:, block, None]
            y_TO = exact.fma(w.minimum_OB[:, block].expand_as(y_TO), sums_T1, y_TO)
    for block, part in enumerate(parts):
        whole = (x.low_TI[:, part] @ codes[:, part].T).float()
        finer_TO = exact.fma(whole, w.scale_OG[:, block] * low_step_TB[:, block, None], y_TO)
        y_TO = torch.where(x.fine_TB[:, block, None], finer_TO, y_TO)
    return y_TO
