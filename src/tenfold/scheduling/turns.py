"""Which of several models on one device steps next. Knows their step times, not their requests."""

from __future__ import annotations

from collections.abc import Iterable


class Turns:
    """Least time used first, by start-time fair queueing (Goyal et al. 1996) with equal shares.

    While two models both want steps, their times differ by at most one step of each. A model that
    comes back from having nothing to do, or from not being able to run, starts level with the one
    that runs now: idling saves nothing up.
    """

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._last_turn: dict[str, int] = {}
        self._active: set[str] = set()
        self._order: list[str] = []
        self._level = 0.0
        self._turn = 0

    def order(self, names: Iterable[str]) -> list[str]:
        """The models that have work, best first. The caller steps the first that can run."""
        names = list(names)
        if len(names) == 1 and names == self._order and names[0] in self._active:
            return names  # still the only one
        self._order = names
        for name in self._order:
            if name not in self._active:
                self._used[name] = max(self._used.get(name, 0.0), self._level)
        self._active = set(self._order)
        self._order.sort(key=lambda name: (self._used[name], self._last_turn.get(name, -1)))
        return list(self._order)

    def spent(self, name: str, seconds: float) -> None:
        """``name``, of the last order, ran for so long; those before it could not run."""
        if self._order[:1] != [name] and name in self._order:
            self._active.difference_update(self._order[: self._order.index(name)])
        used = self._used.get(name, self._level)
        self._level = max(self._level, used)
        self._used[name] = used + seconds
        self._turn += 1
        self._last_turn[name] = self._turn

    def forget(self, name: str) -> None:
        """The model is gone."""
        self._used.pop(name, None)
        self._last_turn.pop(name, None)
        self._active.discard(name)
