"""Elementwise functions whose result for one element depends on nothing else in the call.

torch computes most elements of exp, tanh or erf in vector registers and the few left over at the
end of a thread's share one by one, and the two differ in the last bit. So the same activation could
come out differently beside other requests. These wrappers keep every element in a full vector.
Sums, products and row-wise operations (softmax, layer norm) need no such care.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LANES = 64
"""Loops take two vectors at a time, of up to 16 floats on x86; twice that is kept in hand."""
_BLOCK = 16384
"""Below torch's threshold for sharing work among threads, and a whole number of vectors."""


def blockwise(function: Callable[[Tensor], Tensor], x_TI: Tensor) -> Tensor:
    """``function`` of every element of a matrix, in vector-aligned blocks -> (T, I)."""
    cols = x_TI.shape[1]
    if cols % _LANES:
        padded = torch.nn.functional.pad(x_TI, (0, _LANES - cols % _LANES))
        return blockwise(function, padded)[:, :cols]
    flat = x_TI.reshape(-1)
    return torch.cat([function(part) for part in torch.split(flat, _BLOCK)]).view(x_TI.shape)


def sigmoid(x_T1: Tensor) -> Tensor:
    """Logistic function of a column (T, 1)."""
    return blockwise(torch.sigmoid, x_T1)
