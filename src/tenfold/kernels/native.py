"""The native rows: the compiled extension behind the contract of base.py.

Passes addresses, sizes and strides down; types and shapes are checked here, values (ids, slots,
block tables) by the extension. Weights are packed in panels of 32 outputs (native/src/layout.hpp).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor

from tenfold.core.errors import ModelFileError, TenfoldError
from tenfold.kernels import checks
from tenfold.kernels.base import PackedWeight, WeightKind
from tenfold.kernels.checks import ShapeError
from tenfold.kernels.kv_rows import KV_DTYPES, kv_dtype_of
from tenfold.kernels.native_experts import ExpertOperations
from tenfold.kernels.quant import raw_bytes
from tenfold.kernels.scratch import Scratch, ScratchMemory

if TYPE_CHECKING:
    from tenfold._native import Runtime


class NativeTape:
    """A recorded run of native operations (native/src/runtime.hpp)."""

    def __init__(self, kernels: NativeKernels, runtime: Runtime, tape: Any) -> None:
        self._kernels = kernels
        self._runtime = runtime
        self._tape = tape
        self._kept: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        self._runtime.record(self._tape)
        self._kernels.kept = self._kept
        try:
            yield
        finally:
            self._kernels.kept = None
            self._runtime.stop()

    def replay(self) -> None:
        try:
            self._runtime.replay(self._tape)
        except ValueError as exc:
            _refuse(exc)


class NativeKernels(ExpertOperations):
    """The native column with its own pool of ``threads`` threads (the caller's included).

    ``extension`` is the module ``tenfold._native``; ``arch`` forces a row by name ("avx512",
    "avx2", "portable") instead of the best one for this machine. ``mode`` "fast" multiplies
    quantised weights by integer activations (torch_fast.py says how); the packed weights are the
    same. Calls from several threads take turns.
    """

    layout = "panel32"
    kv_dtypes = KV_DTYPES

    def __init__(
        self,
        extension: ModuleType,
        threads: int,
        arch: str = "",
        mode: Literal["exact", "fast"] = "exact",
    ) -> None:
        self._extension: Any = extension
        try:
            self._runtime: Runtime = self._extension.Runtime(threads, arch, mode == "fast")
        except ValueError as exc:
            raise ShapeError(str(exc)) from exc
        self._threads = threads
        self._mode = mode
        self._arch = self._runtime.arch
        kinds = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k")
        self._codes: dict[str, int] = {kind: code for code, kind in enumerate(kinds)}
        self._scratch = Scratch()
        self.kept: list[Tensor] | None = None
        """While a tape records: what must live as long as the tape."""

    @property
    def threads(self) -> int:
        return self._threads

    def describe(self) -> str:
        count = "1 thread" if self._threads == 1 else f"{self._threads} threads"
        return f"native {self._arch} kernels, {self._mode} mode, {count}"

    def close(self) -> None:
        self._runtime = _Closed()  # type: ignore[assignment]  # the old one ends its threads

    def scope(self) -> AbstractContextManager[None]:
        return self._scratch.scope()

    def use_scratch(self, memory: ScratchMemory) -> None:
        if self._scratch.active:
            raise TenfoldError("scratch memory cannot be changed inside a scope")
        self._scratch = Scratch(memory)

    def tape(self) -> NativeTape:
        return NativeTape(self, self._runtime, self._extension.Tape())

    def busy_seconds(self) -> float:
        return float(self._runtime.seconds)

    def empty(self, rows: int, cols: int) -> Tensor:
        if self._scratch.active:
            return self._scratch.take(rows, cols)
        return torch.empty(rows, cols, dtype=torch.float32, device="cpu")

    def _dense(self, x: Tensor) -> Tensor:
        """``x`` contiguous over its last dimension. A copy would be lost on a tape."""
        if x.stride()[-1] == 1:
            return x
        if self.kept is not None:
            raise ShapeError("an operation that needs a copy of its input cannot be recorded")
        return x.contiguous()

    def _keep(self, *tensors: Tensor) -> None:
        if self.kept is not None:
            self.kept += tensors

    def packed_bytes(self, kind: WeightKind, rows: int, cols: int) -> int:
        raw_bytes(kind, rows, cols)
        return int(self._extension.packed_bytes(self._codes[kind], rows, cols))

    def pack(self, kind: WeightKind, rows: int, cols: int, raw: Tensor, out: Tensor) -> None:
        checks.packing(kind, rows, cols, raw, out, self.packed_bytes(kind, rows, cols))
        try:
            self._runtime.pack(self._codes[kind], rows, cols, raw.data_ptr(), out.data_ptr())
        except ValueError as exc:
            raise ModelFileError(f"a {kind} matrix {rows} x {cols}: {exc}") from exc

    def linear(
        self,
        x_TI: Tensor,
        weight: PackedWeight,
        bias_O: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        checks.floats("x", x_TI, 2)
        tokens, cols = x_TI.shape
        rows = weight.rows
        if weight.layout != self.layout or weight.cols != cols:
            checks.weight_matches(weight, self.layout, cols)
        stride, inner = x_TI.stride()
        if inner != 1:
            x_TI, stride = self._dense(x_TI), cols
        bias = 0
        if bias_O is not None:
            bias_O = checks.vector("bias", bias_O, rows)
            bias = bias_O.data_ptr()
        if out_TO is None:
            y_TO = self.empty(tokens, rows)
        else:
            checks.result(out_TO, tokens, rows)
            y_TO = out_TO
        data = weight.data
        try:
            self._runtime.linear(
                self._codes[weight.kind], data.data_ptr(), data.nbytes, rows, cols,
                x_TI.data_ptr(), tokens, stride, bias, y_TO.data_ptr(), y_TO.stride()[0],
            )  # fmt: skip
        except ValueError as exc:
            _refuse(exc)
        return y_TO

    def embed(self, ids_T: Tensor, weight: PackedWeight, scale: float = 1.0) -> Tensor:
        checks.weight_matches(weight, self.layout)
        ids = checks.indices("ids", ids_T, -1)
        tokens = ids.numel()
        y_TI = self.empty(tokens, weight.cols)
        data = weight.data
        try:
            self._runtime.embed(
                self._codes[weight.kind], data.data_ptr(), data.nbytes, weight.rows, weight.cols,
                ids.data_ptr(), tokens, scale, y_TI.data_ptr(),
            )  # fmt: skip
        except ValueError as exc:
            _refuse(exc)
        return y_TI

    def rms_norm(self, x_TI: Tensor, weight_I: Tensor, eps: float) -> Tensor:
        shape, strides = x_TI.shape, x_TI.stride()
        checks.floats("x", x_TI, len(shape))
        weight = checks.vector("weight", weight_I, shape[-1])
        if len(shape) not in (2, 3) or strides[-1] != 1:
            flat = x_TI.reshape(-1, shape[-1]).contiguous()
            return self.rms_norm(flat, weight, eps).view(shape)
        tokens, heads, n = shape if len(shape) == 3 else (shape[0], 1, shape[1])
        y_TI = self.empty(tokens * heads, n).view(shape)
        self._runtime.rms_norm(
            x_TI.data_ptr(), tokens, heads, n, strides[0], strides[-2],
            weight.data_ptr(), eps, y_TI.data_ptr(),
        )  # fmt: skip
        return y_TI

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
        checks.floats("x", x_TI, 2)
        tokens, n = x_TI.shape
        y_TI = self.empty(tokens, n) if out_TI is None else out_TI
        for name, tensor in (("x", x_TI), ("delta", delta_TI), ("out", y_TI)):
            checks.dense(name, tensor, (tokens, n))
        weight = checks.vector("weight", weight_I, n)
        other = 0
        if delta_weight_I is not None:
            other = checks.vector("delta_weight", delta_weight_I, n).data_ptr()
        self._runtime.add_rms_norm(
            x_TI.data_ptr(), delta_TI.data_ptr(), other, weight.data_ptr(),
            tokens, n, eps, y_TI.data_ptr(),
        )  # fmt: skip
        return y_TI

    def gather(self, x_TI: Tensor, rows_L: Tensor) -> Tensor:
        checks.floats("x", x_TI, 2)
        total, n = x_TI.shape
        checks.dense("x", x_TI, (total, n))
        rows = checks.indices("rows", rows_L, -1)
        y_LI = self.empty(rows.numel(), n)
        try:
            self._runtime.gather(
                x_TI.data_ptr(), rows.data_ptr(), rows.numel(), total, n, y_LI.data_ptr()
            )
        except ValueError as exc:
            _refuse(exc)
        return y_LI

    def softcap(self, x_TI: Tensor, cap: float) -> None:
        checks.floats("x", x_TI, 2)
        checks.dense("x", x_TI, tuple(x_TI.shape))
        self._runtime.softcap(x_TI.data_ptr(), x_TI.numel(), cap)

    def largest(self, x_LV: Tensor) -> tuple[Tensor, Tensor]:
        rows, n = len(x_LV), max(1, x_LV.shape[-1])
        checks.dense("x", x_LV, (rows, n))
        ids_L, values_L = self.empty(1, rows)[0].view(torch.int32), self.empty(1, rows)[0]
        self._runtime.largest(x_LV.data_ptr(), rows, n, ids_L.data_ptr(), values_L.data_ptr())
        return ids_L, values_L

    def slots(
        self, table_SB: Tensor, starts_S1: Tensor, context_S: Tensor, tokens: int, block_tokens: int
    ) -> Tensor:
        table = self._dense(checks.block_table(table_SB))
        sequences, columns = table.shape
        starts = checks.indices("starts", starts_S1, sequences + 1)
        context = checks.indices("context", context_S, sequences)
        slots_T = self.empty(1, tokens).view(tokens).view(torch.int32)
        try:
            self._runtime.slots(
                table.data_ptr(), sequences, columns, table.stride()[0], tokens, block_tokens,
                starts.data_ptr(), context.data_ptr(), slots_T.data_ptr(),
            )  # fmt: skip
        except ValueError as exc:
            _refuse(exc)
        return slots_T

    def gated(self, gate_up_TI: Tensor, activation: Literal["silu", "gelu_tanh"]) -> Tensor:
        checks.floats("gate_up", gate_up_TI, 2)
        checks.gated(gate_up_TI, activation)
        x_TI = self._dense(gate_up_TI)
        tokens, width = x_TI.shape
        y_TI = self.empty(tokens, width // 2)
        self._runtime.gated(
            x_TI.data_ptr(), tokens, x_TI.stride()[0], width // 2,
            activation == "gelu_tanh", y_TI.data_ptr(),
        )  # fmt: skip
        return y_TI

    def rope(self, x_THD: Tensor, positions_T: Tensor, cos_PD: Tensor, sin_PD: Tensor) -> None:
        checks.rope(x_THD, cos_PD, sin_PD)
        tokens, heads, dim = x_THD.shape
        token_stride, head_stride, inner = x_THD.stride()
        if inner != 1:
            raise ShapeError("x is rotated in place and must be dense over the head dim")
        positions = checks.indices("positions", positions_T, tokens)
        cos, sin = cos_PD.contiguous(), sin_PD.contiguous()
        self._keep(cos, sin)
        table = cos.shape[0]
        try:
            self._runtime.rope(
                x_THD.data_ptr(), tokens, heads, dim, token_stride, head_stride,
                positions.data_ptr(), cos.data_ptr(), sin.data_ptr(), table,
            )  # fmt: skip
        except ValueError as exc:
            _refuse(exc)

    def store_kv(
        self, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, layer: int, slots_T: Tensor
    ) -> None:
        checks.store(k_TKD, v_TKD, cache, layer)
        tokens, heads, dim = k_TKD.shape
        slots = checks.indices("slots", slots_T, tokens)
        k, v = self._dense(k_TKD), self._dense(v_TKD)
        blocks, _, _, _, block_tokens, _ = cache.shape
        row, strides = _cache_rows(cache)
        k_token, k_head, _ = k.stride()
        v_token, v_head, _ = v.stride()
        try:
            self._runtime.store_kv(
                k.data_ptr(), k_token, k_head, v.data_ptr(), v_token, v_head,
                tokens, row, cache.data_ptr(), blocks, heads, block_tokens, dim, *strides,
                layer, slots.data_ptr(),
            )  # fmt: skip
        except ValueError as exc:
            _refuse(exc)

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
        q = self._dense(q_THD)
        tokens, heads, dim = q.shape
        table = self._dense(checks.block_table(table_SB))
        sequences, columns = table.shape
        starts = checks.indices("starts", starts_S1, sequences + 1)
        context = checks.indices("context", context_S, sequences)
        blocks, _, _, kv_heads, block_tokens, _ = cache.shape
        row, strides = _cache_rows(cache)
        sinks = None if sinks_H is None else checks.vector("sinks", sinks_H, heads)
        self._keep(*(x for x in (sinks, lse_TH) if x is not None))
        out_THD = self.empty(tokens, heads * dim).view(tokens, heads, dim)
        q_token, q_head, _ = q.stride()
        try:
            self._runtime.attention(
                q.data_ptr(), tokens, heads, dim, q_token, q_head,
                row, cache.data_ptr(), blocks, kv_heads, block_tokens, *strides, layer,
                table.data_ptr(), sequences, columns, table.stride()[0],
                starts.data_ptr(), context.data_ptr(),
                scale, window or 0, softcap or 0.0,
                0 if sinks is None else sinks.data_ptr(), out_THD.data_ptr(),
                0 if lse_TH is None else lse_TH.data_ptr(),
            )  # fmt: skip
        except ValueError as exc:
            _refuse(exc)
        return out_THD


def _cache_rows(cache: Tensor) -> tuple[int, tuple[int, int, int, int, int]]:
    """The code of a cache's type, and its strides in bytes but for the last."""
    block, layer, pair, head, token, _ = cache.stride()
    n = cache.itemsize
    code = KV_DTYPES.index(kv_dtype_of(cache) or "f32")
    return code, (block * n, layer * n, pair * n, head * n, token * n)


def _refuse(exc: ValueError) -> NoReturn:
    raise ShapeError(str(exc)) from exc


class _Closed:
    """Stands where the runtime was, after ``close``."""

    def __getattr__(self, name: str) -> NoReturn:
        raise TenfoldError("these kernels are closed")
