"""The native operations of a mixture of experts, as one part of the native column.

Pair p is slot p % k of token p // k. Nothing is decided here by the data, so a pass may be written
on a tape. Knows nothing of which network the mixture belongs to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold.kernels import checks
from tenfold.kernels.base import PackedWeight
from tenfold.kernels.checks import ShapeError

if TYPE_CHECKING:
    from tenfold._native import Experts, Runtime


@dataclass(slots=True)
class ExpertMatrices:
    """E matrices (O, I), of whatever kinds; ``weights`` keeps their bytes alive."""

    handle: Experts
    weights: Sequence[PackedWeight]
    rows: int
    cols: int


@dataclass(slots=True)
class Route:
    """Pairs sorted by expert, and where each expert's begin; all int32."""

    experts_Tk: Tensor
    order_P: Tensor
    starts_E1: Tensor


class ExpertOperations(ABC):
    """Implements ``base.MixtureKernels`` over a runtime."""

    layout: str
    _extension: Any
    _runtime: Runtime
    _codes: dict[str, int]

    @abstractmethod
    def empty(self, rows: int, cols: int) -> Tensor: ...

    @abstractmethod
    def scope(self) -> AbstractContextManager[None]: ...

    def _integers(self, count: int) -> Tensor:
        return self.empty(1, count)[0].view(torch.int32)

    def choose(self, logits_TE: Tensor, top_k: int, norm: bool) -> tuple[Tensor, Tensor]:
        checks.floats("logits", logits_TE, 2)
        tokens, experts = logits_TE.shape
        checks.dense("logits", logits_TE, (tokens, experts))
        if not 1 <= top_k <= experts:
            raise ShapeError(f"{top_k} of {experts} experts cannot be chosen")
        weights_Tk = self.empty(tokens, top_k)
        experts_Tk = self._integers(tokens * top_k).view(tokens, top_k)
        self._runtime.choose(
            logits_TE.data_ptr(), tokens, experts, top_k, norm,
            weights_Tk.data_ptr(), experts_Tk.data_ptr(),
        )  # fmt: skip
        return weights_Tk, experts_Tk

    def expert_matrices(self, weights: Sequence[PackedWeight]) -> ExpertMatrices:
        """Matrices of one shape, one per expert; each may have a kind and a buffer of its own."""
        if not weights:
            raise ShapeError("no matrices")
        first, handle = weights[0], self._extension.Experts()
        for weight in weights:
            checks.weight_matches(weight, self.layout, first.cols)
            if weight.rows != first.rows:
                raise ShapeError(f"experts of {first.rows} and of {weight.rows} outputs")
            data = weight.data
            code = self._codes[weight.kind]
            handle.add(code, data.data_ptr(), data.nbytes, weight.rows, weight.cols)
        return ExpertMatrices(handle, weights, first.rows, first.cols)

    def route(self, experts_Tk: Tensor, experts: int) -> Route:
        tokens, top_k = experts_Tk.shape
        chosen = checks.indices("experts", experts_Tk.reshape(-1), tokens * top_k)
        way = Route(chosen.view(tokens, top_k), self._integers(len(chosen)),
                    self._integers(experts + 1))  # fmt: skip
        try:
            self._runtime.route(
                chosen.data_ptr(), len(chosen), experts,
                way.order_P.data_ptr(), way.starts_E1.data_ptr(),
            )  # fmt: skip
        except ValueError as exc:
            raise ShapeError(str(exc)) from exc
        return way

    def grouped_linear(
        self,
        x: Tensor,
        matrices: ExpertMatrices,
        way: Route,
        repeat: int,
        out: Tensor | None = None,
    ) -> Tensor:
        checks.floats("x", x, 2)
        pairs = way.order_P.numel()
        most = len(way.experts_Tk)  # an expert has each token once, as ``choose`` does it
        rows, cols = matrices.rows, matrices.cols
        if x.shape != (pairs // repeat, cols) or pairs % repeat or x.stride()[1] != 1:
            raise ShapeError(
                f"x {tuple(x.shape)} does not give each of {pairs} pairs a dense row of {cols}"
            )
        if len(matrices.weights) + 1 != way.starts_E1.numel():
            raise ShapeError(f"{len(matrices.weights)} matrices, but another number was routed")
        if out is None:
            out = self.empty(pairs, rows)
        else:
            checks.result(out, pairs, rows)
        with self.scope():
            x_rows, y_rows = self.empty(most, cols), self.empty(most, rows)
            self._runtime.grouped(
                matrices.handle, way.experts_Tk.data_ptr(), pairs, way.order_P.data_ptr(),
                way.starts_E1.data_ptr(), repeat, x.data_ptr(), x.stride()[0],
                out.data_ptr(), out.stride()[0], most, x_rows.data_ptr(), y_rows.data_ptr(),
            )  # fmt: skip
        return out

    def mix(
        self,
        out_PI: Tensor,
        weights_Tk: Tensor,
        shared_TI: Tensor | None = None,
        gate_T1: Tensor | None = None,
    ) -> Tensor:
        tokens, top_k = weights_Tk.shape
        n = out_PI.shape[-1]
        checks.dense("out", out_PI, (tokens * top_k, n))
        checks.dense("weights", weights_Tk, (tokens, top_k))
        shared = gate = 0
        if shared_TI is not None and gate_T1 is not None:
            checks.dense("shared", shared_TI, (tokens, n))
            checks.dense("gate", gate_T1, (tokens, 1))
            shared, gate = shared_TI.data_ptr(), gate_T1.data_ptr()
        y_TI = self.empty(tokens, n)
        self._runtime.mix(
            out_PI.data_ptr(), weights_Tk.data_ptr(), tokens, top_k, n, shared, gate,
            y_TI.data_ptr(),
        )  # fmt: skip
        return y_TI
