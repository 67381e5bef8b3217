"""The reference column: plain torch on the CPU, the definition that native rows are tested against.

Exact in both senses: accumulated in float64 and rounded once, and bit for bit independent of the
other rows of a call, of chunking and of threads (``exact`` says how). Meant to be right, not fast.

Shape letters as in base.py; G query heads of one key/value head, P positions of one sequence.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from tenfold.core.errors import ModelFileError
from tenfold.kernels import checks, exact
from tenfold.kernels.base import PackedWeight, WeightKind
from tenfold.kernels.checks import ShapeError
from tenfold.kernels.kv_rows import KV_DTYPES, encode
from tenfold.kernels.quant import block_of, dequantise, raw_bytes
from tenfold.kernels.torch_attention import Options, attend_sequence


class TorchKernels:
    """The torch column. ``reason`` says, for ``describe``, why it was chosen."""

    layout = "dense-f32"
    kv_dtypes = KV_DTYPES

    def __init__(self, reason: str = "") -> None:
        self._reason = reason

    @property
    def threads(self) -> int:
        """Torch's own setting, which is the process's: these rows do not change it."""
        return torch.get_num_threads()

    def describe(self) -> str:
        reason = f" ({self._reason})" if self._reason else ""
        count = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"torch kernels{reason}, {count}"

    def close(self) -> None:
        """Nothing to end: the threads are torch's."""

    def packed_bytes(self, kind: WeightKind, rows: int, cols: int) -> int:
        raw_bytes(kind, rows, cols)
        return -(-rows * cols * 4 // 64) * 64

    def pack(self, kind: WeightKind, rows: int, cols: int, raw: Tensor, out: Tensor) -> None:
        """Float32, each row on the grid of 26 bits below its largest value that ``linear`` needs.

        The grid costs at most 2^-27 of a row's largest value; most kinds lie on it already."""
        size = self.packed_bytes(kind, rows, cols)
        checks.packing(kind, rows, cols, raw, out, size)
        width = block_of(kind)
        row_bytes = cols // width.values * width.bytes
        flat, to = raw.reshape(-1), out[: rows * cols * 4].view(torch.float32).view(rows, cols)
        step = max(1, (1 << 22) // cols)
        for first in range(0, rows, step):
            last = min(rows, first + step)
            part = dequantise(kind, last - first, cols, flat[first * row_bytes : last * row_bytes])
            if not bool(torch.isfinite(part).all()):
                raise ModelFileError(f"a {kind} matrix {rows} x {cols} holds infinities or NaN")
            wide = part.double()
            to[first:last] = exact.on_grid(wide, exact.exponent_of(wide, 1), _weight_bits(cols))

    def scope(self) -> AbstractContextManager[None]:
        """Results are always tensors of their own here."""
        return nullcontext()

    def tape(self) -> None:
        return None

    def busy_seconds(self) -> float:
        return 0.0

    def empty(self, rows: int, cols: int) -> Tensor:
        return torch.empty(rows, cols, dtype=torch.float32, device="cpu")

    def linear(
        self,
        x_TI: Tensor,
        weight: PackedWeight,
        bias_O: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        checks.floats("x", x_TI, 2)
        checks.weight_matches(weight, self.layout, x_TI.shape[1])
        tokens, cols = x_TI.shape
        bias = None if bias_O is None else checks.vector("bias", bias_O, weight.rows).double()
        y_TO = self.empty(tokens, weight.rows) if out_TO is None else out_TO
        checks.result(y_TO, tokens, weight.rows)
        if tokens == 0:
            return y_TO
        bits = exact.MANTISSA - exact.count_bits(cols) - _weight_bits(cols)
        parts = torch.cat(exact.split(x_TI.double(), 1, bits))
        w_OI = _dense(weight)
        step = max(64, 2 * exact.CACHED // cols)
        for first in range(0, weight.rows, step):
            products = parts @ w_OI[first : first + step].double().T
            sums = products[:tokens] + products[tokens:]
            if bias is not None:
                sums += bias[first : first + step]
            y_TO[:, first : first + step] = sums
        return y_TO

    def embed(self, ids_T: Tensor, weight: PackedWeight, scale: float = 1.0) -> Tensor:
        checks.weight_matches(weight, self.layout)
        ids = checks.indices("ids", ids_T, -1)
        checks.within("token id", ids, weight.rows)
        rows_TI = _dense(weight)[ids.long()]
        return rows_TI if scale == 1.0 else rows_TI * scale

    def gather(self, x_TI: Tensor, rows_L: Tensor) -> Tensor:
        checks.dense("x", x_TI, tuple(x_TI.shape))
        rows = checks.indices("rows", rows_L, -1)
        checks.within("row", rows, x_TI.shape[0])
        return x_TI[rows.long()]

    def softcap(self, x_TI: Tensor, cap: float) -> None:
        checks.dense("x", x_TI, tuple(x_TI.shape))
        x_TI.copy_(exact.tanh(x_TI.double() / cap) * cap)

    def largest(self, x_LV: Tensor) -> tuple[Tensor, Tensor]:
        checks.dense("x", x_LV, (len(x_LV), max(1, x_LV.shape[-1])))
        ids_L = torch.from_numpy(x_LV.numpy().argmax(-1))  # torch's own promises no first of equals
        return ids_L.int(), x_LV.gather(1, ids_L[:, None])[:, 0]

    def slots(
        self, table_SB: Tensor, starts_S1: Tensor, context_S: Tensor, tokens: int, block_tokens: int
    ) -> Tensor:
        table = checks.block_table(table_SB)
        starts = checks.indices("starts", starts_S1, table.shape[0] + 1).long()
        if int(starts[0]) or int(starts[-1]) != tokens:
            raise ShapeError(f"starts must run from 0 to {tokens}, not {starts.tolist()}")
        counts = starts.diff()
        sequence = torch.repeat_interleave(counts)
        first = torch.repeat_interleave(starts[:-1], counts)
        position = context_S.long()[sequence] + torch.arange(tokens) - first
        checks.within("block of a position", position // block_tokens, table.shape[1])
        blocks = table[sequence, position // block_tokens].long()
        return (blocks * block_tokens + position % block_tokens).int()

    def rms_norm(self, x_TI: Tensor, weight_I: Tensor, eps: float) -> Tensor:
        checks.floats("x", x_TI, x_TI.dim())
        weight = checks.vector("weight", weight_I, x_TI.shape[-1]).double()
        x = x_TI.double()
        squares = x * x
        bits = exact.MANTISSA - exact.count_bits(x.shape[-1])
        total = exact.on_grid(squares, exact.exponent_of(squares, -1), bits).sum(-1, keepdim=True)
        return (x / torch.sqrt(total / x.shape[-1] + eps) * weight).float()

    def add_rms_norm(
        self,
        x_TI: Tensor,
        delta_TI: Tensor,
        weight_I: Tensor,
        eps: float,
        *,
        delta_weight_I: Tensor | None = None,
        out_TI: Tensor | None = None,
    ) -> Tensor:
        for name, tensor in (("x", x_TI), ("delta", delta_TI)):
            checks.dense(name, tensor, tuple(x_TI.shape))
        if delta_weight_I is not None:
            delta_TI = self.rms_norm(delta_TI, delta_weight_I, eps)
        x_TI += delta_TI
        normed_TI = self.rms_norm(x_TI, weight_I, eps)
        return normed_TI if out_TI is None else out_TI.copy_(normed_TI)

    def gated(self, gate_up_TI: Tensor, activation: Literal["silu", "gelu_tanh"]) -> Tensor:
        checks.floats("gate_up", gate_up_TI, 2)
        checks.gated(gate_up_TI, activation)
        tokens, width = gate_up_TI.shape
        y_TI = gate_up_TI.new_empty(tokens, width // 2)
        step = max(1, exact.CACHED // width)
        for first in range(0, tokens, step):
            gate, up = gate_up_TI[first : first + step].double().chunk(2, dim=-1)
            t = gate
            if activation == "gelu_tanh":  # x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))
                t = (gate * gate * 0.044715 + 1.0) * gate * 1.5957691216057308
            y_TI[first : first + step] = gate / (exact.exp(-t) + 1.0) * up
        return y_TI

    def rope(self, x_THD: Tensor, positions_T: Tensor, cos_PD: Tensor, sin_PD: Tensor) -> None:
        checks.rope(x_THD, cos_PD, sin_PD)
        positions = checks.indices("positions", positions_T, x_THD.shape[0])
        checks.within("position", positions, cos_PD.shape[0])
        cos = cos_PD[positions.long()][:, None, :]
        sin = sin_PD[positions.long()][:, None, :]
        a, b = x_THD.chunk(2, dim=-1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        x_THD.copy_(rotated)

    def store_kv(
        self, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, layer: int, slots_T: Tensor
    ) -> None:
        checks.store(k_TKD, v_TKD, cache, layer)
        slots = checks.indices("slots", slots_T, k_TKD.shape[0])
        block_tokens = cache.shape[4]
        checks.within("slot", slots, cache.shape[0] * block_tokens)
        block = slots.long() // block_tokens
        offset = slots.long() % block_tokens
        cache[block, layer, 0, :, offset] = encode(k_TKD, cache.dtype)
        cache[block, layer, 1, :, offset] = encode(v_TKD, cache.dtype)

    def paged_attention(
        self,
        q_THD: Tensor,
        cache: Tensor,
        layer: int,
        table_SB: Tensor,
        starts_S1: Tensor,
        context_S: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks_H: Tensor | None = None,
        lse_TH: Tensor | None = None,
    ) -> Tensor:
        checks.attention(q_THD, cache, layer, window, softcap, sinks_H, lse_TH)
        table = checks.block_table(table_SB)
        sequences = table.shape[0]
        starts = checks.indices("starts", starts_S1, sequences + 1).tolist()
        contexts = checks.indices("context", context_S, sequences).tolist()
        if starts[0] != 0 or starts[-1] != q_THD.shape[0]:
            raise ShapeError(f"starts must run from 0 to {q_THD.shape[0]}, not {starts}")
        options = Options(scale, window, softcap, sinks_H)
        out_THD = q_THD.new_empty(q_THD.shape)
        for s, context in enumerate(contexts):
            new = slice(starts[s], starts[s + 1])
            if new.stop < new.start or context < 0:
                raise ShapeError(
                    f"sequence {s}: tokens {new.start} to {new.stop}, context {context}"
                )
            if new.stop > new.start:
                out_THD[new], lse = attend_sequence(
                    q_THD[new], cache, layer, table[s].tolist(), context, options
                )
                if lse_TH is not None:
                    lse_TH[new] = lse
        return out_THD


def _weight_bits(cols: int) -> int:
    """Bits for weights; what the sum leaves goes, twice, to the activations."""
    return 26 if cols <= 4096 else 25


def _dense(weight: PackedWeight) -> Tensor:
    size = weight.rows * weight.cols * 4
    flat = checks.packed_data(weight, size)[:size]
    return flat.view(torch.float32).view(weight.rows, weight.cols)
