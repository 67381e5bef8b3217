"""The few layers of which every network here is made, bound to their weights once.

Each is a callable over (T, features). Nothing is looked up by name while running. Knows nothing of
sequences or caches.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tenfold.kernels.base import Kernels, PackedWeight


class Linear:
    """x @ W^T (+ bias), where W may be several matrices one below the other: (T, I) -> (T, O)."""

    __slots__ = ("_bias", "_linear", "_runs", "_weight")

    def __init__(
        self, kernels: Kernels, matrices: list[PackedWeight], bias_O: Tensor | None = None
    ) -> None:
        self._linear = kernels.linear
        self._weight = matrices[0] if len(matrices) == 1 else None
        self._bias = bias_O
        biases: list[Tensor | None] = [None] * len(matrices)
        if bias_O is not None:
            biases = list(torch.split(bias_O, [matrix.rows for matrix in matrices]))
        self._runs = list(zip(matrices, biases, strict=True))

    def __call__(self, x_TI: Tensor) -> Tensor:
        if self._weight is not None:
            return self._linear(x_TI, self._weight, self._bias)
        return torch.cat([self._linear(x_TI, weight, bias) for weight, bias in self._runs], dim=-1)


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
