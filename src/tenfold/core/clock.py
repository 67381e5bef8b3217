"""Where time comes from. All that waits or measures takes a clock, so it can be simulated."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds. Readings of one clock may be compared; those of two machines may not."""

    def now(self) -> float: ...


class SystemClock:
    """The machine's monotonic clock, which all processes of one host share."""

    def now(self) -> float:
        return time.monotonic()


class VirtualClock:
    """A clock that moves only when told to."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time cannot run back: advance({seconds})")
        self._now += seconds

    def move_to(self, at: float) -> None:
        if at < self._now:
            raise ValueError(f"time cannot run back: from {self._now} to {at}")
        self._now = at
