"""The protocol of physical pages. Mechanism only: who may have how much is decided elsewhere.

A backend turns address space into memory and back, page by page. A *page* is the unit of physical
memory (2 MiB by default). Offsets and counts are in pages unless a name says bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, dtype


@dataclass(slots=True, eq=False)
class Reservation:
    """A stretch of address space, none of it backed by memory until mapped."""

    address: int
    pages: int
    page_bytes: int


class PageBackend(Protocol):
    """Address space and physical pages of one device. Not thread-safe: the pool's lock guards it.

    Reading an unmapped page of a reservation yields zeros (or garbage that is no other model's data)
    and never faults. A freshly mapped page reads zero.
    """

    page_bytes: int

    def reserve(self, pages: int) -> Reservation:
        """Take address space for ``pages`` pages; costs no physical memory."""
        ...

    def map(self, space: Reservation, first: int, count: int) -> None:
        """Back pages [first, first + count) with physical memory, populated at once.

        Raises OutOfMemory, with nothing mapped, when the system has none left."""
        ...

    def unmap(self, space: Reservation, first: int, count: int) -> None:
        """Give the physical memory of these mapped pages back to the operating system."""
        ...

    def release(self, space: Reservation) -> None:
        """Give back the address space, and whatever is still mapped in it."""
        ...

    def tensor(self, space: Reservation, offset: int, shape: tuple[int, ...], kind: dtype) -> Tensor:
        """An ordinary tensor over the bytes from ``offset`` (in bytes). It does not own them."""
        ...

    def resident_bytes(self, space: Reservation) -> int:
        """Physical bytes behind this reservation, by the operating system's own count."""
        ...

    def total_resident_bytes(self) -> int:
        """Physical bytes this backend holds in all, by the operating system's own count."""
        ...
