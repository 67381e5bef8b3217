"""The contract of the kernel table: what each operation computes, whichever row runs it.

Shape letters: T tokens (rows), I input features, O output features, H query heads, K key/value
heads, D head dim, S sequences, B blocks of a sequence. Activations are float32.

Every row of the table obeys one rule in either mode: the result for one token does not depend on
which other tokens share the call, nor on the number of threads. That is what makes greedy output
identical whatever the batch, chunking, prefix hits or preemption. In ``exact`` mode the result is
also the reference's, up to float32 rounding; ``fast`` mode rounds the activations of quantised
products to integers (torch_fast.py) and is close to the reference instead.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from tenfold.core.types import KVDtype
from tenfold.kernels.scratch import ScratchMemory

WeightKind = Literal["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k"]


@dataclass(slots=True)
class PackedWeight:
    """A matrix (O, I) as one row set of the table wants it.

    ``kind`` is the checkpoint's own precision; ``data`` holds the bytes in the layout that
    ``layout`` names (made by ``Kernels.pack``). Several weights may share one buffer.
    """

    kind: WeightKind
    rows: int
    cols: int
    layout: str
    data: Tensor


class Tape(Protocol):
    """A sequence of operations recorded once and run again, on the same addresses.

    What lies at the addresses may change between runs (token ids, positions, block tables); shapes
    and strides may not. Results are written where the recorded calls wrote them."""

    def recording(self) -> AbstractContextManager[None]:
        """Operations called inside are computed and written down. Each tape records once; the
        results must come from an open ``Kernels.scope``, and stay in place as long as the tape."""
        ...

    def replay(self) -> None:
        """Run it all again. Raises what the operations raise for ids and positions."""
        ...


class Kernels(Protocol):
    """One chosen column of the table: native or torch. Stateless but for its threads.

    Shapes, types and indices that do not fit raise ``checks.ShapeError``. Infinities and NaN in a
    token's input stay in that token's output.
    """

    layout: str
    """Names the packing that ``linear`` and ``embed`` expect; part of the packed file's name."""

    kv_dtypes: tuple[KVDtype, ...]
    """The cache types that ``store_kv`` and ``paged_attention`` know."""

    @property
    def threads(self) -> int:
        """Threads that work on one call, the caller's among them."""
        ...

    def describe(self) -> str:
        """One line for a person, such as "native AVX2 kernels, exact mode, 2 threads"."""
        ...

    def close(self) -> None:
        """End the helper threads; using the object afterwards raises TenfoldError."""
        ...

    def packed_bytes(self, kind: WeightKind, rows: int, cols: int) -> int:
        """Bytes that ``pack`` writes for such a matrix; a multiple of 64."""
        ...

    def pack(self, kind: WeightKind, rows: int, cols: int, raw: Tensor, out: Tensor) -> None:
        """Rewrite a checkpoint's bytes (uint8: GGUF block order, or plain floats) into ``out``.

        Raises ModelFileError for infinities or NaN, or rows that are no whole number of blocks."""
        ...

    def scope(self) -> AbstractContextManager[None]:
        """Results made inside may be overwritten once it has ended; scopes nest. Results made in no
        scope are tensors of their own."""
        ...

    def tape(self) -> Tape | None:
        """A fresh tape, or None where this column has no use for one."""
        ...

    def busy_seconds(self) -> float:
        """Time spent inside operations since the beginning; 0 where it is not measured."""
        ...

    def empty(self, rows: int, cols: int) -> Tensor:
        """An uninitialised result (rows, cols), float32."""
        ...

    def linear(
        self,
        x_TI: Tensor,
        weight: PackedWeight,
        bias_O: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        """x @ W^T (+ bias) -> (T, O), into ``out`` (dense over O) where one is given."""
        ...

    def embed(self, ids_T: Tensor, weight: PackedWeight, scale: float = 1.0) -> Tensor:
        """Rows of a packed matrix, dequantised and multiplied by ``scale`` -> (T, I)."""
        ...

    def gather(self, x_TI: Tensor, rows_L: Tensor) -> Tensor:
        """The rows of ``x`` (dense) that are named -> (L, I)."""
        ...

    def softcap(self, x_TI: Tensor, cap: float) -> None:
        """cap * tanh(x / cap), in place; ``x`` dense."""
        ...

    def largest(self, x_LV: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's largest value, the first of equals: ids (L,) int32 and values (L,).

        ``x`` dense, V >= 1. A NaN counts as the largest."""
        ...

    def slots(
        self, table_SB: Tensor, starts_S1: Tensor, context_S: Tensor, tokens: int, block_tokens: int
    ) -> Tensor:
        """Where each of the ``tokens`` new tokens is kept -> (T,) int32 for ``store_kv``."""
        ...

    def rms_norm(self, x_TI: Tensor, weight_I: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension (any leading ones)."""
        ...

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
        """x += delta, in place; then rms_norm(x, weight) -> (T, I), into ``out`` if given.

        ``delta_weight``: delta is normed with it before it is added (sandwich norms). ``x``,
        ``delta`` and ``out`` are dense; ``out`` may be ``delta``."""
        ...

    def gated(self, gate_up_TI: Tensor, activation: Literal["silu", "gelu_tanh"]) -> Tensor:
        """act(first half) * second half of the last dimension -> (T, I/2)."""
        ...

    def rope(self, x_THD: Tensor, positions_T: Tensor, cos_PD: Tensor, sin_PD: Tensor) -> None:
        """Rotate in place, halves paired (x[i], x[i + D/2]); tables are (positions, D/2)."""
        ...

    def store_kv(
        self, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, layer: int, slots_T: Tensor
    ) -> None:
        """Write keys and values at ``slots`` (block * block_tokens + offset, int32) of one layer.

        ``cache``: (blocks, layers, 2, K, block tokens, R), strided as it may be but for the last
        dimension, which is one row as ``kernels.kv_rows`` lays it out: R = D numbers of float32,
        float16 or bfloat16, or R = D + 4 bytes of int8. Slots are distinct."""
        ...

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
        """Causal attention of each new token over its own sequence's cache -> (T, H, D).

        New token j of sequence s has position context_S[s] + j and sees positions (p - window, p].
        Its own key and value are already stored. Blocks wholly before the window may be -1.
        ``sinks``: per query head one more logit of the softmax, without a value. ``lse``, where
        given, is a dense float32 tensor that receives the natural logarithm of each softmax's
        denominator, sink included: with it, results over disjoint positions can be merged."""
        ...


@runtime_checkable
class WideLogits(Protocol):
    """A column whose activations are narrower than float32: logits need an operation of their own
    there, or several tokens would come out equal."""

    def logits(self, x_TI: Tensor, weight: PackedWeight) -> Tensor:
        """x @ W^T -> (T, O) float32."""
        ...


@runtime_checkable
class ScratchKernels(Protocol):
    """A column whose scopes' results lie in memory of its own, unless a device lends it some."""

    def use_scratch(self, memory: ScratchMemory) -> None:
        """Results made in scopes come from ``memory`` from now on; no scope is open. Tapes recorded
        before must not be replayed."""
        ...


@runtime_checkable
class GroupedKernels(Protocol):
    """A column that multiplies all experts' rows in one operation, wherever the rows went.

    What ``expert_matrices`` and ``route`` give is the column's own affair."""

    def expert_matrices(self, weights: list[PackedWeight]) -> Any:
        """Bind one matrix per expert, all of one shape and in one buffer; copies nothing."""
        ...

    def route(self, experts_Tk: Tensor, experts: int) -> Any:
        """Which (token, slot) pair goes to which expert."""
        ...

    def grouped_linear(
        self, x: Tensor, matrices: Any, way: Any, repeat: int, out: Tensor | None = None
    ) -> Tensor:
        """Pair p = token * k + slot: row p // repeat of x times its expert's matrix -> (T k, O),
        into ``out`` (dense over O) where one is given."""
        ...


@runtime_checkable
class MixtureKernels(GroupedKernels, Protocol):
    """A column that does what stands between a mixture's products, too."""

    def choose(self, logits_TE: Tensor, top_k: int, norm: bool) -> tuple[Tensor, Tensor]:
        """Softmax weights (T, k) and numbers (T, k), int32, of each token's heaviest experts, the
        heaviest first; ``norm`` divides the weights by their sum."""
        ...

    def mix(
        self,
        out_PI: Tensor,
        weights_Tk: Tensor,
        shared_TI: Tensor | None = None,
        gate_T1: Tensor | None = None,
    ) -> Tensor:
        """Each token's pairs, times their weights, added in order; then sigmoid(gate) * shared
        where there is one -> (T, I)."""
        ...
