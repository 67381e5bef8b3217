"""What a pool tells of itself. Numbers only; does not know where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tenfold.core.messages import Spread


@dataclass(slots=True)
class OwnerStats:
    """Pages of one owner: mapped now, addressable by its ranges, and its limit (None: no limit)."""

    mapped: int = 0
    virtual: int = 0
    limit: int | None = None


@dataclass(slots=True)
class PoolStats:
    """Pages of a pool at one moment. mapped + reserved is what the device's memory holds."""

    page_bytes: int
    capacity: int
    mapped: int
    reserved: int
    virtual: int
    owners: dict[str, OwnerStats] = field(default_factory=dict)


class MoveTimes(NamedTuple):
    """What callers of ``map`` and of ``unmap`` waited, by page."""

    map: Spread
    unmap: Spread
