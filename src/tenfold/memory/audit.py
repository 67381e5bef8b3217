"""A pool's ledger compared with itself and with the operating system's count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.memory.base import Census
from tenfold.memory.ranges import MAPPED, RESERVED, VirtualRange
from tenfold.memory.reserve import Reserve


@dataclass(slots=True, frozen=True)
class Books:
    """What the pool believes: pages handed out, held in all, and at most."""

    page_bytes: int
    mapped: int
    held: int
    capacity: int


def differences(
    books: Books, ranges: Sequence[VirtualRange], reserve: Reserve, census: Census
) -> list[str]:
    """What does not agree, in words. Claimed pages may be there or not."""
    wrong = []
    if books.mapped != sum(one.mapped_pages for one in ranges):
        wrong.append(f"{books.mapped} pages counted as mapped, but not by the ranges")
    if books.held > books.capacity:
        wrong.append(f"{books.held} pages held, over the capacity of {books.capacity}")
    held = books.held * books.page_bytes
    claimed = sum(len(one.claimed) for one in ranges) * books.page_bytes
    if not held - claimed <= census.total <= held:
        wrong.append(f"ledger holds {held} bytes, the system counts {census.total}")
    for one, resident in zip(ranges, census.spaces, strict=True):
        wrong += _of_range(one, reserve, resident)
    return wrong


def _of_range(one: VirtualRange, reserve: Reserve, resident: int) -> list[str]:
    mapped, reserved = one.state.count(MAPPED), one.state.count(RESERVED)
    label, wrong = f"{one.owner}/{one.name}", []
    if mapped != one.mapped_pages:
        wrong.append(f"{label}: {one.mapped_pages} pages counted, {mapped} marked as mapped")
    if not reserved == one.ready_pages == sum(held is one for held, _ in reserve.places()):
        wrong.append(f"{label}: {reserved} pages marked as reserved, but not listed")
    held = (mapped + reserved) * one.page_bytes
    if not held - len(one.claimed) * one.page_bytes <= resident <= held:
        wrong.append(f"{label}: ledger holds {held} bytes, {resident} are resident")
    return wrong
