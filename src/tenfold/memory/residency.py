"""How much memory stands behind addresses, and how many mappings there are: the kernel's word.

Reads what /proc says; knows nothing of pools or of what the pages are for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tenfold.core.errors import OutOfMemory
from tenfold.memory.linux import Kernel

_RECOUNT_EVERY = 256
"""How many mappings of our own may come before everyone else's are counted again."""

_ENTRY = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) .*\n(?:.*\n)*?Rss: +(\d+) kB\n(?:.*\n)*?Swap: +(\d+) kB",
    re.MULTILINE,
)


def resident(kernel: Kernel, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes of memory behind each [start, end) address span, by one reading of /proc/self/smaps.

    Pages that were swapped out count: they are still held. The kernel's shared zero page, which a
    read of an unmapped page shows, does not: it is nobody's. Spans must not share a mapping with
    each other or with anything else (guard pages see to that), as smaps counts whole mappings.
    """
    if not spans:
        return []
    low, high = min(start for start, _ in spans), max(end for _, end in spans)
    held = [0] * len(spans)
    for match in _ENTRY.finditer(kernel.smaps()):
        start, end = int(match[1], 16), int(match[2], 16)
        if end <= low or start >= high:
            continue
        for index, (first, last) in enumerate(spans):
            if first <= start and end <= last:
                held[index] += (int(match[3]) + int(match[4])) * 1024
                break
    return held


class MappingGuard:
    """Keeps this process below half of ``vm.max_map_count``; the other half is left to the rest.

    ``own`` counts the mappings its back end made, or may have made, inside its ``spans`` of address
    space. Everybody else's (libraries, threads) are counted anew after every few hundred of our
    own, and before anything is refused.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.own = 0
        self.spans: set[tuple[int, int]] = set()
        self._others = 0
        self._counted_at = -_RECOUNT_EVERY

    def admit(self, more: int) -> None:
        """Count ``more`` mappings (fewer where negative).

        Raises OutOfMemory, and counts nothing, where the process would reach the half."""
        if more > 0:
            half = self._kernel.max_map_count() // 2
            stale = self.own + more - self._counted_at >= _RECOUNT_EVERY
            if stale or self.own + more + self._others >= half:
                self._others = self._kernel.mapping_count(self.spans)
                self._counted_at = self.own
            if self.own + more + self._others >= half:
                raise OutOfMemory(
                    f"{more} more memory mappings would make {self.own + more + self._others}, and "
                    f"Tenfold stays under half of vm.max_map_count ({half}); raise that sysctl, "
                    "use larger pages, or use the anon backend, which needs no mapping per page"
                )
        self.own += more
