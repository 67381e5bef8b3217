"""The protocol of physical pages. Mechanism only: who may have how much is decided elsewhere.

A backend turns address space into memory and back, page by page. A *page* is the unit of physical
memory (2 MiB by default). Offsets and counts are in pages unless a name says bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, dtype


@dataclass(slots=True, eq=False)
class Reservation:
    """A stretch of address space, none of it backed by memory until mapped."""

    address: int
    pages: int
    page_bytes: int


class Census(NamedTuple):
    """Physical bytes at one moment: all that a backend holds, and what each reservation holds."""

    total: int
    spaces: list[int]


class PageBackend(Protocol):
    """Address space and physical pages of one device. Not thread-safe, but for ``populate``: the
    pool's lock guards it.

    Reading an unmapped page of a reservation yields zeros (or garbage that is no other model's)
    and never faults. A freshly mapped page reads zero.
    """

    page_bytes: int
    hands_over: bool
    """Whether the memory of an unmapped page becomes spare, for any reservation's next ``map``,
    rather than the system's at once."""

    def reserve(self, pages: int) -> Reservation:
        """Take address space for ``pages`` pages; costs no physical memory."""
        ...

    def map(self, space: Reservation, first: int, count: int) -> None:
        """Back pages [first, first + count) with physical memory, populated at once: ``attach``
        and ``populate`` together.

        Raises OutOfMemory, with nothing mapped, when the system has none left."""
        ...

    def attach(self, space: Reservation, first: int, count: int) -> None:
        """The quick half of ``map``: from now on these pages are mapped, but not to be used before
        ``populate`` has come back. Raises as ``map`` does."""
        ...

    def populate(self, space: Reservation, first: int, count: int) -> None:
        """The slow half: memory behind the attached pages, and zeros in it. Without the pool's
        lock, beside any call that is about other pages.

        Raises OutOfMemory; then the pages are to be unmapped."""
        ...

    def unmap(self, space: Reservation, first: int, count: int) -> None:
        """Take the physical memory of these mapped pages back: it is the operating system's again
        or, where the backend ``hands_over``, spare.

        Raises OutOfMemory, with nothing unmapped, where splitting the mapping would pass the
        system's limit on mappings (``memfd`` only)."""
        ...

    def zero(self, space: Reservation, first: int, count: int) -> None:
        """Overwrite these mapped pages with zeros."""
        ...

    def release(self, space: Reservation) -> None:
        """Give back the address space, and whatever is still mapped in it."""
        ...

    def tensor(
        self, space: Reservation, offset: int, shape: tuple[int, ...], kind: dtype
    ) -> Tensor:
        """An ordinary tensor over the bytes from ``offset`` (in bytes). It does not own them."""
        ...

    def resident_bytes(self, space: Reservation) -> int:
        """Physical bytes behind this reservation, by the operating system's own count."""
        ...

    def total_resident_bytes(self) -> int:
        """Physical bytes this backend holds in all, by the operating system's own count."""
        ...

    def census(self, spaces: Sequence[Reservation]) -> Census:
        """Both counts at once, from one look at the operating system's books."""
        ...

    @property
    def spare_pages(self) -> int:
        """Pages held that back no address; ``map`` uses them first. Part of the total count."""
        ...

    def trim(self, keep: int) -> None:
        """Give spare pages back until at most ``keep`` are left."""
        ...

    def close(self) -> None:
        """Give everything back. The backend is not usable afterwards."""
        ...
