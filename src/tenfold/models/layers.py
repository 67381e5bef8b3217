"""The few layers of which every network here is made, bound to their weights once.

Each is a callable over (T, features). Nothing is looked up by name while running. Knows nothing of
sequences or caches.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

from torch import Tensor

from tenfold.kernels.base import Kernels, PackedWeight


class Linear:
    """x @ W^T (+ bias), where W may be several matrices one below the other: (T, I) -> (T, O)."""

    __slots__ = ("_kernels", "_runs", "_width")

    def __init__(
        self, kernels: Kernels, matrices: list[PackedWeight], bias_O: Tensor | None = None
    ) -> None:
        self._kernels = kernels
        ends = list(accumulate(matrix.rows for matrix in matrices))
        self._width = ends[-1]
        self._runs = [
            (matrix, None if bias_O is None else bias_O[end - matrix.rows : end], end)
            for matrix, end in zip(matrices, ends, strict=True)
        ]

    def __call__(self, x_TI: Tensor) -> Tensor:
        linear = self._kernels.linear
        if len(self._runs) == 1:
            weight, bias, _ = self._runs[0]
            return linear(x_TI, weight, bias)
        out_TO = self._kernels.empty(len(x_TI), self._width)
        for weight, bias, end in self._runs:
            linear(x_TI, weight, bias, out_TO[:, end - weight.rows : end])
        return out_TO


class GatedMlp:
    """down(act(gate(x)) * up(x)): (T, I) -> (T, I)."""

    __slots__ = ("_activation", "_down", "_gate_up", "_gated")

    def __init__(
        self,
        kernels: Kernels,
        gate_up: Linear,
        down: Linear,
        activation: Literal["silu", "gelu_tanh"],
    ) -> None:
        self._gated = kernels.gated
        self._gate_up = gate_up
        self._down = down
        self._activation: Literal["silu", "gelu_tanh"] = activation

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self._down(self._gated(self._gate_up(x_TI), self._activation))
