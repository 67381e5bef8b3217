"""All experts of a mixture layer in a few operations, for columns with grouped products.

Shape letters: T tokens, k experts per token, I hidden size. Nothing is read back from the device,
so a pass may be captured. Knows nothing of routing weights, which ``Mixture`` applies.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tenfold.kernels.base import GroupedKernels, Kernels
from tenfold.models.packing import Weights


class GroupedExperts:
    """Every (token, slot)'s expert output: x (T, I), experts (T, k) -> (T * k, I).

    ``grouped`` and ``kernels`` are the same column, by its two contracts. ``prefixes`` name the
    experts' weights, in order.
    """

    def __init__(
        self,
        grouped: GroupedKernels,
        kernels: Kernels,
        weights: Weights,
        prefixes: list[str],
        activation: Literal["silu", "gelu_tanh"],
    ) -> None:
        self._grouped = grouped
        self._gated = kernels.gated
        self._empty = kernels.empty
        self._activation: Literal["silu", "gelu_tanh"] = activation
        self._experts = len(prefixes)
        inputs = [weights.matrices(f"{at}gate", f"{at}up") for at in prefixes]
        # One matrix where gate and up were packed together, else two.
        self._inputs = [grouped.expert_matrices(list(part)) for part in zip(*inputs, strict=True)]
        self._down = grouped.expert_matrices([weights.matrices(f"{at}down")[0] for at in prefixes])

    def __call__(self, x_TI: Tensor, experts_Tk: Tensor) -> Tensor:
        grouped, top_k = self._grouped, experts_Tk.shape[1]
        way = grouped.route(experts_Tk, self._experts)
        if len(self._inputs) == 1:
            gate_up = grouped.grouped_linear(x_TI, self._inputs[0], way, top_k)
        else:
            width = sum(part.rows for part in self._inputs)
            gate_up = self._empty(experts_Tk.numel(), width)
            for part, out in zip(self._inputs, gate_up.chunk(2, dim=-1), strict=True):
                grouped.grouped_linear(x_TI, part, way, top_k, out)
        return grouped.grouped_linear(self._gated(gate_up, self._activation), self._down, way, 1)
