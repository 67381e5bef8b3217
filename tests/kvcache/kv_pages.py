"""A page source for tests: counts what is mapped, refuses when told to, and notices misuse."""

from __future__ import annotations

from collections.abc import Sequence


class Budget:
    """Pages that several sources share."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.used = 0


class FakePages:
    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.mapped: set[int] = set()

    def map(self, pages: Sequence[int]) -> bool:
        assert len(set(pages)) == len(pages) and not self.mapped & set(pages)
        if self.budget.used + len(pages) > self.budget.pages:
            return False
        self.budget.used += len(pages)
        self.mapped |= set(pages)
        return True

    def unmap(self, pages: Sequence[int]) -> None:
        assert len(set(pages)) == len(pages) and set(pages) <= self.mapped
        self.budget.used -= len(pages)
        self.mapped -= set(pages)

    def available(self) -> int:
        return max(0, self.budget.pages - self.budget.used)
