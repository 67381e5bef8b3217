"""The Triton column: dense weights of one float type, torch for products, Triton for the rest.

Checkpoints of any kind are dequantised to ``dtype`` (bf16 on a GPU) when they are packed. The
residual stream is float32: ``embed`` gives it, ``add_rms_norm`` adds to it; everything between a
norm and the next addition is in ``dtype``, which is what sums are rounded to, not made in.

Attention, norms and the like do not depend on the other tokens of a call. The library's dense
products may: it chooses a kernel by the number of rows. Ids, slots and tables are not checked for
range here, because reading them back would stop the device. Not yet run on a GPU; proved under
Triton's interpreter (which has no bf16 arithmetic) with float32 and float16.

Shape letters as in base.py. Knows nothing of models, streams or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.core.errors import ModelFileError
from tenfold.core.types import KVDtype
from tenfold.kernels import triton_checks as checks
from tenfold.kernels import triton_decode, triton_experts, triton_prefill, triton_rows
from tenfold.kernels.base import PackedWeight, Tape, WeightKind
from tenfold.kernels.cuda_graphs import Graphs
from tenfold.kernels.cuda_staging import Uploads
from tenfold.kernels.flashinfer_adapter import FlashInfer
from tenfold.kernels.quant import block_of, dequantise, raw_bytes
from tenfold.kernels.triton_experts import ExpertMatrices, Route

_CHUNK = 1 << 24
"""Values that are dequantised at a time."""


class TritonKernels:
    """The column on one device. ``device`` "cpu" works under Triton's interpreter only.

    ``flashinfer``: the adapter, where its package is installed; it then does the attention of
    prompts. ``graphs``: None makes steps that cannot be recorded. ``uploads`` carries packed
    weights to the device; call its ``finish`` before they are used. Calls come from one thread at a
    time, all on the current stream.
    """

    kv_dtypes: tuple[KVDtype, ...] = ("f32", "f16", "bf16")

    def __init__(
        self,
        device: torch.device | str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        flashinfer: FlashInfer | None = None,
        graphs: Graphs | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        name = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}[dtype]
        self.kind: WeightKind = name  # type: ignore[assignment]
        self.layout = f"rows-{name}"
        self._flashinfer = flashinfer
        self._graphs = graphs
        self._upload = Tensor.copy_ if uploads is None else uploads.copy
        self._processors, self._shared, self._what = 4, 1 << 20, "Triton's interpreter"
        if self.device.type == "cuda":
            found = torch.cuda.get_device_properties(self.device)
            self._processors, self._what = found.multi_processor_count, found.name
            self._shared = int(getattr(found, "shared_memory_per_block_optin", 96 << 10))

    @property
    def threads(self) -> int:
        """The device's multiprocessors."""
        return self._processors

    def describe(self) -> str:
        extra = ", FlashInfer for prompts" if self._flashinfer else ""
        return f"Triton kernels on {self._what}, {self.kind} weights{extra}"

    def close(self) -> None:
        """Nothing to end."""

    def scope(self) -> AbstractContextManager[None]:
        """Results are tensors of their own, from torch's caching allocator."""
        return nullcontext()

    def tape(self) -> Tape | None:
        """A CUDA graph to be captured. Run the operations once before they are recorded: kernels
        are compiled at their first call, which a capture forbids."""
        return None if self._graphs is None else self._graphs.tape()

    def busy_seconds(self) -> float:
        """Not measured: operations return before they are done."""
        return 0.0

    def empty(self, rows: int, cols: int) -> Tensor:
        """An uninitialised result in ``dtype``."""
        return torch.empty(rows, cols, dtype=self.dtype, device=self.device)

    def packed_bytes(self, kind: WeightKind, rows: int, cols: int) -> int:
        raw_bytes(kind, rows, cols)
        return -(-rows * cols * self.dtype.itemsize // 64) * 64

    def pack(self, kind: WeightKind, rows: int, cols: int, raw: Tensor, out: Tensor) -> None:
        """Dequantise on the CPU, part by part; ``out`` may be on the device."""
        size = self.packed_bytes(kind, rows, cols)
        checks.packing(kind, rows, cols, raw, out, size, on_device=True)
        width = block_of(kind)
        row_bytes = cols // width.values * width.bytes
        flat = raw.reshape(-1)
        to = out[: rows * cols * self.dtype.itemsize].view(self.dtype).view(rows, cols)
        step = max(1, _CHUNK // cols)
        for first in range(0, rows, step):
            last = min(rows, first + step)
            part = flat[first * row_bytes : last * row_bytes]
            values = dequantise(kind, last - first, cols, part).to(self.dtype)
            if not bool(torch.isfinite(values).all()):
                raise ModelFileError(
                    f"a {kind} matrix {rows} x {cols} holds infinities, NaN, or values too large "
                    f"for {self.kind}"
                )
            self._upload(to[first:last], values)

    def linear(
        self,
        x_TI: Tensor,
        weight: PackedWeight,
        bias_O: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        """In x's own type: float32 rows give float32 sums of ``dtype`` products."""
        checks.matrix("x", x_TI)
        checks.weight_matches(weight, self.layout, x_TI.shape[1])
        w_OI = self._dense(weight)
        y = self._product(x_TI, w_OI, x_TI.dtype)
        if bias_O is not None:
            y += bias_O
        return y if out_TO is None else out_TO.copy_(y)

    def logits(self, x_TI: Tensor, weight: PackedWeight) -> Tensor:
        """``linear`` with a float32 result: bf16 has too few digits to tell two tokens apart."""
        checks.matrix("x", x_TI)
        checks.weight_matches(weight, self.layout, x_TI.shape[1])
        return self._product(x_TI, self._dense(weight), torch.float32)

    def _product(self, x_TI: Tensor, w_OI: Tensor, out: torch.dtype) -> Tensor:
        x = x_TI.to(self.dtype)
        if self.dtype is out:
            return functional.linear(x, w_OI)
        if x.is_cuda:
            return torch.mm(x, w_OI.T, out_dtype=out)
        return functional.linear(x.to(out), w_OI.to(out))  # torch has no such product on CPUs

    def _dense(self, weight: PackedWeight) -> Tensor:
        size = weight.rows * weight.cols * self.dtype.itemsize
        return weight.data[:size].view(self.dtype).view(weight.rows, weight.cols)

    def embed(self, ids_T: Tensor, weight: PackedWeight, scale: float = 1.0) -> Tensor:
        """Rows in float32: the beginning of the residual stream."""
        checks.weight_matches(weight, self.layout)
        checks.indices("ids", ids_T, -1)
        rows_TI = functional.embedding(ids_T, self._dense(weight)).float()
        return rows_TI if scale == 1.0 else rows_TI.mul_(scale)

    def gather(self, x_TI: Tensor, rows_L: Tensor) -> Tensor:
        checks.matrix("x", x_TI)
        checks.indices("rows", rows_L, -1)
        return x_TI.index_select(0, rows_L)

    def softcap(self, x_TI: Tensor, cap: float) -> None:
        x_TI.div_(cap).tanh_().mul_(cap)

    def largest(self, x_LV: Tensor) -> tuple[Tensor, Tensor]:
        values_L, ids_L = x_LV.max(dim=-1)
        return ids_L.int(), values_L

    def slots(
        self, table_SB: Tensor, starts_S1: Tensor, context_S: Tensor, tokens: int, block_tokens: int
    ) -> Tensor:
        """As base.py says. A sequence whose context is -1 is a padding row: slot -1."""
        checks.tables(table_SB, starts_S1, context_S)
        return triton_decode.slots(table_SB, starts_S1, context_S, tokens, block_tokens)

    def rms_norm(self, x_TI: Tensor, weight_I: Tensor, eps: float) -> Tensor:
        """In ``dtype``, whatever x is."""
        checks.norm(x_TI, weight_I)
        if x_TI.dim() in (2, 3) and x_TI.stride(-1) == 1:
            return triton_rows.rms_norm(x_TI, weight_I, eps, self.dtype)
        flat = x_TI.reshape(-1, x_TI.shape[-1]).contiguous()
        return triton_rows.rms_norm(flat, weight_I, eps, self.dtype).view(x_TI.shape)

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
        checks.norm(x_TI, weight_I)
        out = self.empty(*x_TI.shape) if out_TI is None else out_TI
        for name, tensor in (("x", x_TI), ("delta", delta_TI), ("out", out)):
            checks.dense(name, tensor, x_TI.shape)
        if delta_weight_I is not None:
            checks.norm(delta_TI, delta_weight_I)
        triton_rows.add_rms_norm(x_TI, delta_TI, weight_I, eps, delta_weight_I, out)
        return out

    def gated(self, gate_up_TI: Tensor, activation: Literal["silu", "gelu_tanh"]) -> Tensor:
        checks.matrix("gate_up", gate_up_TI)
        checks.gated(gate_up_TI, activation)
        dense = gate_up_TI if gate_up_TI.stride(1) == 1 else gate_up_TI.contiguous()
        return triton_rows.gated(dense, activation)

    def rope(self, x_THD: Tensor, positions_T: Tensor, cos_PD: Tensor, sin_PD: Tensor) -> None:
        checks.rope(x_THD, cos_PD, sin_PD)
        checks.indices("positions", positions_T, x_THD.shape[0])
        triton_rows.rope(x_THD, positions_T, cos_PD, sin_PD)

    def store_kv(
        self, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, layer: int, slots_T: Tensor
    ) -> None:
        """As base.py says; a slot below 0 is a padding row, which writes nothing."""
        checks.store(k_TKD, v_TKD, cache, layer)
        checks.indices("slots", slots_T, k_TKD.shape[0])
        triton_rows.store_kv(k_TKD, v_TKD, cache, layer, slots_T)

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
        """As base.py says. A sequence whose context is -1 is a padding row: zeros.

        Sequences with one new token go to the split kernel, the others to the tiled one, whatever
        else is in the call. ``sinks``: one more logit of each head's softmax, without a value.
        ``lse``: receives the natural logarithm of each softmax's denominator, sinks included."""
        checks.attention(q_THD, cache, layer, window, softcap, sinks_H, lse_TH)
        checks.tables(table_SB, starts_S1, context_S)
        q = q_THD if q_THD.stride(2) == 1 else q_THD.contiguous()
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        tokens, sequences = q.shape[0], table_SB.shape[0]
        if not tokens:
            return out
        batch = (q, cache, layer, table_SB, starts_S1, context_S, out)
        other = self._flashinfer
        if tokens != sequences:
            if other is not None and other.takes(q, cache, sinks_H, lse_TH):
                other.attend(*batch, scale=scale, window=window, softcap=softcap)
                return out
            triton_prefill.prefill(
                *batch, lse_TH, sinks_H, scale=scale, window=window or 0, softcap=softcap or 0.0,
                shared=self._shared,
            )  # fmt: skip
        triton_decode.decode(
            *batch, lse_TH, sinks_H, scale=scale, window=window or 0, softcap=softcap or 0.0,
            processors=self._processors,
        )  # fmt: skip
        return out

    def expert_matrices(self, weights: Sequence[PackedWeight]) -> ExpertMatrices:
        """Packed matrices of one shape, one per expert, as ``grouped_linear`` takes them.

        They must lie in one buffer, at whatever places; nothing is copied."""
        checks.alike(weights, self.layout)
        first = weights[0].data
        places = [weight.data.data_ptr() - first.data_ptr() for weight in weights]
        offsets = torch.tensor(places, dtype=torch.int64) // self.dtype.itemsize
        base = self._dense(weights[0])
        return ExpertMatrices(base, offsets.to(base.device), weights[0].rows, weights[0].cols)

    def route(self, experts_Tk: Tensor, experts: int) -> Route:
        """Sort (token, slot) pairs by expert, for ``grouped_linear``."""
        return triton_experts.route(experts_Tk, experts)

    def grouped_linear(
        self,
        x: Tensor,
        matrices: ExpertMatrices,
        way: Route,
        repeat: int,
        out: Tensor | None = None,
    ) -> Tensor:
        """Pair p's row, which is row p // ``repeat`` of x, times its expert's matrix -> (R, O)."""
        checks.matrix("x", x)
        x = x.to(self.dtype)
        x = x if x.stride(1) == 1 else x.contiguous()
        y = triton_experts.grouped_linear(x, matrices, way, repeat)
        return y if out is None else out.copy_(y)
