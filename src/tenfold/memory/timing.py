"""How long page moves take, by page, over the latest of them. Does not know what they were for."""

from __future__ import annotations

from collections import deque

from tenfold.core.messages import Spread

_CALLS = 512


class PageTimes:
    """Seconds a page of the last few hundred calls, each of which moved some pages together."""

    def __init__(self, calls: int = _CALLS) -> None:
        self._pages = 0
        self._calls: deque[tuple[float, int]] = deque(maxlen=calls)

    def add(self, pages: int, seconds: float) -> None:
        """One call moved so many pages."""
        if pages > 0:
            self._pages += pages
            self._calls.append((seconds / pages, pages))

    def spread(self) -> Spread:
        """Pages since the start; the time that half of the window's pages took at most (the lower
        one where there are two middles), and that 99 in 100 did."""
        calls = sorted(self._calls)
        return Spread(self._pages, _percentile(calls, 50), _percentile(calls, 99))


def _percentile(calls: list[tuple[float, int]], percent: int) -> float:
    left = percent * sum(pages for _, pages in calls)
    for seconds, pages in calls:
        left -= 100 * pages
        if left <= 0:
            return seconds
    return 0.0
