"""What the KV cache asks of the memory below it, in integers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class PageSource(Protocol):
    """Physical pages behind one KV group's blocks. Page p covers bytes [p, p+1) x page size."""

    def map(self, pages: Sequence[int]) -> bool:
        """Back all of these pages, or none: False when the budget or a limit forbids it."""
        ...

    def unmap(self, pages: Sequence[int]) -> None:
        """Give these pages back."""
        ...

    def available(self) -> int:
        """How many more pages could be mapped now, if nothing else asks."""
        ...
