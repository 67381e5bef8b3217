"""Workers as routing policies count them: a number each, and how much each has to do.

Sets of workers are integers, worker n the bit 1 << n, as in ``kvcache.prefix_map``. Ties go round:
of the workers with the least to do, the next after the one that was taken last, in the order of
their numbers; so equal calls in equal order get equal answers. Does not know why a worker is
taken.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

MOST_GROUPS = 64
"""Groups of names whose bit sets are remembered."""


class Workers:
    """The joined workers and their outstanding requests. A number is free again once its worker
    left; the lowest free one is given next."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.outstanding: dict[int, int] = {}
        self._numbers: dict[str, int] = {}
        self._by_load: dict[int, int] = {0: 0}
        self._groups: dict[frozenset[str], int] = {}
        self._members: dict[int, NDArray[np.intp]] = {}
        self._last = -1

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def join(self, name: str) -> int:
        """Raises ValueError for one that is there already."""
        if name in self._numbers:
            raise ValueError(f"worker {name!r} has joined already")
        number = next(n for n in range(len(self.names) + 1) if n not in self.names)
        self.names[number], self._numbers[name] = name, number
        self.outstanding[number] = 0
        self._by_load[0] |= 1 << number
        self._groups.clear()
        return number

    def leave(self, name: str) -> int | None:
        """The number it had; None for an unknown one."""
        number = self._numbers.pop(name, None)
        if number is not None:
            self._move(number, None)
            del self.names[number]
            self._groups.clear()
            self._members.clear()
        return number

    def number(self, name: str) -> int | None:
        return self._numbers.get(name)

    def group(self, names: Collection[str]) -> int:
        """The names as a bit set. A frozenset that is kept is looked up, not counted again."""
        if not isinstance(names, frozenset):
            return self._bits(names)
        found = self._groups.get(names)
        if found is None:
            if len(self._groups) >= MOST_GROUPS:
                self._groups.clear()
                self._members.clear()
            found = self._groups[names] = self._bits(names)
            self._members[found] = members(found)
        return found

    def members(self, bits: int) -> NDArray[np.intp]:
        """The numbers in a bit set, ascending."""
        found = self._members.get(bits)
        return members(bits) if found is None else found

    def _bits(self, names: Collection[str]) -> int:
        return sum(1 << self._numbers[name] for name in names)

    # --- what they have to do -------------------------------------------------------------------
    def add(self, number: int, requests: int = 1) -> None:
        """The worker got a request; below 0: one of its requests ended."""
        self._move(number, self.outstanding[number] + requests)

    def _move(self, number: int, load: int | None) -> None:
        bit, old = 1 << number, self.outstanding.pop(number)
        left = self._by_load[old] & ~bit
        if left or not old:
            self._by_load[old] = left
        else:
            del self._by_load[old]
        if load is not None:
            self.outstanding[number] = load
            self._by_load[load] = self._by_load.get(load, 0) | bit

    def least(self, among: int) -> int:
        """The one with the fewest outstanding requests. ``among`` must not be empty."""
        for load in sorted(self._by_load):
            if found := self._by_load[load] & among:
                return self.next(found)
        raise ValueError("no worker to choose from")

    def extremes(self, among: int) -> tuple[int, int]:
        """The fewest and the most requests that one of them has outstanding."""
        loads = [load for load, bits in self._by_load.items() if bits & among]
        return min(loads), max(loads)

    def next(self, among: int) -> int:
        """The next one after the last that was taken, going round."""
        after = among >> (self._last + 1) << (self._last + 1) or among
        self._last = (after & -after).bit_length() - 1
        return self._last


def members(bits: int) -> NDArray[np.intp]:
    """The numbers in a bit set, ascending."""
    data = np.frombuffer(bits.to_bytes(-(-bits.bit_length() // 8), "little"), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(data, bitorder="little"))


def bits_of(chosen: NDArray[np.bool_]) -> int:
    """The set of the numbers whose entry is true."""
    return int.from_bytes(np.packbits(chosen, bitorder="little").tobytes(), "little")
