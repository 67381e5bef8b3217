"""The one check every tensor over a reservation passes, whatever device it is on."""

from __future__ import annotations

from math import prod

from torch import dtype

from tenfold.core.errors import Conflict


def elements(length: int, offset: int, shape: tuple[int, ...], kind: dtype) -> int:
    """Number of elements of such a tensor within ``length`` bytes, from byte ``offset`` on.

    Raises Conflict where it would reach outside, or start at an unaligned byte."""
    count = prod(shape)
    inside = offset >= 0 and offset + count * kind.itemsize <= length
    if not inside or offset % kind.itemsize or min(shape, default=0) < 0:
        raise Conflict(
            f"a tensor of {kind} {tuple(shape)} at byte {offset} does not lie, aligned, within "
            f"{length} bytes"
        )
    return count
