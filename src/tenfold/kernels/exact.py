"""Sums and functions whose bits depend on nothing but their inputs, from ordinary torch operations.

A library may add products in any order it likes, and chooses by shape, threads and alignment. But
a float64 sum whose terms are whole multiples of one step, and small enough, has no rounding at all,
so order cannot show. Operands are rounded to such a grid first (the splitting of Ozaki et al.,
"Error-free transformations of matrix multiplication", 2012). Functions are built from additions,
multiplications and divisions, each a call of its own: those are rounded correctly by IEEE 754 in
vector loops and in their tails alike, which torch's own ``exp`` and ``tanh`` do not promise.

Knows nothing of models or layouts. All tensors here are float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MANTISSA = 53
"""Bits of a float64 significand: what a sum of products on grids must fit in."""

CACHED = 1 << 16
"""Elements to work on at a time, so that a chain of operations stays in a core's cache."""


def count_bits(terms: int) -> int:
    """Bits by which a sum of so many terms can outgrow one term."""
    return max(0, (terms - 1).bit_length())


def power_of_two(exponent: Tensor) -> Tensor:
    """2^n, exactly, for int exponents in [-1022, 1023]."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def exponent_of(x: Tensor, dim: int) -> Tensor:
    """The smallest n with |x| < 2^n along ``dim`` (kept), limited to where float32 values lie."""
    _, exponent = torch.frexp(x.abs().amax(dim, keepdim=True))
    return exponent.clamp(-300, 300)


def on_grid(x: Tensor, exponent: Tensor | int, bits: int) -> Tensor:
    """``x`` rounded to multiples of 2^(exponent - bits): whole numbers of at most ``bits`` bits."""
    shift = exponent - bits + MANTISSA - 1
    magic = 1.5 * (2.0**shift if isinstance(shift, int) else power_of_two(shift))
    return (x + magic).sub_(magic)


def split(x: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor]:
    """Two parts of ``x``, each of ``bits`` bits on a grid of its own along ``dim``."""
    first = on_grid(x, exponent_of(x, dim), bits)
    rest = x - first
    return first, on_grid(rest, exponent_of(rest, dim), bits)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of float32 tensors, rounded once, as a machine's fused instruction does.

    The product is exact in float64; the sum is rounded to odd there, after which the rounding to
    float32 gives what one rounding would have (Boldo and Melquiond, 2008)."""
    product, wide = a.double() * b.double(), c.double()
    total = product + wide
    back = total - product
    lost = (product - (total - back)) + (wide - back)
    bits = total.view(torch.int64)
    nudge = torch.where((lost > 0) == (total > 0), 1, -1)  # away from zero, or towards it
    inexact = ((lost < 0) | (lost > 0)) & (bits & 1 == 0)
    return (bits + nudge * inexact).view(torch.float64).float()


def exp(x: Tensor) -> Tensor:
    """e^x within about 1e-14, for float64; arguments are limited to [-700, 700]; NaN stays NaN."""
    x = x.clamp(-700.0, 700.0)
    n = (x * (1.0 / math.log(2.0))).round_()
    f = x.sub_(n * 0.693145751953125).sub_(n * 1.4286068203094172e-06)  # ln 2 in two parts
    y = torch.full_like(f, 1.0 / math.factorial(11))
    for term in range(10, -1, -1):
        y.mul_(f).add_(1.0 / math.factorial(term))
    return y.mul_(power_of_two(torch.nan_to_num_(n).to(torch.int64)))


def tanh(x: Tensor) -> Tensor:
    e = exp(x.abs().mul_(-2.0))
    return torch.copysign((1.0 - e).div_(1.0 + e), x)


def log(x: Tensor) -> Tensor:
    """Natural logarithm of positive numbers within about 1e-15; NaN stays NaN."""
    mantissa, exponent = torch.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa, exponent = torch.where(low, mantissa * 2.0, mantissa), exponent - low.int()
    s = (mantissa - 1.0).div_(mantissa + 1.0)  # log m = 2 atanh s, |s| <= 0.172
    square = s * s
    y = torch.full_like(s, 1.0 / 21.0)
    for term in range(19, 0, -2):
        y.mul_(square).add_(1.0 / term)
    return y.mul_(s).mul_(2.0).add_(exponent * math.log(2.0))
